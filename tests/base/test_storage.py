import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.storage import local, parquet


def test_a_write_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    url = str(tmp_path / "folder" / "file")
    storage.write_bytes(url, b"one")
    storage.write_bytes(url, b"two")
    assert storage.read_bytes(url) == b"two"
    assert storage.list_names(str(tmp_path / "folder")) == ["file"]


def test_a_file_that_is_written_replaces_at_its_end_or_not_at_all(tmp_path: Path) -> None:
    url = str(tmp_path / "folder" / "file")
    with storage.written(url) as file:
        file.write(b"one")
        assert not storage.exists(url)
    with pytest.raises(ValueError, match="stop"), storage.written(url) as file:
        file.write(b"two")
        raise ValueError("stop")
    assert storage.read_bytes(url) == b"one" and [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]


@pytest.mark.parametrize("links", [True, False])
def test_only_the_first_creates(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:
        monkeypatch.setattr(os, "link", without_links)
    url = str(tmp_path / "deep" / "file")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: storage.create(url, b"%d" % number), range(8)))
    assert sum(made) == 1 and storage.read_bytes(url) == b"%d" % made.index(True)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]


def test_a_name_whose_maker_died_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", without_links)
    monkeypatch.setattr(local, "RESERVED_S", 0.1)
    (tmp_path / "file").touch()
    assert storage.create(str(tmp_path / "file"), b"second") and (tmp_path / "file").read_bytes() == b"second"


def without_links(source: str, target: str) -> None:
    """Raise the error of a FUSE mount of a store."""
    raise OSError(errno.ENOTSUP, "Operation not supported")


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        storage.write_bytes(str(tmp_path / "a"), b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_half_written_file_is_not_listed(tmp_path: Path) -> None:
    parquet.write_table(str(tmp_path / "000000.parquet"), pa.table({"a": [1]}))
    half = local.write_temporary(str(tmp_path / "000001.parquet"), b"half")
    assert storage.list_names(str(tmp_path)) == ["000000.parquet"]
    assert pq.read_table(tmp_path).num_rows == 1
    assert Path(half).parent == tmp_path


def test_a_missing_folder_lists_nothing(tmp_path: Path) -> None:
    assert storage.list_names(str(tmp_path / "none")) == []


def test_an_unknown_scheme_is_the_users_to_mend() -> None:
    with pytest.raises(UserError, match="neither a local path nor an s3"):
        storage.exists("nope://bucket/key")


@pytest.mark.parametrize("url", ["s3://AKIA:hunter2@bucket/x", "s3a://AKIA:hunter2@bucket", "https://host/x?sig=hunter2"])
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UserError, match=r"credentials by the environment|neither a local path") as caught:
        storage.normalize(url)
    assert "hunter2" not in str(caught.value)


def test_keys_may_hold_what_separates_elsewhere() -> None:
    assert storage.normalize("s3a://bucket/a@b/c?d/") == "s3://bucket/a@b/c?d"


def test_a_file_that_cannot_be_put_in_its_place_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError, match=f"'{tmp_path}/taken'"):
        storage.write_bytes(str(tmp_path / "taken"), b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
