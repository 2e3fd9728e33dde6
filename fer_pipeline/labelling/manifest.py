"""The manifest: all records of a run, frozen before the run starts and split into shards. A shard is committed as a whole."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import reduce
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fer_pipeline.archive.record import Record, records_of
from fer_pipeline.base import storage
from fer_pipeline.base.storage import parquet
from fer_pipeline.labelling.schemas import MANIFEST

SHARDS_PER_FILE = 256


@dataclass(frozen=True, slots=True)
class ManifestSize:
    """The number of records and shards of a manifest."""

    records: int
    shards: int


def write_manifest(
    prefix: str, shards: Iterable[list[Record]], further: Sequence[Callable[[list[Record]], pa.Table]] = ()
) -> ManifestSize:
    """Write the manifest as `<prefix>00000.parquet`, and so on: one row group per shard, `SHARDS_PER_FILE` per file.

    `further`: functions that return further columns of a shard.
    """
    record_count = shard_count = 0
    pending: list[pa.Table] = []
    for shard in shards:
        rows = manifest_table(shard, shard_count, record_count)
        pending.append(reduce(parquet.joined, (columns(shard) for columns in further), rows))
        record_count, shard_count = record_count + len(shard), shard_count + 1
        if len(pending) == SHARDS_PER_FILE:
            _write_file(prefix, shard_count, pending)
            pending = []
    if pending:
        _write_file(prefix, shard_count, pending)
    return ManifestSize(record_count, shard_count)


def manifest_table(shard: list[Record], number: int, first_id: int) -> pa.Table:
    """Return the manifest rows of a shard. The ids of its records start at `first_id`."""
    columns = {field.name: [getattr(record, field.name) for record in shard] for field in fields(Record)}
    columns["record_id"] = list(range(first_id, first_id + len(shard)))
    columns["shard"] = [number] * len(shard)
    return pa.table(columns, schema=MANIFEST)


def _write_file(prefix: str, shards_so_far: int, tables: list[pa.Table]) -> None:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, tables[0].schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
    storage.write_bytes(f"{prefix}{(shards_so_far - 1) // SHARDS_PER_FILE:05d}.parquet", sink.getvalue().to_pybytes())


def file_count(shards: int) -> int:
    """Return the number of files of a manifest with this number of shards."""
    return -(-shards // SHARDS_PER_FILE)


def shards_in(number: int, shards: int) -> range:
    """Return the shards in one file of a manifest with this number of shards."""
    return range(number * SHARDS_PER_FILE, min(shards, (number + 1) * SHARDS_PER_FILE))


def read_shards(prefix: str, shards: Iterable[int]) -> Iterator[tuple[int, pa.Table]]:
    """Yield these shards in order with their manifest rows. Sorted shards read each file once; one file is in memory."""
    for number, group in groupby(shards, key=lambda shard: shard // SHARDS_PER_FILE):
        tables = read_manifest_file(prefix, number)
        for shard in group:
            yield shard, tables[shard % SHARDS_PER_FILE]


def shuffled_files(shards: Iterable[int], rng: random.Random) -> list[int]:
    """Return the shards in random order of their manifest files. Shards of one file stay together."""
    files = [list(group) for _, group in groupby(shards, key=lambda shard: shard // SHARDS_PER_FILE)]
    rng.shuffle(files)
    return [shard for file in files for shard in file]


def read_manifest_file(prefix: str, number: int) -> list[pa.Table]:
    """Return the manifest rows of each shard of one file."""
    with parquet.opened_own(f"{prefix}{number:05d}.parquet", MANIFEST) as file:
        return [file.read_row_group(index) for index in range(file.num_row_groups)]


def shard_sizes(prefix: str, shards: int) -> list[int]:
    """Return the number of records of each shard, read from the footers of the files."""

    def sizes_in(number: int) -> list[int]:
        with parquet.opened_own(f"{prefix}{number:05d}.parquet", MANIFEST) as file:
            return [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]

    with ThreadPoolExecutor(8) as pool:
        return [size for sizes in pool.map(sizes_in, range(file_count(shards))) for size in sizes]


def find_records(prefix: str, record_ids: list[int]) -> dict[int, Record]:
    """Return the records with these ids, by id. Row groups that cannot hold one are not read."""
    table = _where(prefix, "record_id", record_ids)
    return dict(zip(table["record_id"].to_pylist(), records_of(table), strict=True))


def last_moments_ms(prefix: str, uris: list[str]) -> dict[tuple[str, str | None], int]:
    """Return the time of the last sampled frame of each video in these files, by uri and member."""
    table = _where(prefix, "uri", uris).group_by(["uri", "member"]).aggregate([("time_ms", "max")])
    columns = (table[name].to_pylist() for name in ("uri", "member", "time_ms_max"))
    return {(uri, member): last_ms for uri, member, last_ms in zip(*columns, strict=True) if last_ms is not None}


def _where(prefix: str, column: str, values: Sequence[Any]) -> pa.Table:
    """Return the manifest rows whose `column` has one of `values`."""
    folder, _, start = prefix.rpartition("/")
    found = [MANIFEST.empty_table()]
    for name in storage.list_names(folder) if values else ():
        if name.startswith(start):
            with parquet.opened_own(storage.join(folder, name), MANIFEST) as file:
                rows = file.read_row_groups(parquet.groups_that_may_hold(file, column, values))
            found.append(rows.filter(pc.is_in(rows[column], pa.array(values))).select(MANIFEST.names).cast(MANIFEST))
    return pa.concat_tables(found)
