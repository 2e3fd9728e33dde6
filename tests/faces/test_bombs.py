"""Bombs: small files that decode to gigabytes. Each test measures peak memory in a separate process."""

import io
import socket
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from fer_pipeline.faces.decode import decode

CODE = """
import resource, sys
from fer_pipeline.base.errors import RecordError
from fer_pipeline.archive.listing import Listing
from fer_pipeline.faces.decode import decode
from fer_pipeline.archive.fetch import fetch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with fetch(list(Listing(sys.argv[1])), 2**28) as fetched:
    for data in fetched:
        try:
            decode(data, 10**8, 640)
            print("ok")
        except RecordError as error:
            print(error.status)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def decode_all(source: Path) -> tuple[list[str], int]:
    """Return the status of each image and the growth of the process's memory in MB."""
    out = subprocess.run([sys.executable, "-c", CODE, str(source)], capture_output=True, text=True, check=True)
    *statuses, grown = out.stdout.split()
    return statuses, int(grown)


def png(width: int, height: int) -> bytes:
    """Return a valid black PNG with one bit per pixel: a small file for any number of pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    compressor, rows = zlib.compressobj(9), io.BytesIO()
    row = bytes(1 + -(-width // 8)) * 1000
    for _ in range(height // 1000):
        rows.write(compressor.compress(row))
    rows.write(compressor.flush())
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows.getvalue()) + chunk(b"IEND", b"")


def test_images_above_the_limit_are_never_allocated(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(60_000, 60_000))  # 10 GB as pixels, half a megabyte as a file
    (tmp_path / "bomb.bmp").write_bytes(
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 1, 1, 0, 0)
    )
    statuses, grown_mb = decode_all(tmp_path)
    assert statuses == ["too_large", "too_large"] and grown_mb < 100


def test_a_zip_member_that_lies_about_its_size_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.jpg", bytes(2**30))
    data = (tmp_path / "bomb.zip").read_bytes()
    assert len(data) < 2**21
    (tmp_path / "bomb.zip").write_bytes(data.replace(struct.pack("<I", 2**30), struct.pack("<I", 1000)))
    statuses, grown_mb = decode_all(tmp_path)
    assert statuses == ["unreadable"] and grown_mb < 100


def test_a_zip_member_above_the_limit_is_not_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.jpg", bytes(2**30))
    statuses, grown_mb = decode_all(tmp_path)
    assert statuses == ["too_large"] and grown_mb < 100


def test_the_oddities_stay_within_bounds(shared: Path) -> None:
    statuses, grown_mb = decode_all(shared / "data" / "oddities")
    assert len(statuses) == 26 and grown_mb < 500


@pytest.mark.parametrize("side", [4000])
def test_an_image_within_the_limit_costs_a_few_times_its_pixels(tmp_path: Path, side: int) -> None:
    (tmp_path / "large.png").write_bytes(png(side, side))
    statuses, grown_mb = decode_all(tmp_path)
    assert statuses == ["ok"] and grown_mb < 4 * 3 * side * side / 2**20


HOSTILE = "<script>alert(1)</script>\n\x1b[2J|[x](javascript:alert(1))" + "A" * 60_000


@pytest.mark.parametrize("codec", ["JPEG", "PNG", "WEBP"])
def test_what_an_image_says_of_itself_is_not_read(codec: str, tmp_path: Path) -> None:
    """EXIF, ICC profiles and comments do not reach a row and do not stop decoding."""
    exif = Image.Exif()
    for tag in (270, 271, 305, 315, 37510):  # description, maker, software, artist, comment
        exif[tag] = HOSTILE[:9_000]
    exif[274] = 6
    out = io.BytesIO()
    Image.new("RGB", (64, 32)).save(out, codec, exif=exif, icc_profile=HOSTILE.encode() * 3)
    (tmp_path / f"a.{codec.lower()}").write_bytes(out.getvalue())
    photo = decode(out.getvalue(), 10**8)
    assert photo.pixels.shape[:2] == (64, 32)  # turned upright
    assert decode_all(tmp_path)[0] == ["ok"]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.svg"])
def test_a_drawing_that_names_other_files_is_no_image(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("a connection is opened"))
    secret = tmp_path.parent / "secret.txt"
    secret.write_text("sentinel")
    entity = f'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file://{secret}">]>'
    link = '<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:9/x.png"/><text>&x;</text></svg>'
    (tmp_path / name).write_text(entity + link)
    assert decode_all(tmp_path)[0] == ["unsupported"]
