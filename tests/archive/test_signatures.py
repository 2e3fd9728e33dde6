"""What a file is by its first bytes, and that nothing of a source vanishes: what gets no row is named with its reason."""

import io
import logging
import os
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_pipeline.archive import listing as listing_module
from fer_pipeline.archive.files import Selection
from fer_pipeline.archive.listing import Listing
from fer_pipeline.archive.reader import RecordReader
from fer_pipeline.archive.signatures import HEAD_BYTES, kind_of
from tests.archive.test_listing import tar_of

JPEG = cv2.imencode(".jpg", np.full((8, 8, 3), 99, np.uint8))[1].tobytes()
MP4 = b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(600)


def ftyp(major: bytes, *compatible: bytes) -> bytes:
    body = b"ftyp" + major + bytes(4) + b"".join(compatible)
    return (4 + len(body)).to_bytes(4, "big") + body + bytes(40)


HEADS: dict[str, list[bytes]] = {
    "JPEG image": [JPEG],
    "PNG image": [b"\x89PNG\r\n\x1a\n"],
    "GIF image": [b"GIF87a", b"GIF89a"],
    "BMP image": [b"BM" + bytes(12) + b"\x28\0\0\0"],
    "WebP image": [b"RIFF\0\0\0\0WEBPVP8 "],
    "TIFF image": [b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0"],
    "JPEG 2000 image": [b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"],
    "AVIF image": [ftyp(b"avif"), ftyp(b"avis"), ftyp(b"mif1", b"mif1", b"avif"), ftyp(b"miaf", b"avif"), ftyp(b"msf1", b"avis")],
    "HEIC image": [ftyp(brand) for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc")] + [ftyp(b"mif2", b"mif1", b"heic")],
    "HEIF image": [ftyp(b"mif1"), ftyp(b"avci", b"mif1")],
    "JPEG XL image": [b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"],
    "RAW photo": [ftyp(b"crx "), b"FUJIFILMCCD-RAW 0201", b"IIRO", b"IIU\0", b"II*\0\x10\0\0\0CR\2\0"],
    "Photoshop document": [b"8BPS\0\1"],
    "SVG drawing": [b"<svg>", b"\xef\xbb\xbf<?xml version='1.0'?><svg>", b"<!-- made by hand -->\n<SVG>"],
    "PDF document": [b"%PDF-1.4"],
    "MP4 or QuickTime file": [ftyp(b"isom"), ftyp(b"qt  "), ftyp(b"M4V "), ftyp(b"3gp4"), b"\0\0\1\0moov", b"\0\0\0\x08wide"],
    "Matroska file": [b"\x1a\x45\xdf\xa3"],
    "AVI file": [b"RIFF\0\0\0\0AVI LIST"],
    "ASF file": [b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"],
    "Flash file": [b"FLV\1\5"],
    "Ogg file": [b"OggS\0\2"],
    "MPEG transport stream": [b"G" + bytes(187) + b"G" + bytes(187) + b"G", bytes(4) + (b"G" + bytes(191)) * 3],
    "MPEG program stream": [b"\0\0\1\xba"],
    "zip": [b"PK\3\4", b"PK\5\6"],
    "tar": [bytes(257) + b"ustar\0"],
    "gzip file": [b"\x1f\x8b\x08"],
    "bzip2 file": [b"BZh9"],
    "xz file": [b"\xfd7zXZ\0"],
    "zstd file": [b"\x28\xb5\x2f\xfd"],
    "7z archive": [b"7z\xbc\xaf\x27\x1c"],
    "RAR archive": [b"Rar!\x1a\x07\1\0"],
    "Parquet file": [b"PAR1"],
    "Arrow file": [b"ARROW1\0\0"],
}


@pytest.mark.parametrize("name", HEADS)
def test_a_kind_is_told_by_its_first_bytes(name: str) -> None:
    for head in HEADS[name]:
        found = kind_of(head[:HEAD_BYTES])
        assert found and found.name == name


@pytest.mark.parametrize(
    "head", [b"", b"B", b"BMW is a car, and no picture", b"GGG", b"hello", b"<html>", bytes(512), b"RIFF\0\0\0\0ACON"]
)
def test_what_is_none_of_them_is_unknown(head: bytes) -> None:
    assert kind_of(head) is None


def test_what_gets_no_record_is_counted_by_extension_and_reason(tmp_path: Path) -> None:
    tar_of(
        tmp_path / "a.tar", {"1.jpg": JPEG, "clip.mp4": MP4, "unnamed": MP4, "in.zip": b"PK\3\4", "b.txt": b"", "._1.jpg": b"x"}
    )
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("2.jpg", JPEG)
        archive.writestr("clip.mkv", b"\x1a\x45\xdf\xa3")
        archive.writestr("more.tar.gz", b"\x1f\x8b\x08")
    for name, data in {".DS_Store": b"x", "c.bz2": b"BZh9", "d.7z": b"7z\xbc\xaf\x27\x1c", "e.wav": b"", "f": b""}.items():
        (tmp_path / name).write_bytes(data)
    for folder in ("@eaDir", "x/.thumbnails"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.jpg").write_bytes(JPEG)
    listing = Listing(str(tmp_path))
    assert [record.member for record in listing] == ["1.jpg", "2.jpg"]
    assert dict(listing.skipped) == {
        ".mp4 (video)": 1,
        "(none) (video)": 1,
        ".mkv (video)": 1,
        ".zip (zip in a container: unpack it)": 1,
        ".gz (gzip file in a container: unpack it)": 1,
        ".jpg (metadata of macOS)": 1,
        ".txt": 1,
        ".DS_Store": 1,
        ".bz2 (bzip2 file: unpack it)": 1,
        ".7z (7z archive: unpack it)": 1,
        ".wav": 1,
        "(none)": 1,
        ".jpg (copy in @eaDir)": 1,
        ".jpg (copy in .thumbnails)": 1,
    }


def test_a_container_without_extension_is_opened_and_read(tmp_path: Path) -> None:
    tar_of(tmp_path / "photos", {"1.jpg": JPEG})
    with zipfile.ZipFile(tmp_path / "photos.cbz", "w") as archive:
        archive.writestr("2.jpg", JPEG)
    records, reader = list(Listing(str(tmp_path))), RecordReader()
    assert [record.member for record in records] == ["1.jpg", "2.jpg"]
    assert [reader.read(record) for record in records] == [JPEG, JPEG]
    reader.close()
    chosen = list(Listing(str(tmp_path), Selection(include=("*.jpg",))))
    assert [record.member for record in chosen] == ["1.jpg", "2.jpg"], "the globs are for members, not for their container"


def test_an_image_without_extension_is_chosen_by_globs(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(JPEG)
    (tmp_path / "photo.xyz").write_bytes(JPEG)
    listing = Listing(str(tmp_path), Selection(include=("*.xyz",)))
    assert [Path(record.uri).name for record in listing] == ["photo.xyz"] and dict(listing.skipped) == {"(filtered)": 1}


def test_a_source_of_which_most_is_skipped_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (tmp_path / "b.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(2_000_000))
    listing = Listing(str(tmp_path))
    assert len(list(listing)) == 1
    listing.log_skipped()
    assert "Skipped: 1 .7z (7z archive: unpack it)" in caplog.text and "100 % of the bytes" in caplog.text


def test_skipped_members_weigh_against_their_container(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tar_of(tmp_path / "a.tar", {"1.jpg": JPEG, "clip.mp4": MP4 * 4000})
    listing = Listing(str(tmp_path))
    assert len(list(listing)) == 1 and listing.bytes_skipped == len(MP4) * 4000
    listing.log_skipped()
    assert "of the bytes of" in caplog.text


def test_names_of_a_hostile_source_do_not_fill_the_record_of_a_run(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in range(1000):
            tar.addfile(tarfile.TarInfo(f"a.x{number}"))
        tar.addfile(tarfile.TarInfo(f"a.{'y' * 90}"))
    (tmp_path / "a.tar").write_bytes(out.getvalue())
    listing = Listing(str(tmp_path))
    assert list(listing) == [] and len(listing.skipped) <= 201 and listing.skipped["(other)"] > 700


def test_copies_that_storage_and_programs_keep_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    """04c3eb5 labelled them again, so people were counted two to four times."""
    for folder in ("@eaDir/a.jpg", "#recycle", "x/__MACOSX", ".picasaoriginals", "Previews.lrdata/7", "own"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.jpg").write_bytes(JPEG)
    with zipfile.ZipFile(tmp_path / "own" / "b.zip", "w") as archive:
        archive.writestr("@eaDir/2.jpg", JPEG)
        archive.writestr("2.jpg", JPEG)
    listing = Listing(str(tmp_path))
    assert [(Path(record.uri).name, record.member) for record in listing] == [("1.jpg", None), ("b.zip", "2.jpg")]
    assert sum(listing.skipped.values()) == 6 and listing.skipped[".jpg (copy in @eaDir)"] == 2
    assert len(list(Listing(str(tmp_path), Selection(include=("*@eaDir*",))))) == 2
    assert len(list(Listing(str(tmp_path / "@eaDir")))) == 1, "a source is what its user names"


def test_a_container_without_extension_whose_name_is_no_text_is_one_row(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", {"1.jpg": JPEG})
    (tmp_path / "a.tar").rename(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff"))
    (record,) = Listing(str(tmp_path))
    assert record.member is None and record.error and "UTF-8" in record.error


def test_a_file_that_cannot_be_looked_at_is_a_row_that_keeps_what_it_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a container: a record with an error and an etag keeps the rows of its members in a table."""
    tar_of(tmp_path / "photos", {"1.jpg": JPEG})

    def fail(uri: str, etag: str | None) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(listing_module, "kind_at", fail)
    (record,) = Listing(str(tmp_path))
    assert record.member is None and record.etag and "cannot be read" in str(record.error)
