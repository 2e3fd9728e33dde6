import errno
import io
import os
import shutil
import tarfile
import threading
import warnings
import zipfile
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from fer_pipeline.archive import index
from fer_pipeline.archive.files import File, Selection
from fer_pipeline.archive.index import error_of, read_index, rescue_index, unkept_indexes, write_index
from fer_pipeline.archive.listing import Listing
from fer_pipeline.archive.reader import RecordReader, blocks
from fer_pipeline.archive.record import Record
from fer_pipeline.archive.walk import list_files
from fer_pipeline.base import storage
from fer_pipeline.base.errors import RecordError, UserError

PNG = b"\x89PNG\r\n\x1a\n and more"


def tar_of(path: Path, files: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def listed(source: Path) -> list[Record]:
    return list(Listing(str(source)))


def test_the_sample_archive_lists_all_its_images_in_a_fixed_order(archive: Path) -> None:
    listing = Listing(str(archive))
    records = list(listing)
    assert len(records) == 36
    assert records == listed(archive)
    assert dict(listing.skipped) == {".txt": 1}


def test_files_that_are_no_images_are_counted_and_unknown_ones_peeked_at(tmp_path: Path) -> None:
    for name, data in {
        "a.json": b"{}",
        "b.CSV": b"",
        ".DS_Store": b"x",
        "photo": PNG,
        "text.xyz": b"hello",
        "c.JPG": b"",
    }.items():
        (tmp_path / name).write_bytes(data)
    listing = Listing(str(tmp_path))
    assert [Path(record.uri).name for record in listing] == ["c.JPG", "photo"]
    assert dict(listing.skipped) == {".json": 1, ".csv": 1, ".DS_Store": 1, ".xyz": 1}


@pytest.mark.parametrize(
    ("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("compressed-all-the-same.tar", "w:xz")]
)
def test_members_of_a_tar_are_read_whole(tmp_path: Path, name: str, mode: str) -> None:
    tar_of(tmp_path / name, {"x/1.jpg": b"one", "x/2.jpg": b"two", "x/2.cls": b"3"}, mode)
    records, reader = listed(tmp_path), RecordReader()
    assert [record.member for record in records] == ["x/1.jpg", "x/2.jpg"]
    assert [reader.read(record) for record in reversed(records)] == [b"two", b"one"]
    reader.close()


def test_members_of_a_zip_are_read_whole(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dir/1.png", PNG * 100)
        archive.writestr("notes.txt", "no image")
    (record,) = listed(tmp_path)
    reader = RecordReader()
    assert reader.read(record) == PNG * 100
    reader.close()


def test_members_of_one_name_are_two_records_with_their_own_bytes(tmp_path: Path) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        warnings.simplefilter("ignore")  # zipfile warns of the second
        archive.writestr("1.jpg", b"first")
        archive.writestr("1.jpg", b"second")
    reader = RecordReader()
    assert [reader.read(record) for record in listed(tmp_path)] == [b"first", b"second"]
    reader.close()


def test_a_hard_link_in_a_tar_is_an_image_too(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"one")
    (tmp_path / "2.jpg").hardlink_to(tmp_path / "1.jpg")
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as tar:
        tar.add(tmp_path / "1.jpg", "1.jpg")
        tar.add(tmp_path / "2.jpg", "2.jpg")
    reader = RecordReader()
    assert [(record.member, reader.read(record)) for record in listed(tmp_path / "in")] == [("1.jpg", b"one"), ("2.jpg", b"one")]


def test_a_member_that_cannot_be_peeked_at_does_not_hide_the_others(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("0.jpg", "data.xyz", "1.jpg"):
            archive.writestr(name, b"hello" * 100)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    for start in (content.find(b"PK\x03\x04", 10) + 8, content.find(b"PK\x01\x02", content.find(b"PK\x01\x02") + 1) + 10):
        content[start : start + 2] = b"\x63\x00"  # a compression that nobody knows
    (tmp_path / "a.zip").write_bytes(content)
    assert [record.member for record in listed(tmp_path)] == ["0.jpg", "1.jpg"]


def test_what_is_no_regular_file_has_a_row_and_blocks_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "a::b.jpg").write_bytes(b"fine")
    records, reader = {Path(record.uri).name: record for record in listed(tmp_path)}, RecordReader()
    assert reader.read(records.pop("a::b.jpg")) == b"fine"
    assert "regular" in str(records["pipe.jpg"].error) and "cannot be found" in str(records["self.jpg"].error)


def test_an_empty_member_is_empty(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", {"1.jpg": b"", "2.jpg": b"two"})
    reader = RecordReader()
    assert [reader.read(record) for record in listed(tmp_path)] == [b"", b"two"]


def test_a_container_that_is_none_gets_a_row_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK but no zip")
    (tmp_path / "b.tar").write_bytes(b"no tar either")
    records = listed(tmp_path)
    assert [record.member for record in records] == [None, None]
    for record in records:
        with pytest.raises(RecordError, match="container cannot be read") as error:
            RecordReader().read(record)
        assert error.value.status == "unreadable"


def test_a_tar_that_breaks_off_gives_its_whole_members_and_one_row_for_the_rest(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", {f"{number}.jpg": b"x" * 3000 for number in range(4)})
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:6000])
    records, reader = listed(tmp_path), RecordReader()
    assert reader.read(records[0]) == b"x" * 3000
    for record in records[1:]:
        with pytest.raises(RecordError):
            reader.read(record)


def test_a_damaged_zip_member_is_unreadable_and_its_neighbour_is_not(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.jpg", b"A" * 500)
        archive.writestr("2.jpg", b"B" * 500)
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes().replace(b"A" * 500, b"A" * 499 + b"?"))
    one, two = listed(tmp_path)
    reader = RecordReader()
    with pytest.raises(RecordError, match="CRC"):
        reader.read(one)
    assert reader.read(two) == b"B" * 500
    reader.close()


def test_a_file_that_vanishes_after_listing_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (record,) = listed(tmp_path)
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(RecordError, match="FileNotFoundError"):
        RecordReader().read(record)


def test_a_folder_is_listed_once_however_many_links_lead_to_it(tmp_path: Path) -> None:
    source, other = tmp_path / "photos", tmp_path / "other"
    for folder in (source / "b", other / "deep"):
        folder.mkdir(parents=True)
        (folder / "1.jpg").write_bytes(b"x")
    (source / "a").symlink_to(source / "b")  # before the folder itself
    (source / "c").symlink_to(other)
    (source / "d").symlink_to(other / "deep")
    (source / "e").symlink_to(other)
    (source / "f").symlink_to(tmp_path)  # above the source
    for place in (source, tmp_path / "link"):
        if place != source:
            place.symlink_to(source)
        listing = Listing(str(place))
        names = [record.uri.removeprefix(f"{place}/") for record in listing]
        assert names == ["b/1.jpg", "c/deep/1.jpg"]
        assert listing.skipped["(none) (link to a folder that is listed)"] >= 4
        assert not listing.hidden


def test_a_link_back_up_is_not_followed_for_ever(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "up").symlink_to(tmp_path)
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    assert [Path(record.uri).name for record in listed(tmp_path)] == ["a.jpg", "gone.jpg"]


def test_a_source_that_is_not_there_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        listed(tmp_path / "none")


def test_globs_choose_records_by_their_path_below_the_source(tmp_path: Path) -> None:
    (tmp_path / "a" / "thumbs").mkdir(parents=True)
    for name in ("a/1.jpg", "a/2.png", "a/thumbs/3.jpg"):
        (tmp_path / name).write_bytes(b"x")
    tar_of(tmp_path / "b.tar", {"x/4.jpg": b"x", "x/5.png": b"x"})
    tar_of(tmp_path / "old.tar", {"x/6.jpg": b"x"})
    listing = Listing(str(tmp_path), Selection(include=("*.jpg",), exclude=("*/thumbs/*", "old*")))
    assert [record.member or Path(record.uri).name for record in listing] == ["1.jpg", "x/4.jpg"]
    assert dict(listing.skipped) == {"(filtered)": 4}
    assert len(list(Listing(str(tmp_path), Selection(include=("b.tar/x/*",))))) == 2


def test_a_folder_that_cannot_be_listed_has_a_row_whatever_the_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"x")
    listed = os.listdir

    def fails(folder: str) -> list[str]:
        if folder.endswith("locked"):
            raise OSError(errno.EIO, "Input/output error")
        return listed(folder)

    monkeypatch.setattr(os, "listdir", fails)
    records = list(Listing(str(tmp_path), Selection(include=("*.jpg",))))
    assert [(Path(one.uri).name, bool(one.error)) for one in records] == [("a.jpg", False), ("locked", True)]


def test_a_listing_that_is_left_lists_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that another machine was to make is not made here once the listing has ended."""
    for name in ("0.zip", "a.zip", "b.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("1.jpg", b"x")
    listed, asked, ended = list[str](), Event(), Event()

    def elsewhere(file: File, over: Event) -> None:
        if not file.uri.endswith("0.zip"):
            asked.set()
            assert over.wait(60)

    def counted(self: Listing, file: File, *rest: Any) -> Path:
        listed.append(Path(file.uri).name)
        return made(self, file, *rest)

    def indexed(self: Listing, file: File, *rest: Any) -> Path:
        try:
            return found(self, file, *rest)
        finally:
            if not file.uri.endswith("0.zip"):
                ended.set()

    made, found = Listing._indexed_here, Listing._indexed
    monkeypatch.setattr(Listing, "_indexed_here", counted)
    monkeypatch.setattr(Listing, "_indexed", indexed)
    records = iter(Listing(str(tmp_path), indexes=str(tmp_path / "indexes"), index_elsewhere=elsewhere))
    next(records)
    assert asked.wait(60)
    records.close()
    assert ended.wait(60) and listed == ["0.zip"]


def test_what_no_medium_is_called_is_no_record_even_where_it_leads_nowhere(tmp_path: Path) -> None:
    for name in ("readme.txt", "x.doc", "photo.jpg", "album.zip", "folder"):
        (tmp_path / name).symlink_to(tmp_path / "nothing")
    for name in ("pipe", "log.txt"):
        os.mkfifo(tmp_path / name)
    listing = Listing(str(tmp_path))
    records = list(listing)
    assert [Path(record.uri).name for record in records] == ["album.zip", "folder", "photo.jpg"]
    assert dict(listing.skipped) == {".txt": 2, ".doc": 1, "(none)": 1}
    assert [Path(uri).name for uri in listing.hidden] == ["album.zip", "folder", "photo.jpg", "readme.txt", "x.doc"]


def test_a_folder_that_is_left_out_is_not_missed_where_it_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "1.jpg").write_bytes(b"x")
    for name in ("dir", "album.zip"):
        (tmp_path / name).mkdir()
    listdir = os.listdir

    def forbidden(folder: str) -> list[str]:
        if Path(folder).name in ("dir", "album.zip"):
            raise PermissionError(13, "Permission denied")
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", forbidden)
    listing = Listing(str(tmp_path), Selection(exclude=("dir/*",)))
    assert [Path(record.uri).name for record in listing] == ["album.zip", "1.jpg"]
    assert [Path(uri).name for uri in listing.hidden] == ["album.zip"]


def test_the_row_of_a_broken_link_is_covered_whatever_is_included() -> None:
    """So its row leaves the table when the link is removed; a file that only other listings include belongs to them."""
    listing = Listing("/source", Selection(include=("*.jpg",), exclude=("b/*",)))
    assert listing.covers("/source/link", None, None, True) and not listing.covers("/source/link", None, None, False)
    assert not listing.covers("/source/x.png", None, None, True) and not listing.covers("/source/b", None, None, True)


def test_the_row_of_a_container_that_cannot_be_read_is_covered_whatever_its_name_and_whatever_is_included(tmp_path: Path) -> None:
    tar_of(tmp_path / "photos", {"1.jpg": b"one"})
    (tmp_path / "photos").write_bytes((tmp_path / "photos").read_bytes()[:700])
    (tmp_path / "scan.tif").write_bytes(b"II*\0\x08\0\0\0" * 10)
    (tmp_path / "x").write_bytes(b"text")
    listing = Listing(str(tmp_path), Selection(include=("*.jpg",), pages="all"))
    failed = [record for record in listing if record.member is None]
    assert [Path(record.uri).name for record in failed] == ["photos"]
    assert all(listing.covers(record.uri, None, None, False, True) for record in failed)
    assert not listing.covers(f"{tmp_path}/photo", None, None, False, False), "a photo that only other listings include"


def test_what_is_listed_of_dead_links_and_pipes_is_what_is_covered(tmp_path: Path) -> None:
    """Otherwise they would be new every night, and their rows would never leave the table."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jpg").symlink_to(tmp_path / "nothing")
        (tmp_path / folder / "link").symlink_to(tmp_path / "nothing")
        os.mkfifo(tmp_path / folder / "p.jpg")
    listing = Listing(str(tmp_path), Selection(include=("a/*",)))
    records = list(listing)
    assert [record.uri.removeprefix(f"{tmp_path}/") for record in records] == ["a/link", "a/p.jpg", "a/x.jpg", "b/link"]
    assert all(listing.covers(record.uri, None, None, True) for record in records)
    assert not any(listing.covers(f"{tmp_path}/b/{name}", None, None, True) for name in ("x.jpg", "p.jpg"))


def test_a_webdataset_shard_gives_its_images(tmp_path: Path) -> None:
    tar_of(tmp_path / "shard-000000.tar", {"0001.jpg": b"one", "0001.cls": b"3", "0001.json": b"{}", "0002.jpg": b"two"})
    listing = Listing(str(tmp_path))
    assert [record.member for record in listing] == ["0001.jpg", "0002.jpg"]
    assert dict(listing.skipped) == {".cls": 1, ".json": 1}


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_container_is_indexed_once_while_it_stays_the_same(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "tar":
        tar_of(path, {"1.jpg": b"one", "1.txt": b"x"})
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("1.jpg", b"one")
            archive.writestr("1.txt", b"x")
    first, stat = Listing(str(tmp_path)), path.stat()
    records = list(first)
    path.write_bytes(bytes(stat.st_size))  # nothing but zeros: a listing that opens it finds no member
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = Listing(str(tmp_path))
    assert list(again) == records and again.skipped == first.skipped == {".txt": 1}
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert [record.member for record in listed(tmp_path)] != ["1.jpg"]


def test_another_machine_takes_the_index_from_beside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, indexes = tmp_path / "source" / "a.tar", str(tmp_path / "indexes")
    path.parent.mkdir()
    tar_of(path, {"1.jpg": b"one", "1.txt": b"x"})
    stat, records = path.stat(), list(Listing(str(path.parent), indexes=indexes))
    path.write_bytes(bytes(stat.st_size))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert list(Listing(str(path.parent), indexes=indexes)) == records
    assert list(Listing(str(path.parent))) == records  # and keeps it
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert list(Listing(str(path.parent), indexes=indexes)) != records
    assert len(list((tmp_path / "indexes").iterdir())) == 1  # one name for all versions


def test_a_listing_removes_what_killed_ones_left_and_leaves_nothing_itself(tmp_path: Path) -> None:
    folder = storage.cache_folder() / "indexes"
    old, young = folder / "fer-listing-old", folder / "fer-listing-young"
    for left in (old, young):
        left.mkdir(parents=True, exist_ok=True)
        (left / "lock").touch()
    os.utime(old / "lock", (0, 0))
    for number in range(4):
        tar_of(tmp_path / f"{number}.tar", {"1.jpg": b"x"})
    shutil.copy(tmp_path / "0.tar", tmp_path / "broken.zip")
    assert len(listed(tmp_path)) == 5
    records = iter(Listing(str(tmp_path)))
    next(records)
    records.close()
    assert young.exists() and list(folder.glob("fer-listing-*")) == [young]
    shutil.rmtree(young)


def test_the_members_before_one_that_kills_the_listing_are_records(tmp_path: Path) -> None:
    """The process dies, or hangs, after some members: those are kept, and the container has a record that says so."""
    tar_of(tmp_path / "a.tar", {f"{number}.jpg": b"x" for number in range(3)})
    (file,) = list_files(str(tmp_path))
    with unkept_indexes() as folder:
        path = folder / "a"
        entries = write_index("tar", asdict(file), asdict(Selection()), str(path))
        for _ in range(2):
            next(entries)
        flushed = path.with_name("a.stream")
        assert flushed.exists() and not path.exists()
        entries.close()  # type: ignore[attr-defined]
        flushed.write_bytes(flushed.read_bytes()[:-3])  # torn, as by a kill within a write
        rescue_index(path, file, "it dies")
        assert error_of(path) == "it dies" and not flushed.exists()
        assert all(isinstance(entry, Record) for entry in read_index(path, file))


def test_a_listing_that_is_left_begins_nothing_more_and_says_so_to_who_indexes_elsewhere(tmp_path: Path) -> None:
    for number in range(40):
        tar_of(tmp_path / f"{number:02d}.tar", {"1.jpg": b"x"})
    begun: list[str] = []
    waits, given_up = threading.Event(), threading.Event()

    def elsewhere(file: File, over: threading.Event) -> None:
        begun.append(file.uri)
        if not file.uri.endswith("00.tar"):
            waits.set()
            if over.wait(20):
                given_up.set()

    listing = iter(Listing(str(tmp_path), indexes=str(tmp_path / "indexes"), index_elsewhere=elsewhere, at_once=2))
    next(listing)
    assert waits.wait(20)
    listing.close()
    assert given_up.is_set() and len(begun) <= 4


@pytest.mark.parametrize("able", [True, False])
def test_an_index_that_is_made_elsewhere_gives_the_same_records_and_so_does_none(tmp_path: Path, able: bool) -> None:
    source, indexes = tmp_path / "source", str(tmp_path / "indexes")
    source.mkdir()
    for number in range(12):
        tar_of(source / f"{number:02d}.tar", {f"{one}.jpg": bytes(one) for one in range(3)})
    whole = (source / "05.tar").read_bytes()
    (source / "05.tar").write_bytes(whole[:1500])  # a damaged one has no index
    asked: list[str] = []

    def elsewhere(file: File, over: threading.Event) -> None:
        asked.append(file.uri)
        with suppress(ValueError):
            if able:
                Listing(file.uri, indexes=indexes).index(file)

    records = list(Listing(str(source), indexes=indexes, index_elsewhere=elsewhere, at_once=3))
    assert sorted(asked) == sorted(map(str, source.iterdir()))
    assert records == list(Listing(str(source))) and sum(record.error is not None for record in records) == 1
    assert len(list(Path(indexes).iterdir())) == 11


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("streamed", [False, True])
def test_members_of_a_zip_are_read_by_range_whatever_their_compression(tmp_path: Path, method: int, streamed: bool) -> None:
    contents = {f"{'long ' * 120}{number}.jpg": os.urandom(50) + bytes(5000 * number) for number in range(4)}

    class Pipe(io.FileIO):
        def seekable(self) -> bool:
            return not streamed

    with Pipe(tmp_path / "a.zip", "w") as file, zipfile.ZipFile(file, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    records, reader = listed(tmp_path), RecordReader()
    assert {record.member: reader.read(record) for record in records} == contents


@pytest.mark.parametrize("name", ["a.tar", "a.zip", "a.tar.gz"])
def test_neighbours_in_a_container_are_read_by_one_request(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {f"{number:03d}.{'txt' if number % 7 == 0 else 'jpg'}": os.urandom(100_000) for number in range(60)}
    if name == "a.zip":
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in contents.items():
                archive.writestr(member, data)
    else:
        tar_of(tmp_path / name, contents, "w:gz" if name.endswith("gz") else "w")
    records, requests = listed(tmp_path), 0
    real = storage.read_range

    def counted(*arguments: Any) -> bytes:
        nonlocal requests
        requests += 1
        return real(*arguments)

    monkeypatch.setattr(storage, "read_range", counted)
    runs = list(blocks([*records, RecordError("crashed", "x"), *records[:3]]))
    assert [record for run in runs for record in run if isinstance(record, Record)] == [*records, *records[:3]]
    reader = RecordReader()
    read = [data for run in runs for data in reader.read_block(run)]
    assert read[: len(records)] == [contents[str(record.member)] for record in records]
    assert isinstance(read[len(records)], RecordError) and read[len(records) + 1 :] == read[:3]
    assert requests <= {"a.tar": 11, "a.zip": 11, "a.tar.gz": 1}[name]  # of 54 members: gaps of 100 kB are not read


def test_a_zip_member_that_unpacks_to_more_than_it_says_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.jpg", bytes(50_000_000))
    (record,) = listed(tmp_path)
    with pytest.raises(RecordError, match="CRC"):
        RecordReader().read(replace(record, size_bytes=1000))


def test_a_tar_with_a_damaged_header_says_that_members_are_missing(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", {f"{number}.jpg": b"x" * 600 for number in range(6)})
    data = bytearray((tmp_path / "a.tar").read_bytes())
    third = 2 * (512 + 1024)
    data[third + 5] ^= 255
    (tmp_path / "a.tar").write_bytes(data)
    *members, broken = listed(tmp_path)
    assert [record.member for record in members] == ["0.jpg", "1.jpg"]
    assert broken.member is None and broken.error and f"header at byte {third} is damaged" in broken.error


def test_zip_members_with_long_headers_are_read_also_in_a_block(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(4):
            info = zipfile.ZipInfo(f"{number}.jpg")
            info.extra = b"\xfe\xca" + (1000).to_bytes(2, "little") + bytes(1000)
            archive.writestr(info, str(number) * 500)
    (block,) = blocks(listed(tmp_path))
    assert RecordReader().read_block(block) == [str(number).encode() * 500 for number in range(4)]


def test_trailing_rubbish_behind_a_compressed_tar_costs_nothing(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar.gz", {"1.jpg": b"one", "2.jpg": b"two"}, "w:gz")
    with (tmp_path / "a.tar.gz").open("ab") as file:
        file.write(b"rubbish!")
    reader = RecordReader()
    assert [reader.read(record) for record in listed(tmp_path) if record.member] == [b"one", b"two"]


def test_a_container_with_a_name_that_is_not_utf_8_is_one_record_that_says_so(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.tar")
    tar_of(tmp_path / name, {"1.jpg": b"x"})
    (record,) = listed(tmp_path)
    assert record.error and "not valid UTF-8" in record.error


def test_many_large_containers_do_not_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are more containers than processes, and each has more entries than a batch of an index."""
    monkeypatch.setattr(index, "BATCH", 10)
    for number in range(40):
        tar_of(tmp_path / f"{number:02d}.tar", {f"{member}.jpg": b"x" for member in range(200)})
    assert len(listed(tmp_path)) == 8000
