"""Containers with false claims: each ends only its own listing, with one error row, within limits of memory and time."""

import io
import socket
import struct
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import av
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_pipeline.archive import listing
from fer_pipeline.archive.files import Selection
from fer_pipeline.archive.formats.videos import Video
from fer_pipeline.archive.listing import Listing
from fer_pipeline.archive.record import Record
from fer_pipeline.base import storage
from fer_pipeline.base.errors import RecordError
from fer_pipeline.base.isolated import IsolatedProcess
from fer_pipeline.base.memory import MEMORY_BYTES
from fer_pipeline.datasets.layouts import open_layout
from fer_pipeline.datasets.layouts.layout import Excluded
from fer_pipeline.models.label_space import FER7


def listed(source: Path, max_members: int = 10**6) -> list[Record]:
    return list(Listing(str(source), Selection(fps=1.0, timeout_s=20, max_members=max_members)))


def tar_with(path: Path, name: str, size: int) -> None:
    """Write a tar whose only header claims a size."""
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    data = bytearray(path.read_bytes())
    encoded = struct.pack(">q", size).rjust(12, b"\xff" if size < 0 else b"\0")
    data[124:136] = bytes([0xFF if size < 0 else 0x80]) + encoded[1:]
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)


@pytest.mark.parametrize("size", [-512, 2**63 - 1])
def test_a_tar_member_of_impossible_size_ends_its_listing(size: int, tmp_path: Path) -> None:
    tar_with(tmp_path / "a.tar", "a.jpg", size)
    *_, broken = listed(tmp_path)
    assert broken.error and "the container cannot be read" in broken.error and "longer than" not in broken.error


def test_a_member_with_an_impossible_name_ends_its_listing(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("fine.jpg", b"x")
        archive.writestr("x" * 5000 + ".jpg", b"x")
    fine, broken = listed(tmp_path)
    assert fine.member == "fine.jpg" and broken.error and "impossible name" in broken.error


def test_a_container_of_too_many_members_is_not_read_on(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(30):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    records = listed(tmp_path, max_members=20)
    assert len(records) == 21 and records[-1].error and "--max-members" in records[-1].error


def test_rows_that_the_bytes_cannot_hold_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.nulls(10**6, pa.binary())}), tmp_path / "a.parquet")
    (broken,) = listed(tmp_path)
    assert broken.error and "claims 1000000 rows" in broken.error


def test_every_hostile_file_is_listed_in_seconds_and_in_sane_memory(shared: Path) -> None:
    for kind in ("containers", "parquet", "videos"):
        records = listed(shared / "data" / "hostile" / kind)
        assert records and not [record for record in records if "longer than" in (record.error or "")], kind
        places = [number for record in records for number in (record.offset, record.size_bytes) if number is not None]
        assert all(0 <= number < 2**62 for number in places)


def test_a_call_that_takes_too_much_memory_or_time_says_so_and_the_next_one_works() -> None:
    process = IsolatedProcess()
    try:
        with pytest.raises(ValueError, match="the record needs more memory than the limit"):
            list(process.call(f"{__name__}:too_much", 2 * MEMORY_BYTES, timeout_s=30))
        with pytest.raises(ValueError, match="longer than 1 s"):
            list(process.call(f"{__name__}:too_long", timeout_s=1))
        with pytest.raises(ValueError, match="kills the process"):
            list(process.call(f"{__name__}:deadly", timeout_s=30))
        assert list(process.call(f"{__name__}:many", 1200, timeout_s=30)) == list(range(1200))
    finally:
        process.close()


def too_much(size: int):  # type: ignore[no-untyped-def]
    yield len(bytearray(size))


def too_long():  # type: ignore[no-untyped-def]
    time.sleep(30)
    yield 1


def deadly():  # type: ignore[no-untyped-def]
    import os

    os.abort()
    yield 1


def many(count: int):  # type: ignore[no-untyped-def]
    yield from range(count)


