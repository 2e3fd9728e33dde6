import cv2
import numpy as np
import pyarrow as pa
import pytest

from fer_pipeline.faces import phash
from fer_pipeline.faces.phash import mirrored, packed_hashes, perceptual_hash
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.labelling.copies import COPIES, copies_among


def row(path: str, pixels: Pixels, digest: str | None = None, time_ms: int | None = None) -> dict[str, object]:
    height, width = pixels.shape[:2]
    facts = {
        "path": path,
        "uri": f"/{path}",
        "member": None,
        "width": width,
        "height": height,
        "size_bytes": 1,
        "time_ms": time_ms,
    }
    return facts | {"content_sha256": digest or path, "phash": perceptual_hash(pixels).hex()}


def images(rows: list[dict[str, object]]) -> pa.Table:
    kinds = dict.fromkeys(("path", "uri", "member"), pa.string()) | {
        "width": pa.int32(),
        "height": pa.int32(),
        "size_bytes": pa.int64(),
        "time_ms": pa.int64(),
    }
    return pa.Table.from_pylist(rows, schema=pa.schema(kinds | {"content_sha256": pa.string(), "phash": pa.string()}))


@pytest.fixture
def other() -> Pixels:
    return np.asarray(cv2.resize(np.random.default_rng(1).integers(0, 255, (9, 12, 3), np.uint8), (640, 480)), np.uint8)


def test_copies_are_grouped_and_named(hopper: Pixels, other: Pixels) -> None:
    half = np.asarray(cv2.resize(hopper, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8)
    jpeg = cv2.imencode(".jpg", hopper, [cv2.IMWRITE_JPEG_QUALITY, 30])[1]
    rows = [row("a.jpg", hopper), row("b.jpg", hopper, "a.jpg"), row("c.jpg", half)]
    rows += [row("d.jpg", np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), np.uint8)), row("e.jpg", hopper[:, ::-1])]
    rows += [row("f.jpg", other), row("g.png", other, "f.jpg"), row("h.jpg", other[::-1])]
    found = copies_among(images(rows[::-1])).to_pylist()
    assert [(one["group"], one["path"], one["kind"], one["like"]) for one in found] == [
        (0, "a.jpg", "original", "a.jpg"),
        (0, "b.jpg", "exact", "a.jpg"),
        (0, "c.jpg", "resized", "a.jpg"),
        (0, "d.jpg", "same size", "a.jpg"),
        (0, "e.jpg", "mirrored", "a.jpg"),
        (1, "f.jpg", "original", "f.jpg"),
        (1, "g.png", "exact", "f.jpg"),
    ]


def test_frames_pictures_without_contrast_and_unread_ones_are_no_copies(hopper: Pixels) -> None:
    grey = np.full((60, 80, 3), 128, np.uint8)
    rows = [row("a.mp4", hopper, time_ms=0), row("b.mp4", hopper, time_ms=1), row("c.png", grey), row("d.png", grey // 2)]
    rows += [row("e.jpg", hopper) | {"content_sha256": None, "phash": None}, row("f.jpg", hopper) | {"phash": None}]
    assert copies_among(images(rows)).equals(COPIES.empty_table())
    assert copies_among(images([])).equals(COPIES.empty_table())


def test_many_images_that_are_alike_are_one_group(hopper: Pixels) -> None:
    known = row("", hopper)
    rows = [known | {"path": f"{number:05d}.jpg", "uri": f"/{number}", "content_sha256": str(number)} for number in range(3000)]
    found = copies_among(images(rows))
    assert len(found) == 3000 and set(found["group"].to_pylist()) == {0}


def test_a_band_that_too_many_hashes_share_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(phash, "MAX_BAND_MATCHES", 40)
    hashes = np.random.default_rng(0).integers(0, 256, (50, 32), np.uint8)
    hashes[:, :3] = 7  # all agree in the first band, and in nothing else
    hashes[1] = hashes[0]
    hashes[1, 31] ^= 1  # but these two in the other bands, too
    rows: list[dict[str, object]] = [
        {"path": f"{number:02d}.jpg", "uri": "", "content_sha256": str(number), "phash": one.tobytes().hex()}
        for number, one in enumerate(hashes)
    ]
    assert copies_among(images(rows))["path"].to_pylist() == ["00.jpg", "01.jpg"]
    assert "looks like more than 40 others" in caplog.text


def test_a_burst_is_one_group_by_its_neighbours() -> None:
    bits, rows = np.random.default_rng(0).integers(0, 2, 256, np.uint8), list[dict[str, object]]()
    for number in range(60):
        bits[number * 4 : number * 4 + 4] ^= 1  # the first and the last differ in far more bits than neighbours do
        rows.append(
            {"path": f"{number:02d}.jpg", "uri": "", "content_sha256": str(number), "phash": np.packbits(bits).tobytes().hex()}
        )
    found = copies_among(images(rows))
    assert len(found) == 60 and found["kind"].to_pylist().count("near") > 40 and found["kind"][0].as_py() == "original"


@pytest.mark.parametrize("phash", ["zz", "0" * 128, "", "f" * 63 + "g"])
def test_what_is_no_hash_is_no_copy(phash: str, hopper: Pixels) -> None:
    rows = [row("a.jpg", hopper) | {"phash": phash}, row("b.jpg", hopper) | {"phash": phash}]
    assert len(copies_among(images(rows))) == 0


def test_the_hash_of_a_mirrored_picture_is_known_without_it(hopper: Pixels, other: Pixels) -> None:
    for pixels in (hopper, other):
        ours, theirs = (packed_hashes([perceptual_hash(one)]) for one in (pixels, np.ascontiguousarray(pixels[:, ::-1])))
        assert np.bitwise_count(mirrored(ours) ^ theirs).sum() <= 12
