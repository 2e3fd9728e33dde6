import io
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from fer_pipeline.base.errors import RecordError
from fer_pipeline.faces.decode import decode
from fer_pipeline.faces.exif import ORIENTATION
from fer_pipeline.faces.pixels import Pixels

LIMIT = 50_000_000


def encoded(pixels: Pixels, codec: str, orientation: int = 1) -> bytes:
    out, exif = io.BytesIO(), Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels[:, :, ::-1]).save(out, codec, quality=95, exif=exif)
    return out.getvalue()


def jpeg(pixels: Pixels, orientation: int = 1) -> bytes:
    return encoded(pixels, "JPEG", orientation)


def status_of(data: bytes, limit: int = LIMIT) -> str:
    with pytest.raises(RecordError) as error:
        decode(data, limit)
    return error.value.status


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("codec", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_exif_orientation_comes_out_upright(hopper: Pixels, orientation: int, codec: str) -> None:
    data = encoded(hopper, codec, orientation)
    photo = decode(data, LIMIT)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (photo.width, photo.height) == upright.size
    assert np.abs(photo.pixels[:, :, ::-1].astype(int) - np.asarray(upright).astype(int)).mean() < 2


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_reduced_and_knows_its_full_size(hopper: Pixels, orientation: int) -> None:
    large = np.asarray(cv2.resize(hopper, None, fx=4, fy=4), np.uint8)
    photo = decode(jpeg(large, orientation), LIMIT, enough_px=640)
    assert sorted((photo.width, photo.height)) == sorted(large.shape[:2])
    assert photo.reduction == pytest.approx(4, rel=0.01)
    assert decode(jpeg(large), LIMIT, enough_px=1281).reduction == 1


@pytest.mark.parametrize("extension", [".png", ".webp", ".bmp", ".tiff", ".jpg"])
def test_the_codec_goes_by_content(hopper: Pixels, extension: str) -> None:
    photo = decode(cv2.imencode(extension, hopper)[1].tobytes(), LIMIT)
    assert np.abs(photo.pixels.astype(int) - hopper.astype(int)).mean() < 4


def test_sixteen_bit_and_grey_become_eight_bit_colour(hopper: Pixels) -> None:
    grey = cv2.cvtColor(hopper, cv2.COLOR_BGR2GRAY)
    for pixels in (grey, grey.astype(np.uint16) * 257):
        photo = decode(cv2.imencode(".png", pixels)[1].tobytes(), LIMIT)
        assert photo.pixels.dtype == np.uint8
        assert np.abs(photo.pixels[:, :, 0].astype(int) - grey.astype(int)).max() <= 1


def test_damage_is_told_by_status(hopper: Pixels) -> None:
    whole = jpeg(hopper)
    assert status_of(b"") == "undecodable"
    assert status_of(b"<html>not an image</html>") == "undecodable"
    assert status_of(whole[: len(whole) // 3]) == "undecodable"
    assert status_of(whole[:200]) == "undecodable"
    assert status_of(b"\x00\x00\x00\x18ftypheic" + bytes(100)) == "undecodable"
    assert status_of(b"%PDF-1.7\n") == status_of(b"8BPS") == status_of(b"<svg/>") == "unsupported"


@pytest.mark.parametrize("codec", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "BMP", "GIF", "JPEG2000"])
def test_bytes_gone_wrong_give_pixels_or_a_status_and_nothing_else(hopper: Pixels, codec: str) -> None:
    out = io.BytesIO()
    Image.fromarray(hopper[:64, :64, ::-1]).save(out, codec)
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = np.frombuffer(out.getvalue(), np.uint8).copy()
        data[rng.integers(0, len(data), 12)] = rng.integers(0, 256, 12)
        try:
            assert decode(data.tobytes()[: rng.integers(1, len(data) + 1)], 10**6).pixels.ndim == 3
        except RecordError as error:
            assert error.status in ("undecodable", "too_large", "unsupported")


def test_a_bomb_is_refused_by_its_header_without_being_decoded() -> None:
    data = cv2.imencode(".png", np.zeros((8000, 8000), np.uint8))[1].tobytes()
    tracemalloc.start()
    assert status_of(data, limit=10_000_000) == "too_large"
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


ODDITIES = {
    "broken.png": "undecodable",
    "truncated_image.png": "undecodable",
    "ultrahdr.jpg": "undecodable",  # the stored file is truncated
    "zero_width.gif": "undecodable",
    "png_decompression_dos.png": "undecodable",
    "decompression_bomb.gif": "too_large",
}


def test_oddities_have_the_right_status(shared: Path) -> None:
    found = {}
    for path in sorted((shared / "data" / "oddities").iterdir()):
        try:
            decode(path.read_bytes(), LIMIT)
        except RecordError as error:
            found[path.name] = error.status
    assert found == ODDITIES


def test_rotated_oddities_look_like_the_upright_one(shared: Path) -> None:
    folder = shared / "data" / "oddities"
    upright = decode((folder / "hopper.png").read_bytes(), LIMIT).pixels.astype(int)
    rotated = [path for path in folder.iterdir() if "orientation" in path.name]
    assert len(rotated) == 4
    for path in rotated:
        assert np.abs(decode(path.read_bytes(), LIMIT).pixels - upright).mean() < 12
