"""Listing a container on a store reads little more than its headers."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from fer_pipeline.archive.files import File, Selection
from fer_pipeline.archive.formats import tars, zips
from fer_pipeline.archive.sparse import SparseFile
from fer_pipeline.base import storage
from fer_pipeline.base.errors import ChangedError


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each request that a listing makes, as on a store."""
    sizes: list[int] = []
    real = storage.read_range

    def counted(uri: str, start: int, size: int, etag: str | None = None) -> bytes:
        data = real(uri, start, size, etag)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(storage, "read_range", counted)
    for module in (tars, zips):
        monkeypatch.setattr(module, "open_sparsely", SparseFile)
    return sizes


def tar_file(path: Path, count: int, size: int) -> File:
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            info = tarfile.TarInfo(f"{'d' * 120}/{number}.jpg")  # longer than a header holds
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))
    return File(str(path), path.stat().st_size, str(path.stat().st_mtime_ns))


def test_a_tar_of_large_members_costs_a_small_request_each(requests: list[int], tmp_path: Path) -> None:
    file = tar_file(tmp_path / "a.tar", 40, 500_000)
    assert len(list(tars.list_tar(file, Selection()))) == 40
    assert sum(requests) < 0.02 * file.size_bytes and len(requests) < 50


def test_a_tar_of_small_members_is_read_many_at_a_time(requests: list[int], tmp_path: Path) -> None:
    file = tar_file(tmp_path / "a.tar", 4000, 2000)
    assert len(list(tars.list_tar(file, Selection()))) == 4000
    assert len(requests) < 10


def test_a_zip_costs_its_directory(requests: list[int], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(40):
            archive.writestr(f"{number}.jpg", bytes(500_000))
    path = tmp_path / "a.zip"
    file = File(str(path), path.stat().st_size, str(path.stat().st_mtime_ns))
    assert len(list(zips.list_zip(file, Selection()))) == 40
    assert sum(requests) < 20_000 and len(requests) < 5


def test_a_tar_that_changes_while_it_is_listed_is_not_believed(requests: list[int], tmp_path: Path) -> None:
    file = tar_file(tmp_path / "a.tar", 40, 500_000)
    entries = tars.list_tar(file, Selection())
    next(entries)
    tar_file(tmp_path / "a.tar", 40, 400_000)
    with pytest.raises(ChangedError):
        list(entries)
