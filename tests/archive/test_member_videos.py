"""Videos in tars and zips have the frames of the same videos as plain files. Commit 04c3eb5 passed them by."""

import io
import random
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from backports import zstd

from fer_pipeline.archive import unpacked
from fer_pipeline.archive.fetch import fetch
from fer_pipeline.archive.files import File, Selection
from fer_pipeline.archive.formats.spec import Frame
from fer_pipeline.archive.formats.videos import Video
from fer_pipeline.archive.index import error_of, may_be_kept, write_index
from fer_pipeline.archive.listing import Listing
from fer_pipeline.archive.record import Record, split_into_shards
from fer_pipeline.base.errors import RecordError
from tests.archive.test_listing import tar_of
from tests.archive.test_zips import deflate64, zip_of

FPS, SECONDS = 10, 8
JPEG = b"\xff\xd8\xff" + bytes(100)


@pytest.fixture(scope="module", params=["mp4", "avi"])
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / f"a.{request.param}")


def write_video(path: Path) -> Path:
    """Write a video of noise that grows brighter: it does not compress."""
    codec, rng = {".mp4": "mp4v", ".avi": "MJPG"}[path.suffix], np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), FPS, (64, 48))
    for index in range(FPS * SECONDS):
        writer.write((rng.integers(0, 16, (48, 64, 3)) + 2 * index).astype(np.uint8))
    writer.release()
    return path


def pack_tar(mode: str) -> Callable[[Path, dict[str, bytes]], None]:
    return lambda path, files: tar_of(path, files, mode)


def pack_zst(path: Path, files: dict[str, bytes]) -> None:
    tar_of(path, files)
    half = len(data := path.read_bytes()) // 2
    path.write_bytes(zstd.compress(data[:half]) + zstd.compress(data[half:]))


def pack_zip(method: int) -> Callable[[Path, dict[str, bytes]], None]:
    def pack(path: Path, files: dict[str, bytes]) -> None:
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in files.items():
                archive.writestr(name, data)

    return pack


PACKERS = {
    "a.tar": pack_tar("w"), "a.tar.gz": pack_tar("w:gz"), "a.tar.bz2": pack_tar("w:bz2"), "a.tar.xz": pack_tar("w:xz"),
    "a.tar.zst": pack_zst, "stored.zip": pack_zip(zipfile.ZIP_STORED), "deflated.zip": pack_zip(zipfile.ZIP_DEFLATED),
    "bzip2.zip": pack_zip(zipfile.ZIP_BZIP2), "lzma.zip": pack_zip(zipfile.ZIP_LZMA),
}  # fmt: skip


def listed(source: Path, fps: float | None = 1.0) -> list[Record]:
    return list(Listing(str(source), Selection(fps=fps)))


def fetched(records: list[Record]) -> list[np.ndarray | bytes | str]:
    """Return the pixels of frames, the bytes of images, and the reasons of errors."""
    found = list[np.ndarray | bytes | str]()
    with fetch(records, 10**9) as results:
        for one in results:
            if isinstance(one, Frame):
                try:
                    found.append(one.source.at(one.time_ms))
                except RecordError as error:
                    found.append(error.reason)
            else:
                found.append(one.reason if isinstance(one, RecordError) else one)
    return found


@pytest.mark.parametrize("name", PACKERS)
def test_a_video_in_a_container_has_the_frames_of_the_plain_video(name: str, video: Path, tmp_path: Path) -> None:
    data = video.read_bytes()
    PACKERS[name](tmp_path / name, {"1.jpg": JPEG, f"x/{video.name}": data, "without": data, "2.jpg": JPEG[1:]})
    records = listed(tmp_path)
    moments = [1000 * second for second in range(SECONDS)]
    expected = [("1.jpg", None), *((f"x/{video.name}", one) for one in moments), *(("without", one) for one in moments)]
    assert [(record.member, record.time_ms) for record in records] == [*expected, ("2.jpg", None)]
    assert len(list(split_into_shards(records, 100, 1000))) == 1, "the bytes of a video are not those of a frame"
    plain = [Video(str(video)).at(moment) for moment in moments]
    first, *frames, last = fetched(records)
    assert (first, last) == (JPEG, JPEG[1:])
    assert all(np.array_equal(found, one) for found, one in zip(frames, [*plain, *plain], strict=True))
    backwards = fetched(records[1:9][::-1])
    assert all(np.array_equal(found, one) for found, one in zip(backwards, plain[::-1], strict=True))


@pytest.mark.parametrize("name", PACKERS)
def test_without_a_rate_videos_in_containers_are_skipped_and_named(name: str, video: Path, tmp_path: Path) -> None:
    PACKERS[name](tmp_path / name, {"1.jpg": JPEG, video.name: video.read_bytes()})
    listing = Listing(str(tmp_path))
    assert [record.member for record in listing] == ["1.jpg"] and listing.skipped == {f"{video.suffix} (video)": 1}


@pytest.mark.parametrize("name", PACKERS)
def test_what_is_no_video_is_one_row_that_says_so(name: str, video: Path, tmp_path: Path) -> None:
    PACKERS[name](tmp_path / name, {"1.jpg": JPEG, "a.mp4": b"no video" * 200, "b.mkv": b"", "2.jpg": JPEG})
    records = listed(tmp_path)
    assert [(record.member, record.time_ms) for record in records] == [
        ("1.jpg", None),
        ("a.mp4", 0),
        ("b.mkv", 0),
        ("2.jpg", None),
    ]
    assert [one if isinstance(one, str) else "" for one in fetched(records)][1:3] == [
        "the video cannot be read: the file is not a video of a supported format"
    ] * 2


