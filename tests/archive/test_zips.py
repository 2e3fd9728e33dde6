"""Zips as other programs write them. The comments say what commit 04c3eb5 did."""

import lzma
import struct
import zlib
from pathlib import Path

import inflate64
import numpy as np
import pytest
from backports import zstd

from fer_pipeline.archive.files import Selection
from fer_pipeline.archive.formats.zips import read_zip_member
from fer_pipeline.archive.listing import Listing
from fer_pipeline.archive.reader import RecordReader
from fer_pipeline.base.errors import RecordError

CONTENT = np.random.default_rng(0).integers(0, 4, 50_000, np.uint8).tobytes()


def deflate64(data: bytes) -> bytes:
    deflater = inflate64.Deflater()
    return bytes(deflater.deflate(data) + deflater.flush())


def zip_of(name: bytes, method: int, packed: bytes, content: bytes = CONTENT, flags: int = 0, crc: int | None = None) -> bytes:
    """Return a zip of one member; `crc` is what its local header says, by default the right one."""
    right = zlib.crc32(content)
    sizes = struct.pack("<III", right if crc is None else crc, len(packed), len(content))
    local = b"PK\3\4" + struct.pack("<HHHI", 20, flags, method, 0) + sizes + struct.pack("<HH", len(name), 0) + name + packed
    sizes = struct.pack("<III", right, len(packed), len(content))
    entry = b"PK\1\2" + struct.pack("<HHHHI", 20, 20, flags, method, 0) + sizes
    entry += struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name
    return local + entry + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local), 0)


PACKED = {9: deflate64(CONTENT), 93: zstd.compress(CONTENT), 95: lzma.compress(CONTENT), 0: CONTENT}


@pytest.mark.parametrize("method", PACKED)
def test_a_member_of_every_method_is_read_whole(method: int, tmp_path: Path) -> None:
    """04c3eb5 read stored, Deflate, bzip2 and LZMA; the Explorer of Windows writes Deflate64 above 2 GB."""
    (tmp_path / "a.zip").write_bytes(zip_of(b"a.jpg", method, PACKED[method]))
    (record,), reader = Listing(str(tmp_path)), RecordReader()
    assert reader.read(record) == CONTENT
    reader.close()


@pytest.mark.parametrize("method", [9, 93, 95])
def test_a_member_that_holds_more_than_it_says_is_read_no_further(method: int) -> None:
    bomb = bytes(50_000_000)
    packed = {9: deflate64, 93: zstd.compress, 95: lzma.compress}[method](bomb)
    data = zip_of(b"a.jpg", method, packed, content=bytes(1000), crc=zlib.crc32(bytes(1001)))
    assert len(read_zip_member(lambda offset, size: data[offset : offset + size], 0, len(packed), 1000)) == 1001


