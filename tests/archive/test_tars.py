"""Tars as other programs write them. The comments say what commit 04c3eb5 did."""

import io
import tarfile
from pathlib import Path

import pytest

from fer_pipeline.archive.formats import tars
from fer_pipeline.archive.listing import Listing
from fer_pipeline.archive.reader import RecordReader
from fer_pipeline.base.errors import RecordError
from tests.archive.test_listing import tar_of


def read_all(source: Path) -> dict[str | None, bytes | str]:
    """Return what each member holds, or why it cannot be read."""
    reader, found = RecordReader(), dict[str | None, bytes | str]()
    for record in Listing(str(source)):
        try:
            found[record.member] = reader.read(record)
        except RecordError as error:
            found[record.member] = error.reason
    reader.close()
    return found


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("zeros", [0, 512, 51_200])
def test_tars_that_were_joined_are_read_to_their_true_end(mode: str, zeros: int, tmp_path: Path) -> None:
    """04c3eb5 lost the members of all but the first without a trace."""
    parts = []
    for number in range(3):
        tar_of(tmp_path / "part", {f"{number}/{name}.jpg": f"{number}{name}".encode() * 400 for name in "ab"}, mode)
        parts.append((tmp_path / "part").read_bytes())
    (tmp_path / "part").unlink()
    between = bytes(zeros) if mode == "w" else b""
    (tmp_path / "a.tar").write_bytes(between.join(parts))
    assert read_all(tmp_path) == {f"{n}/{name}.jpg": f"{n}{name}".encode() * 400 for n in range(3) for name in "ab"}


def test_what_follows_a_tar_and_is_none_is_a_row_that_says_so(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", {"1.jpg": b"one"})
    with (tmp_path / "a.tar").open("ab") as file:
        file.write(b"something else" * 100)
    found = read_all(tmp_path)
    assert found["1.jpg"] == b"one" and "header at byte 10240 is damaged" in str(found[None])


def test_zeros_without_end_are_not_read_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MOST_ZEROS", 1024**2)
    tar_of(tmp_path / "a.tar", {"1.jpg": b"one"})
    with (tmp_path / "a.tar").open("ab") as file:
        file.truncate(10**9)
    with tarfile.open(tmp_path / "a.tar") as tar, pytest.raises(tarfile.ReadError, match="1048576 zeros follow its end"):
        list(tars.sane_members(tar))


def test_an_empty_tar_and_one_that_ends_at_once_are_whole() -> None:
    for data in (bytes(10_240), bytes(1024)):
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            assert list(tars.sane_members(tar)) == []


@pytest.mark.parametrize("name", ["concat.tar", "x.tar.bz2", "x.tbz2", "x.tar.xz", "x.tar.zst"])
def test_a_tar_of_the_field_is_read_whole(name: str, shared: Path) -> None:
    """04c3eb5 read half of the first and skipped the others."""
    found = read_all(shared / "data" / "field" / name)
    assert len(found) == (4 if name == "concat.tar" else 2)
    assert all(isinstance(one, bytes) and len(one) > 1000 for one in found.values())
