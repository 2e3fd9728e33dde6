"""Listing a container on a store reads its headers, and little else."""

import io
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fer_pipeline.core import storage
from fer_pipeline.core.errors import ChangedError
from fer_pipeline.sources.background import Background
from fer_pipeline.sources.files import File, Selection
from fer_pipeline.sources.formats import tars, zips
from fer_pipeline.sources.sparse import SparseFile


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each request that a listing makes, as of a store."""
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


def test_what_is_worked_on_in_the_background_comes_in_order_and_with_its_error() -> None:
    def numbers() -> Iterator[int]:
        yield from range(5000)
        raise ValueError("the end")

    with ThreadPoolExecutor(2) as pool:
        found: list[int] = []
        with pytest.raises(ValueError, match="the end"):
            for number in Background(pool, numbers):
                found.append(number)
        assert found == list(range(5000))


def test_what_nobody_reads_any_more_ends() -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 1

    with ThreadPoolExecutor(1) as pool:
        background = Background(pool, endless)
        assert next(iter(background)) == 1
        background.stop()
