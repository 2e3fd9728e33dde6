"""Untrusted tables and records, and the paths in them, can do no harm."""

import json
import pickle
import resource
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from fer_pipeline.base import memory, storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.identity import Identity, now
from fer_pipeline.base.storage import parquet
from fer_pipeline.labelling.run import RunFolder, RunRecord
from fer_pipeline.table.nights import Night, kept_night, last_nights

NOWHERE = ["../x", "x/../../../victim/evil", "/etc/x", "..", ".hidden", "a b", "a\nb", "", "x" * 300]


@pytest.mark.parametrize(
    "url",
    [
        "simplecache::http://127.0.0.1:9/x",
        "simplecache::s3://bucket/x",
        "reference://",
        "memory://x",
        "gcs://bucket/x",
        "abfs://container/x",
        "simplecache::gs://bucket/x",
        "http://host/x",
        "ftp://host/x",
        "FILE:///etc/passwd",
        "zip://a::file:///b",
    ],
)
def test_nothing_but_paths_and_stores_is_opened(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda *_, **__: pytest.fail("fsspec parses the URL"))
    for read in (storage.normalize, storage.exists, storage.read_bytes, storage.list_names, parquet.read_table):
        with pytest.raises(UserError, match="neither a local path nor an s3"):
            read(url)


def test_what_is_below_a_place_is_told_by_where_the_path_leads() -> None:
    assert storage.is_below("/a/b", "/a/b") and storage.is_below("/a/b/c/d.jpg", "/a/b") and storage.is_below("/x", "/")
    assert not any(storage.is_below(url, "/a/b") for url in ("/a/b/../c", "/a/bc", "/a", "s3://a/b", "http://a/b", "../x", "~/x"))
    keys = ("s3://b/k/../x", "s3://b/k/%2e%2e/x", "s3://b/k/./x", "s3://b/k/..")
    assert not any(storage.is_below(url, "s3://b/k") for url in keys)
    assert storage.is_below("s3://b/k/x", "s3://b/k") and not storage.is_below("s3://b/kk", "s3://b/k")
    with pytest.raises(UserError, match=r"The run names '/etc/passwd', which is not below '/a'.*Nothing was read"):
        storage.require_below(["/a/b", "/etc/passwd"], ["/a"], "The run")


@pytest.mark.parametrize("name", NOWHERE)
def test_what_becomes_a_path_is_a_plain_name(name: str) -> None:
    one = Identity(name="m", digest="d")
    with pytest.raises(ValidationError):
        RunRecord(run_id=name, created_at=now(), source="/", settings={}, model=one, detector=one)
    with pytest.raises(ValidationError):
        Identity(name="m", digest="d", version=name)
    with pytest.raises(ValidationError):
        Night.model_validate({"run_id": name})


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"settings": {"max_pixels": "all"}}, "max_pixels"),
        ({"settings": {"include": [7]}}, "include"),
        ({"settings": {"precision": "../x"}}, "precision"),
        ({"created_at": "yesterday"}, "isoformat"),
        ({"model": {"name": "a\x1b[2Jb", "digest": "d"}}, "cannot be printed"),
        ({"run_id": "x/../../evil"}, "run_id"),
    ],
)
def test_an_odd_record_of_a_run_is_one_sentence(facts: dict[str, Any], says: str, tmp_path: Path) -> None:
    one = Identity(name="m", digest="d")
    record = RunRecord(run_id="r", created_at=now(), source="/", settings={}, model=one, detector=one)
    (tmp_path / "run.json").write_text(json.dumps(record.model_dump(mode="json") | facts))
    with pytest.raises(UserError, match=r"is not a record of a labelling run: .*") as caught:
        RunFolder(str(tmp_path)).load()
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_odd_nights_are_one_sentence_and_stop_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "_nights"
    folder.mkdir()
    for text in ("[", "[]", '{"run_id": "../evil"}', "[" * 100_000):
        (folder / "20260101.json").write_text(text)
        with pytest.raises(UserError, match=r"20260101.json' is not a valid night: .*Fix the file or move it away"):
            kept_night(str(tmp_path), "20260101")
        assert last_nights(str(tmp_path), 5) == [] and "is not a valid night" in caplog.text
        caplog.clear()


def dictionary_bomb(path: Path) -> None:
    """Write a Parquet file of two kilobytes whose column takes 2 GB in memory."""
    with pq.ParquetWriter(path, pa.schema([("uri", pa.string())]), compression="zstd", dictionary_pagesize_limit=10**9) as writer:
        part = pa.array(["x" * 6_000_000] * 60)
        writer.write_table(pa.table({"uri": pa.chunked_array([part] * 5)}), row_group_size=300)


def test_a_table_that_claims_all_memory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMORY_BYTES", 512 * 1024**2)
    path = tmp_path / "bomb.parquet"
    dictionary_bomb(path)
    assert path.stat().st_size < 10_000
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(memory.ReadTooLargeError, match=r"bomb.parquet' needs more memory to be read than the limit"):
        parquet.read_table(str(path))
    with pytest.raises(memory.ReadTooLargeError, match=r"bomb.parquet"):
        parquet.read_columns(str(path), ["uri"])
    with parquet.opened(str(path)) as file, pytest.raises(memory.ReadTooLargeError, match=r"bomb.parquet"):
        list(file.iter_batches(300))
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    storage.write_bytes(str(tmp_path / "small"), b"x")
    assert storage.read_bytes(str(tmp_path / "small")) == b"x"


class Evil:
    """Fails the test when its pickle is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle is loaded",)


def test_a_table_with_types_of_an_extension_is_refused_before_a_value_is_read(tmp_path: Path) -> None:
    """Ray Data, which training imports, registers an extension type whose values are pickles."""
    pytest.importorskip("ray.data._internal.object_extensions.arrow")
    marked = {b"ARROW:extension:name": b"ray.data.arrow_pickled_object", b"ARROW:extension:metadata": b""}
    image = pa.field("image", pa.large_binary(), metadata=marked)
    table = pa.table({"image": pa.array([pickle.dumps(Evil())], pa.large_binary())}, schema=pa.schema([image]))
    pq.write_table(table, tmp_path / "a.parquet")
    for read in (parquet.read_table, parquet.open_whole, lambda url: parquet.read_columns(url, ["image"])):
        with pytest.raises(pa.ArrowInvalid, match="an extension type"):
            read(str(tmp_path / "a.parquet"))


def test_arrows_own_extensions_are_plain_values(tmp_path: Path) -> None:
    values = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16], pa.binary(16)))
    pq.write_table(pa.table({"id": values, "image": [b"y"]}), tmp_path / "a.parquet")
    assert parquet.read_table(str(tmp_path / "a.parquet"))["image"].to_pylist() == [b"y"]
