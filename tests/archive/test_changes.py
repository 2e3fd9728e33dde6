"""A source is rewritten between listing and reading: no row has an etag or a digest of other bytes."""

import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_pipeline.archive.files import Selection
from fer_pipeline.archive.listing import Listing
from fer_pipeline.archive.record import Record
from fer_pipeline.labelling.labeller import Labeller
from fer_pipeline.labelling.manifest import manifest_table

KINDS = ("jpg", "tar", "tar.gz", "zip", "parquet", "avi")
COUNT = 40
"""Number of images in a container: more than one batch of a Parquet file."""


def picture(number: int) -> bytes:
    """Return a picture. All pictures have the same size, so the size does not reveal a change."""
    pixels = np.full((48, 48, 3), number % 256, np.uint8)
    return cv2.imencode(".bmp", pixels)[1].tobytes()


def write(path: Path, seed: int, count: int = COUNT) -> None:
    """Write a file of one of `KINDS`. Another seed gives other pictures."""
    pictures = {f"{number:03d}.bmp": picture(seed + number) for number in range(count)}
    match path.name.partition(".")[2]:
        case "jpg":
            path.write_bytes(picture(seed))
        case "tar" | "tar.gz" as kind:
            with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as tar:
                for name, data in pictures.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        case "zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in pictures.items():
                    archive.writestr(zipfile.ZipInfo(name), data)
        case "parquet":
            pq.write_table(pa.table({"image": list(pictures.values())}), path, compression="none")
        case _:
            with av.open(str(path), "w") as container:
                stream = container.add_stream("mjpeg", rate=1)
                stream.width, stream.height, stream.pix_fmt = 48, 48, "yuvj420p"
                for number in range(4):
                    pixels = np.full((48, 48, 3), (seed + 40 * number) % 256, np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
                container.mux(stream.encode(None))


def listed(source: str) -> list[Record]:
    return list(Listing(source, Selection(fps=1.0)))


def outcomes(labeller: Labeller, records: list[Record]) -> list[tuple[str, str | None]]:
    """Return status and digest of each record, read in one shard."""
    (rows,) = labeller([manifest_table(records, 0, 0)])
    return [(row["status"], row["content_sha256"]) for row in rows.to_pylist()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_rewritten_is_changed_and_nothing_else(kind: str, labeller: Labeller, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    write(path, 0)
    records = listed(str(tmp_path))
    before = outcomes(labeller, records)
    assert {status for status, _ in before} == {"ok"} and len(before) == {"jpg": 1, "avi": 4}.get(kind, COUNT)
    write(path, 7)
    assert set(outcomes(labeller, records)) == {("changed", None)}
    anew = outcomes(labeller, listed(str(tmp_path)))
    assert {status for status, _ in anew} == {"ok"}
    if kind != "avi":
        assert anew != before
        assert anew[0][1] == hashlib.sha256(picture(7)).hexdigest()
    else:
        assert {digest for _, digest in anew} == {None}


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip", "parquet", "avi"])
def test_a_container_that_shrank_is_changed_and_not_damaged(kind: str, labeller: Labeller, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    write(path, 0)
    records = listed(str(tmp_path))
    path.write_bytes(path.read_bytes()[:1000])
    assert {status for status, _ in outcomes(labeller, records)} == {"changed"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_put_in_place_of_another_while_it_is_open_gives_the_listed_one_or_changed(
    kind: str, labeller: Labeller, tmp_path: Path
) -> None:
    path, other = tmp_path / "in" / f"a.{kind}", tmp_path / f"b.{kind}"
    path.parent.mkdir()
    write(path, 0)
    write(other, 7)
    records = listed(str(path.parent))
    expected = outcomes(labeller, records)
    half = len(records) // 2
    manifests = [manifest_table(records[:half], 0, 0), manifest_table(records[half:], 1, half)]
    shards = labeller([table for table in manifests if len(table)])
    found = []
    for shard in shards:
        found += [(row["status"], row["content_sha256"]) for row in shard.to_pylist()]
        if other.exists():
            os.replace(other, path)
    for got, listed_then in zip(found, expected, strict=True):
        assert got == listed_then or got[0] == "changed"