def test_code_in_the_folder_of_an_archive_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "IsolatedProcess", IsolatedProcess)  # a new process, which starts in this folder
    (tmp_path / "av.py").write_text("open('ran', 'w')")
    (tmp_path / "json.py").write_text("open('ran', 'w')")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.jpg", b"x")
    monkeypatch.chdir(tmp_path)
    assert [record.member for record in listed(tmp_path)] == ["1.jpg"] and not (tmp_path / "ran").exists()


def test_a_process_that_was_killed_between_two_files_is_started_again() -> None:
    process = IsolatedProcess()
    try:
        assert list(process.call(f"{__name__}:many", 3, timeout_s=30)) == [0, 1, 2]
        assert process._child is not None
        process._child.kill()
        process._child.wait()
        assert list(process.call(f"{__name__}:many", 3, timeout_s=30)) == [0, 1, 2]
    finally:
        process.close()


def test_a_torn_index_is_made_anew(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.jpg", b"x")
    expected = listed(tmp_path)
    for index in (storage.cache_folder() / "indexes").glob("*.parquet"):
        index.write_bytes(b"")
    assert listed(tmp_path) == expected and expected[0].member == "1.jpg"


def test_a_webdataset_with_a_member_that_points_back_ends(tmp_path: Path) -> None:
    tar_with(tmp_path / "train.tar", "a.jpg", -512)
    layout = open_layout("webdataset", str(tmp_path), FER7)
    found = [item for part in layout.plan() for item in layout.read(part)]
    assert isinstance(found[-1], Excluded) and "impossible size" in found[-1].reason


SESSION = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:{port}/1.ts\n#EXT-X-ENDLIST\n"
CONCAT = "ffconcat version 1.0\nfile http://127.0.0.1:{port}/1.mp4\n"


@pytest.mark.parametrize("text", [SESSION, PLAYLIST, CONCAT])
@pytest.mark.parametrize("on_a_store", [False, True])
def test_a_video_that_is_a_playlist_or_a_session_opens_no_connection(
    text: str, on_a_store: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a handle, as on a store, FFmpeg detects the format by the content."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        path = tmp_path / "clip.mp4"
        path.write_text(text.format(port=server.getsockname()[1]))
        if on_a_store:
            by_path = av.open
            monkeypatch.setattr(av, "open", lambda path, **how: by_path(Path(path).open("rb"), **how))
        tried: list[str] = []
        monkeypatch.setattr(socket.socket, "connect", lambda *_: tried.append("connect"))
        before = len(psutil.Process().net_connections("inet"))
        video = Video(str(path))
        with pytest.raises(RecordError, match="not a video of a supported format"):
            video.moments_ms(1)
        assert len(psutil.Process().net_connections("inet")) == before and not tried
        video.close()
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()


def planted_index(path: Path, **changes: Any) -> None:
    """Change the rows of an index."""
    table = pq.read_table(path)
    rows = [row | changes for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


@pytest.mark.parametrize(
    "changes",
    [{"offset": -1}, {"offset": 2**62 + 1}, {"size_bytes": -5}, {"name": "a\0b"}, {"name": "x" * 5000}, {"name": ""}],
)
def test_an_index_of_the_impossible_is_the_error_of_its_container(
    changes: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.jpg", b"x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    listed(tmp_path)
    (index,) = (storage.cache_folder() / "indexes").glob("*.parquet")
    planted_index(index, **changes)
    (record,) = listed(tmp_path)
    assert record.member is None and record.error and ("impossible" in record.error)


def test_an_index_of_something_else_is_made_anew(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.jpg", b"x")
    expected = listed(tmp_path)
    (index,) = (storage.cache_folder() / "indexes").glob("*.parquet")
    table = pq.read_table(index)
    for other in (table.select(["name"]), pa.concat_tables([table] * 5000)):  # more members than the container has bytes
        pq.write_table(other, index)
        assert listed(tmp_path) == expected