def test_an_encrypted_video_and_one_of_an_unknown_method_are_rows_that_say_so(video: Path, tmp_path: Path) -> None:
    data = video.read_bytes()
    for number, (method, flags) in enumerate([(0, 1), (97, 0)]):
        (tmp_path / f"{number}.zip").write_bytes(zip_of(video.name.encode(), method, data, data, flags))
    reasons = fetched(listed(tmp_path))
    assert [str(one).partition(": ")[2] for one in reasons] == [
        "the member is encrypted",
        "the member's compression method 97 is not supported: pack it again with Deflate",
    ]


@pytest.mark.parametrize("pack", ["a.tar.gz", "a.tar.xz", "deflated.zip", "deflate64.zip"])
def test_damage_costs_a_video_the_frames_that_it_hits_and_one_with_a_wrong_crc_all(pack: str, tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), FPS, (320, 240))
    for _ in range(FPS * SECONDS):
        writer.write(rng.integers(0, 255, (240, 320, 3), np.uint8))
    writer.release()
    data = path.read_bytes()
    path.unlink()
    if pack == "deflate64.zip":
        (tmp_path / pack).write_bytes(zip_of(b"a.avi", 9, deflate64(data), data))
    else:
        PACKERS[pack](tmp_path / pack, {"a.avi": data})
    records, packed = listed(tmp_path / pack), bytearray((tmp_path / pack).read_bytes())
    packed[len(packed) // 2 : len(packed) // 2 + 50_000] = b"\xff" * 50_000
    (tmp_path / pack).write_bytes(packed)
    etag = str((tmp_path / pack).stat().st_mtime_ns)
    found = fetched([replace(record, etag=etag) for record in records])
    assert len(found) == SECONDS and any(isinstance(one, str) for one in found)
    assert isinstance(found[0], str if pack.endswith(".zip") else np.ndarray)


def test_a_bomb_is_unpacked_no_further_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "LIMIT_BYTES", 1000)
    sizes = []
    monkeypatch.setattr(unpacked, "_require_space", lambda descriptor: sizes.append(1))
    copy = unpacked.write_copy((bytes(unpacked.PIECE_BYTES) for _ in range(10**6)), unpacked.limit_of(100_000))
    assert copy.seek(0, io.SEEK_END) == 20_000_000 and len(sizes) == 20


FORMATS_OF = {"a.tar.gz": "tar", "deflated.zip": "zip"}


@pytest.mark.parametrize("name", FORMATS_OF)
def test_a_temporary_folder_without_room_is_a_row_that_names_it_and_no_index_keeps_it(
    name: str, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PACKERS[name](tmp_path / name, {video.name: video.read_bytes(), "1.jpg": JPEG})
    records = listed(tmp_path)
    index, path = tmp_path / "index", tmp_path / name
    facts = asdict(File(str(path), path.stat().st_size, str(path.stat().st_mtime_ns))), asdict(Selection(fps=1.0)), str(index)
    list(write_index(FORMATS_OF[name], *facts))
    assert may_be_kept(index)
    monkeypatch.setattr(unpacked, "KEPT_FREE_SHARE", 1.0)
    monkeypatch.setattr(unpacked, "KEPT_FREE_BYTES", 10**18)
    found = fetched(records)
    assert len(found) == SECONDS + 1 and all("Set TMPDIR to a larger disk" in str(one) for one in found[:SECONDS])
    assert (found[-1] == JPEG) == name.endswith(".zip"), "a photo in a zip needs no room"
    list(write_index(FORMATS_OF[name], *facts))
    assert not may_be_kept(index) and "no room to unpack it" in str(error_of(index))


def test_tars_with_two_videos_of_one_name_are_read(video: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for _ in range(2):
            tar.add(video, "same.avi")
    assert len(fetched(listed(tmp_path))) == 2 * SECONDS


@pytest.mark.parametrize("pack", ["a.tar", "a.tar.gz", "stored.zip", "deflated.zip"])
def test_no_video_takes_its_neighbours_with_it(pack: str, tmp_path: Path) -> None:
    """A codec that FFmpeg does not know, and damage of every sort that FFmpeg calls an error of the system."""
    sound = write_video(tmp_path / "a.mp4").read_bytes()
    strange = sound.replace(b"mp4v", b"zzzz")
    rng = random.Random(0)
    videos = {"strange.mp4": strange}
    for number in range(60):
        data = bytearray(sound)
        for _ in range(8):
            place = rng.randrange(len(data) - 8)
            data[place : place + 4] = rng.randbytes(4)
        videos[f"{number:02d}.mp4"] = bytes(data)
    (tmp_path / "source").mkdir()
    PACKERS[pack](tmp_path / "source" / pack, {"0.jpg": JPEG, **videos, "z.jpg": JPEG[1:]})
    listing = Listing(str(tmp_path / "source"), Selection(fps=1.0))
    records = list(listing)
    assert len({record.member for record in records}) + listing.skipped.total() == 2 + len(videos)
    assert all("no video stream" in key for key in listing.skipped) and listing.skipped.total() < 10
    assert fetched([records[0], records[-1]]) == [JPEG, JPEG[1:]]


@pytest.mark.parametrize("name", ["a.tar", "deflated.zip"])
def test_only_records_and_skipped_members_count_towards_the_limit_of_members(name: str, video: Path, tmp_path: Path) -> None:
    PACKERS[name](tmp_path / name, {f"{number}{video.suffix}": video.read_bytes() for number in range(3)})
    records = list(Listing(str(tmp_path), Selection(fps=1.0, max_members=3 * SECONDS - 1)))
    assert len(records) == 3 * SECONDS and "--max-members" in (records[-1].error or "")
    records = list(Listing(str(tmp_path), Selection(fps=1.0, max_members=3 * SECONDS)))
    assert len(records) == 3 * SECONDS and not any(record.error for record in records)