@pytest.mark.parametrize("method", [9, 93, 95])
def test_a_damaged_member_is_an_error_of_its_row(method: int, tmp_path: Path) -> None:
    packed = bytearray(PACKED[method])
    packed[len(packed) // 2 :] = b"\xff" * (len(packed) - len(packed) // 2)
    (tmp_path / "a.zip").write_bytes(zip_of(b"a.jpg", method, bytes(packed)))
    (record,) = Listing(str(tmp_path))
    with pytest.raises(RecordError) as error:
        RecordReader().read(record)
    assert error.value.status == "unreadable"


def test_a_zip_that_promises_a_descriptor_and_has_none_is_read(tmp_path: Path) -> None:
    """04c3eb5 said that the member is damaged. The CRC of the zip's directory counts."""
    for crc in (None, 0):
        (tmp_path / "a.zip").write_bytes(zip_of(b"a.jpg", 0, CONTENT, flags=0x8, crc=crc))
        (record,) = Listing(str(tmp_path))
        assert RecordReader().read(record) == CONTENT
    damaged = zip_of(b"a.jpg", 0, CONTENT, flags=0x8, crc=0).replace(CONTENT, CONTENT[::-1])
    (tmp_path / "a.zip").write_bytes(damaged)
    (record,) = Listing(str(tmp_path))
    with pytest.raises(RecordError, match="CRC is wrong"):
        RecordReader().read(record)


def test_a_name_in_utf_8_without_the_flag_is_read_as_such(tmp_path: Path) -> None:
    """04c3eb5 read it in code page 437."""
    for number, (name, shown) in enumerate({"写真.jpg".encode(): "写真.jpg", "é.jpg".encode("cp437"): "é.jpg"}.items()):
        (tmp_path / "a.zip").write_bytes(zip_of(name, 0, CONTENT + bytes([number]), CONTENT + bytes([number])))
        (record,) = Listing(str(tmp_path))
        assert record.member == shown and RecordReader().read(record) == CONTENT + bytes([number])


def test_names_in_a_code_page_are_read_by_the_option_that_names_it(tmp_path: Path) -> None:
    names = {"写真.jpg".encode("cp932"): CONTENT, b"plain.jpg": CONTENT[1:]}
    for number, (name, content) in enumerate(names.items()):
        (tmp_path / f"{number}.zip").write_bytes(zip_of(name, 0, content, content))
    with_flag = zip_of("é.jpg".encode(), 0, CONTENT, CONTENT, flags=0x800)
    (tmp_path / "2.zip").write_bytes(with_flag.replace(b"PK\1\2\x14\0\x14\0\0\0", b"PK\1\2\x14\0\x14\0\0\x08"))
    found = list(Listing(str(tmp_path), Selection(zip_encoding="cp932")))
    assert [record.member for record in found] == ["写真.jpg", "plain.jpg", "é.jpg"] and not any(one.error for one in found)
    assert [RecordReader().read(record) for record in found] == [CONTENT, CONTENT[1:], CONTENT]


def test_a_name_that_is_not_in_the_code_page_is_a_row_that_says_so_and_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "1.zip").write_bytes(zip_of(b"\xff.jpg", 0, CONTENT))
    (tmp_path / "2.zip").write_bytes(zip_of(b"b.jpg", 0, CONTENT))
    first, second = Listing(str(tmp_path), Selection(zip_encoding="gbk"))
    with pytest.raises(RecordError, match="not in gbk: choose another --zip-encoding"):
        RecordReader().read(first)
    assert RecordReader().read(second) == CONTENT


def test_the_zip_of_the_field_has_japanese_names(shared: Path) -> None:
    """04c3eb5 had no way to say what they are written in."""
    found = Listing(str(shared / "data" / "field" / "sjis.zip"), Selection(zip_encoding="cp932"))
    assert [record.member for record in found] == ["写真.jpg"]


@pytest.mark.parametrize("name", ["defl64.zip", "desc_flag_no_desc.zip", "zstd93.zip", "xz95.zip"])
def test_the_photos_of_a_zip_of_the_field_are_read(name: str, shared: Path) -> None:
    records, reader = list(Listing(str(shared / "data" / "field" / name))), RecordReader()
    assert [record.member for record in records] == ["a.jpg", "x/b.png"]
    assert [reader.read(record)[:3] for record in records] == [b"\xff\xd8\xff", b"\x89PN"]
    reader.close()


@pytest.mark.parametrize("method", PACKED)
def test_a_photo_without_extension_is_found_whatever_its_method(method: int, tmp_path: Path) -> None:
    photo = b"\xff\xd8\xff" + CONTENT
    packed = {9: deflate64(photo), 93: zstd.compress(photo), 95: lzma.compress(photo), 0: photo}[method]
    (tmp_path / "a.zip").write_bytes(zip_of(b"photo", method, packed, photo))
    (record,) = Listing(str(tmp_path))
    assert RecordReader().read(record) == photo


def test_a_member_that_cannot_be_looked_at_is_skipped_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_of(b"secret", 0, CONTENT, CONTENT, flags=1))
    listing = Listing(str(tmp_path))
    assert list(listing) == [] and list(listing.skipped) == ["(none) (it cannot be read: the member is encrypted)"]
