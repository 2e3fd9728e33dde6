import random
from pathlib import Path

import pyarrow as pa
import pytest
from obstore.store import MemoryStore

from fer_pipeline.archive.record import Record, records_of, split_into_shards
from fer_pipeline.base import storage
from fer_pipeline.base.storage import objects, parquet
from fer_pipeline.labelling.manifest import find_records, last_moments_ms, read_shards, shard_sizes, write_manifest


def records(count: int, size_bytes: int = 10) -> list[Record]:
    return [Record(f"/photos/{number}.jpg", size_bytes=size_bytes) for number in range(count)]


def test_shards_are_bounded_by_count_and_bytes() -> None:
    assert [len(shard) for shard in split_into_shards(records(10), 4, 10**9)] == [4, 4, 2]
    assert [len(shard) for shard in split_into_shards(records(10), 100, 35)] == [3, 3, 3, 1]


def test_a_record_larger_than_a_shard_has_one_for_itself() -> None:
    assert [len(shard) for shard in split_into_shards([*records(2), *records(1, 500), *records(2)], 100, 50)] == [2, 1, 2]


def test_every_record_comes_back_from_its_shard_with_its_id(tmp_path: Path) -> None:
    prefix = str(tmp_path / "run-")
    size = write_manifest(prefix, split_into_shards(records(1000), 3, 10**9))  # two files: 334 shards
    assert (size.records, size.shards) == (1000, 334)
    tables = [table for _, table in read_shards(prefix, range(size.shards))]
    assert shard_sizes(prefix, size.shards) == [len(table) for table in tables] == [3] * 333 + [1]
    assert [i for table in tables for i in table["record_id"].to_pylist()] == list(range(1000))
    assert [record for table in tables for record in records_of(table)] == records(1000)


def test_shards_left_over_are_read_from_their_files(tmp_path: Path) -> None:
    prefix = str(tmp_path / "run-")
    write_manifest(prefix, split_into_shards(records(1000), 3, 10**9))
    found = {shard: table["record_id"].to_pylist() for shard, table in read_shards(prefix, [2, 255, 256, 333])}
    assert found == {2: [6, 7, 8], 255: [765, 766, 767], 256: [768, 769, 770], 333: [999]}


def test_records_are_found_by_id(tmp_path: Path) -> None:
    prefix = str(tmp_path / "run-")
    write_manifest(prefix, split_into_shards(records(900), 3, 10**9))
    (tmp_path / "another-00000.parquet").write_bytes(b"of another driver")
    assert find_records(prefix, [5, 899]) == {5: records(6)[5], 899: records(900)[899]}


def test_nothing_is_written_for_no_records(tmp_path: Path) -> None:
    assert write_manifest(str(tmp_path / "run-"), split_into_shards([], 3, 10)).records == 0
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_read_without_a_file_system_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of Arrow that call Python can abort the process at its exit, so Arrow gets only bytes and handles."""
    for name in ("PyFileSystem", "FSSpecHandler"):
        monkeypatch.setattr(storage, name, lambda *_: pytest.fail("Arrow gets a file system in Python"))
    _as_a_store(monkeypatch)
    prefix = "az://run/manifest/x-"
    listed = [Record(f"/a/{number:04d}.jpg", time_ms=number, size_bytes=number) for number in range(900)]
    write_manifest(prefix, split_into_shards(listed, 8, 10**9))
    assert find_records(prefix, [5, 899]) == {5: listed[5], 899: listed[899]}
    assert last_moments_ms(prefix, ["/a/0007.jpg"]) == {("/a/0007.jpg", None): 7} and find_records(prefix, []) == {}
    with parquet.opened(f"{prefix}00000.parquet") as file:
        assert file.metadata.num_rows == 900


def _as_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the memory of this process as a store."""
    memory = MemoryStore()
    monkeypatch.setattr(objects, "_store_of", lambda scheme, bucket: memory)
    monkeypatch.setattr(storage, "list_names", lambda url: [one["path"].rpartition("/")[2] for one in memory.list().collect()])


@pytest.mark.parametrize("rows", [1, 40_000])
def test_columns_of_a_file_on_a_store_are_those_of_the_whole_file(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"name {number}" for number in range(rows)]
    rng = random.Random(0)
    blobs = [rng.randbytes(60) for _ in range(rows)]
    nested = [[{"x": number, "y": None}] * (number % 3) for number in range(rows)]
    table = pa.table({"blob": blobs, "name": names, "faces": nested, "number": range(rows)})
    _as_a_store(monkeypatch)
    parquet.write_table("s3://columns/a.parquet", table, row_group_size=7_000)
    wanted = ["number", "faces"]
    assert parquet.read_columns("s3://columns/a.parquet", wanted).equals(table.select(["faces", "number"]).select(wanted))
    filled: list[int] = []
    fill = parquet._fill

    def counted(url: str, whole: bytearray, ranges: list[tuple[int, int]]) -> None:
        filled.extend(end - start for start, end in ranges)
        fill(url, whole, ranges)

    monkeypatch.setattr(parquet, "_fill", counted)
    parquet.read_columns("s3://columns/a.parquet", ["number"])
    size, _ = objects.size_and_etag("s3://columns/a.parquet")
    assert rows == 1 or sum(filled) < size / 2
