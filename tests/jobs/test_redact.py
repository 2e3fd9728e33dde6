"""`redact`: faces that were found are covered in folders and containers, and what is not covered is named."""

import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

import fer_pipeline as fer
from fer_pipeline.archive.fetch import fetch
from fer_pipeline.archive.files import Selection, name_below
from fer_pipeline.archive.listing import Listing
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.storage import parquet
from fer_pipeline.cli import table as upkeep
from fer_pipeline.cli.table import ForgetConfig
from fer_pipeline.faces.decode import decode
from fer_pipeline.faces.mosaic import BOX_SCALE, mosaicked
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.jobs import publish
from fer_pipeline.jobs.publish import PublishConfig
from fer_pipeline.jobs.redact import job as redact
from fer_pipeline.jobs.redact.containers import name_of_copy
from fer_pipeline.jobs.redact.job import RedactConfig, Redaction
from tests.archive.test_member_videos import PACKERS, write_video
from tests.archive.test_parquets import WRITERS
from tests.conftest import copies

NOISE = 6.0
"""Largest mean difference in grey levels that writing a JPEG makes."""


def redacted(run: fer.Run, out: Path, **options: str) -> Redaction:
    return redact.run(RedactConfig(run=run.url, source=str(run.source), out=str(out), **options))


@pytest.fixture(scope="module")
def source(archive: Path, hopper: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample archive, and two photos in each kind of container; a video, and a page of a TIFF."""
    folder = copies(archive, tmp_path_factory.mktemp("redact") / "source", 1)
    photos = [path.read_bytes() for path in sorted(archive.rglob("hopper-*.jpg"))[:2]]
    for name, pack in PACKERS.items():
        pack(folder / name, {"x/1.jpg": photos[0], "2": photos[1]})
    for name, write in WRITERS.items():
        write(pa.table({"image": photos}), folder / name)
    PACKERS["a.tar"](
        folder / "hostile.tar", {"../up.jpg": photos[0], "/top.jpg": photos[1], "x": photos[0], "x.redacted.jpg": photos[1]}
    )
    PACKERS["a.tar"](folder / "a.tar.gz.redacted.tar", {"other.jpg": photos[1]})
    (folder / "a.webp.redacted.jpg").write_bytes(photos[1])
    (folder / f"{'l' * 248}.webp").write_bytes(photos[0])
    (folder / "B.PARQUET").write_bytes((folder / "a.parquet").read_bytes())
    write_video(folder / "a.avi")
    picture = Image.fromarray(hopper[:, :, ::-1])
    picture.save(folder / "a.webp")
    picture.save(folder / "scan.tif", save_all=True, append_images=[picture.rotate(5)])
    return folder


@pytest.fixture(scope="module")
def run(source: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> fer.Run:
    out = tmp_path_factory.mktemp("run") / "run"
    return fer.label(source, out, detector="mtcnn", shard_records=5, pages="all", fps=1)


@pytest.fixture(scope="module")
def all_covered(run: fer.Run, tmp_path_factory: pytest.TempPathFactory) -> Redaction:
    return redacted(run, tmp_path_factory.mktemp("all") / "out")


def pictures(folder: str) -> Iterator[tuple[str, Pixels]]:
    """Yield the images in a folder by path, as labelling sees them; what cannot be read is left out."""
    records = [
        one
        for one in Listing(folder, Selection(pages="all"))
        if one.time_ms is None and "_redacted" not in one.uri and not one.error
    ]
    with fetch(records, 10**9) as fetched:
        for record, data in zip(records, fetched, strict=True):
            if isinstance(data, bytes) and "broken" not in record.uri:
                yield name_below(folder, record.uri, record.member), decode(data, 10**8).pixels


def test_every_found_face_is_covered_and_everything_else_is_as_it_was(run: fer.Run, all_covered: Redaction) -> None:
    faces = run.faces(where="time_ms is null")
    faces = faces.filter(pc.not_equal(faces["path"], f"{'l' * 248}.webp"))
    assert all_covered.covered == len(faces) > 40 and all_covered.visible == 0
    files = sorted(Path(all_covered.out).glob("_redacted/*.parquet"))
    rows = [row for path in files for row in parquet.read_table(str(path)).to_pylist()]
    assert [row["record_id"] for row in rows] == list(range(run.record.records))
    assert sum(row["copy"] is not None for row in rows) == all_covered.copies
    assert not list(Path(all_covered.out).glob("_redacted/parts/*"))
    before, after = dict(pictures(str(run.source))), dict(pictures(all_covered.out))
    assert set(after) == {row["copy"] for row in rows if row["copy"]}
    boxes = {path: [[face[side] for side in "xywh"] for face in faces.to_pylist() if face["path"] == path] for path in before}
    for row in rows:
        if row["copy"]:
            original, copy = before[row["path"]], after[row["copy"]]
            expected = mosaicked(original, boxes[row["path"]])
            assert copy.shape == original.shape and np.abs(copy.astype(int) - expected).mean() < NOISE
            for x, y, w, h in boxes[row["path"]]:
                face = np.s_[max(0, int(y)) : int(y + h), max(0, int(x)) : int(x + w)]
                assert np.abs(copy[face].astype(int) - original[face]).mean() > 2 * NOISE


def test_containers_stay_containers_and_names_say_what_is_written(all_covered: Redaction) -> None:
    names = {path.name for path in Path(all_covered.out).iterdir()}
    tars = {name if name == "a.tar" else f"{name}.redacted.tar" for name in PACKERS if "tar" in name}
    tables = {name if name.endswith(".parquet") else f"{name}.redacted.parquet" for name in WRITERS}
    zips = {name for name in PACKERS if name.endswith(".zip")}
    assert names == tars | tables | zips | {
        *("hostile.tar", "a.tar.gz.redacted.tar.redacted.tar", "a.webp.redacted.jpg.redacted.jpg", "B.PARQUET"),
        *("a.webp.redacted.jpg", "scan.tif.redacted.tar", "00", "_redacted", "redaction.json", "written.json"),
    }
    with tarfile.open(Path(all_covered.out) / "a.tar.gz.redacted.tar") as tar:
        assert tar.getnames() == ["x/1.jpg", "2.redacted.jpg"]
    with tarfile.open(Path(all_covered.out) / "a.tar.gz.redacted.tar.redacted.tar") as tar:
        assert tar.getnames() == ["other.jpg"]
    with tarfile.open(Path(all_covered.out) / "hostile.tar") as tar:
        assert tar.getnames() == ["up.jpg", "top.jpg", "x.redacted.jpg", "x.redacted.jpg.redacted.jpg"]
    assert pq.read_table(Path(all_covered.out) / "B.PARQUET")["path"].to_pylist() == ["row 0", "row 1"]
    with zipfile.ZipFile(Path(all_covered.out) / "lzma.zip") as one:
        assert one.namelist() == ["x/1.jpg", "2.redacted.jpg"] and one.testzip() is None
    table = pq.read_table(Path(all_covered.out) / "a.parquet")
    assert table["path"].to_pylist() == ["row 0", "row 1"] and table.column_names == ["path", "image"]


def test_what_is_not_covered_is_named(run: fer.Run, all_covered: Redaction) -> None:
    frames = run.images(where="time_ms is not null").num_rows
    assert all_covered.not_copied == {"frames of videos": frames, "undecodable": 2, "no file can have their name": 1} and frames
    assert all_covered.other_files == {".txt": 1}
    assert all_covered.without_face == run.images(where="status = 'no_face' and time_ms is null").num_rows > 0
    assert {one["path"] for one in all_covered.first_not_copied} >= {"00/broken/empty.jpg", "a.avi"}


def test_a_run_that_is_stopped_goes_on_and_a_finished_one_does_nothing(
    run: fer.Run, all_covered: Redaction, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(all_covered.out, out)
    record = json.loads((out / "redaction.json").read_text())
    (out / "redaction.json").write_text(json.dumps(record | {"result": None}))
    for name in ("_redacted/000002.parquet", "_redacted/000005.parquet", "00/2026/01/hopper-320.jpg", "deflated.zip"):
        (out / name).unlink()
    for shard in range(run.record.shards):  # as if no container had been written
        (out / f"_redacted/{shard:06d}.parquet").unlink(missing_ok=True)
    assert redacted(run, out).model_copy(update={"out": all_covered.out}) == all_covered
    assert {name: picture.tobytes() for name, picture in pictures(str(out))} == {
        name: picture.tobytes() for name, picture in pictures(all_covered.out)
    }
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert redacted(run, out).covered == all_covered.covered
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.fixture
def few(hopper: Pixels, tmp_path: Path, local_ray: None) -> fer.Run:
    """Three photos: one with a thumbnail and a place in its metadata, one with two faces, and one more."""
    folder, exif, thumbnail = tmp_path / "few", Image.Exif(), io.BytesIO()
    folder.mkdir()
    picture = Image.fromarray(hopper[:, :, ::-1])
    picture.resize((80, 100)).save(thumbnail, "JPEG")
    exif[0x010E] = "Grace Hopper"
    exif.get_ifd(0x8825)[1] = "N"
    picture.save(folder / "a.jpg", exif=exif.tobytes() + thumbnail.getvalue(), comment=thumbnail.getvalue())
    cv2.imwrite(str(folder / "b.png"), np.hstack([hopper, hopper]))
    picture.save(folder / "c.jpg")
    return fer.label(folder, tmp_path / "few-run", detector="mtcnn")


def test_nothing_but_the_picture_is_copied(few: fer.Run, tmp_path: Path) -> None:
    assert b"Hopper" in (Path(str(few.source)) / "a.jpg").read_bytes()
    redacted(few, tmp_path / "out")
    copy = (tmp_path / "out/a.jpg").read_bytes()
    assert copy.count(b"\xff\xd8\xff") == 1 and b"Exif" not in copy and b"Hopper" not in copy
    assert not Image.open(io.BytesIO(copy)).getexif()


def test_a_condition_chooses_the_faces(few: fer.Run, tmp_path: Path) -> None:
    found = redacted(few, tmp_path / "out", where="face_id = 0")
    assert (found.copies, found.covered, found.visible) == (3, 3, 1)
    with pytest.raises(UserError, match="was begun with another where"):
        redacted(few, tmp_path / "out")
    with pytest.raises(UserError, match="cannot be used"):
        redacted(few, tmp_path / "other", where="mood = 1")
    assert not (tmp_path / "other").exists()


def test_changed_and_erased_pictures_are_not_copied(few: fer.Run, tmp_path: Path) -> None:
    table, folder = str(tmp_path / "table"), Path(str(few.source))
    publish.run(PublishConfig(run=few.url, table=table))
    upkeep.forget(ForgetConfig(table=table, uri=(str(folder / "b.png"),)))
    stat = (folder / "c.jpg").stat()
    (folder / "c.jpg").write_bytes((folder / "a.jpg").read_bytes())
    os.utime(folder / "c.jpg", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # its etag says that it is as it was
    found = redacted(few, tmp_path / "out", table=table)
    assert found.copies == 1 and found.not_copied == {"erased from the table": 1, "changed after they were labelled": 1}
    assert sorted(path.name for path in (tmp_path / "out").glob("*.*g")) == ["a.jpg"]
    upkeep.forget(ForgetConfig(table=table, uri=(str(folder / "a.jpg"),)))
    with pytest.raises(UserError, match=r"images were erased from the table: delete it and begin again"):
        redacted(few, tmp_path / "out", table=table)


def test_bad_input_is_one_sentence_and_writes_nothing(few: fer.Run, tmp_path: Path) -> None:
    folder, full, none = Path(str(few.source)), tmp_path / "full", tmp_path / "none"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    config = RedactConfig(run=few.url, source=str(folder), out=str(tmp_path / "out"))
    for option, value, said in (
        ("run", none, "There is no finished labelling run"),
        ("out", folder / "copies", "choose another folder for the copies"),
        ("out", tmp_path, "choose another folder for the copies"),
        ("out", full, "is not empty and holds no redaction.json"),
        ("table", none, "There is neither a labelling run nor a published table"),
        ("table", few.url, "There is no table in"),
        ("source", full, "is of '.*few', not of '.*full': name that by --source"),
    ):
        with pytest.raises(UserError, match=said):
            redact.run(config.model_copy(update={option: str(value)}))
    assert sorted(path.name for path in folder.iterdir()) == ["a.jpg", "b.png", "c.jpg"]
    assert [path.name for path in full.iterdir()] == ["mine.txt"] and not (tmp_path / "out").exists()


def test_a_disk_that_fails_is_no_fault_of_the_pictures(few: fer.Run, tmp_path: Path) -> None:
    """A file stands where the folder of the parts should be: the job ends, and what it did not write is written later."""
    out = tmp_path / "out"
    out.mkdir()
    redacted(few, out)
    record = json.loads((out / "redaction.json").read_text())
    (out / "redaction.json").write_text(json.dumps(record | {"result": None}))
    shutil.rmtree(out / "_redacted")
    (out / "_redacted").write_text("")
    with pytest.raises(OSError, match="File exists"):
        redacted(few, out)
    (out / "_redacted").unlink()
    assert redacted(few, out).copies == 3


def test_keys_that_differ_in_empty_parts_have_copies_of_their_own_and_no_name_leads_out() -> None:
    keys = ("a/b.jpg", "a//b.jpg", "/a/b.jpg", "a/b.jpg.redacted.jpg", "a/b.webp", "a/b.webp.redacted.jpg")
    names = [name_of_copy("s3://bucket", f"s3://bucket/{key}", ".jpg") for key in keys]
    assert names[:3] == ["a/b.jpg", "a/_empty_/b.jpg", "_empty_/a/b.jpg"] and len(set(names)) == len(keys)
    assert name_of_copy("/photos", "/photos/../photos/x.jpg", ".jpg") == "photos/x.jpg"
    assert name_of_copy("/photos/x.jpg", "/photos/x.jpg", ".jpg") == "x.jpg"


def test_a_mosaic_covers_more_than_the_box_and_leaves_few_colours() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    covered = mosaicked(noise, [(100, 50, 60, 80), (-20, 150, 40, 100), (400, 400, 5, 5), (5, 5, 1, 1)])
    more_x, more_y = (BOX_SCALE - 1) / 2 * 60, (BOX_SCALE - 1) / 2 * 80
    inside = np.s_[int(50 - more_y) : int(130 + more_y), int(100 - more_x) : int(160 + more_x)]
    assert len(np.unique(covered[inside].reshape(-1, 3), axis=0)) <= 36
    assert (covered[:30, 20:] == noise[:30, 20:]).all() and (covered[:, 180:] == noise[:, 180:]).all()
    assert not (covered[150:, :20] == noise[150:, :20]).all()


def test_a_mosaic_in_a_mosaic_shows_nothing_and_small_faces_are_covered() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    nested = mosaicked(noise, [(50, 50, 200, 200), (120, 120, 30, 30)])
    assert len(np.unique(nested[60:240, 60:240].reshape(-1, 3), axis=0)) <= 2 * 36
    one, other = nested[125:145, 125:145].astype(int), noise[125:145, 125:145]
    assert one.std() < other.std() / 4
    for side in range(2, 12):
        covered = mosaicked(noise, [(100, 100, side, side)])[100 : 100 + side, 100 : 100 + side]
        assert len(np.unique(covered.reshape(-1, 3), axis=0)) <= max(1, side * side // 3)
