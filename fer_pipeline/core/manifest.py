"""The manifest: what a run will do, frozen before it begins, cut into shards that are read and committed together."""

import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fer_pipeline.core import storage
from fer_pipeline.core.schemas import MANIFEST

SHARDS_PER_FILE = 256


@dataclass(frozen=True, slots=True)
class Record:
    """One image or video frame to label, and where its bytes are."""

    uri: str
    """The file, or the container that holds it."""
    member: str | None = None
    """Its name in the container; `row 7` in a Parquet file."""
    offset: int | None = None
    """Where it stands in the container; what that means in each source format says `sources.formats.FORMATS`."""
    stored_bytes: int | None = None
    """Bytes that it takes in the container, where it is compressed there."""
    time_ms: int | None = None
    """The moment in a video."""
    size_bytes: int | None = None
    """Bytes of the encoded image; None where the listing does not know."""
    etag: str | None = None
    """Of the file: the store's, or the mtime in nanoseconds on a local disk."""
    error: str | None = None
    """Why the listing already knows that it cannot be read."""
    attempt: int = 1
    """Which night's try this is, of a record that failed before."""


@dataclass(frozen=True, slots=True)
class ManifestSize:
    """How much there is to do."""

    records: int
    shards: int


def split_into_shards(records: Iterable[Record], shard_records: int, shard_bytes: int) -> Iterator[list[Record]]:
    """Yield shards in listing order, each of at most `shard_records` records and, but for one alone, `shard_bytes`."""
    shard: list[Record] = []
    size = 0
    for record in records:
        more = record.size_bytes or 0
        if shard and (len(shard) == shard_records or size + more > shard_bytes):
            yield shard
            shard, size = [], 0
        shard.append(record)
        size += more
    if shard:
        yield shard


def write_manifest(prefix: str, shards: Iterable[list[Record]]) -> ManifestSize:
    """Write the manifest as `<prefix>00000.parquet` and so on: one row group per shard, `SHARDS_PER_FILE` in a file."""
    records = count = 0
    pending: list[pa.Table] = []
    for shard in shards:
        pending.append(manifest_table(shard, count, records))
        records, count = records + len(shard), count + 1
        if len(pending) == SHARDS_PER_FILE:
            _write_file(prefix, count, pending)
            pending = []
    if pending:
        _write_file(prefix, count, pending)
    return ManifestSize(records, count)


def manifest_table(shard: list[Record], number: int, first_id: int) -> pa.Table:
    """Return the manifest rows of a shard's records, whose ids begin at `first_id`."""
    columns = {field.name: [getattr(record, field.name) for record in shard] for field in fields(Record)}
    columns["record_id"] = list(range(first_id, first_id + len(shard)))
    columns["shard"] = [number] * len(shard)
    return pa.table(columns, schema=MANIFEST)


def _write_file(prefix: str, shards_so_far: int, tables: list[pa.Table]) -> None:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, MANIFEST, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
    storage.write_bytes(f"{prefix}{(shards_so_far - 1) // SHARDS_PER_FILE:05d}.parquet", sink.getvalue().to_pybytes())


def file_count(shards: int) -> int:
    """Return the number of files that hold a manifest of so many shards."""
    return -(-shards // SHARDS_PER_FILE)


def read_shards(prefix: str, shards: Iterable[int]) -> Iterator[tuple[int, pa.Table]]:
    """Yield these shards, in their order, with their manifest rows; a file is read once, and one is held at a time."""
    for number, group in groupby(shards, key=lambda shard: shard // SHARDS_PER_FILE):
        tables = read_manifest_file(prefix, number)
        for shard in group:
            yield shard, tables[shard % SHARDS_PER_FILE]


def shuffled_files(shards: Iterable[int], rng: random.Random) -> list[int]:
    """Return shards with those of one manifest file together, and the files in another order."""
    files = [list(group) for _, group in groupby(shards, key=lambda shard: shard // SHARDS_PER_FILE)]
    rng.shuffle(files)
    return [shard for file in files for shard in file]


def read_manifest_file(prefix: str, number: int) -> list[pa.Table]:
    """Return the manifest rows of each shard of one file."""
    with storage.ours(f"{prefix}{number:05d}.parquet", MANIFEST) as file:
        return [file.read_row_group(index) for index in range(file.num_row_groups)]


def shard_sizes(prefix: str, shards: int) -> list[int]:
    """Return the number of records of each shard, from the files' footers."""

    def sizes_in(number: int) -> list[int]:
        with storage.ours(f"{prefix}{number:05d}.parquet", MANIFEST) as file:
            return [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]

    with ThreadPoolExecutor(8) as pool:
        return [size for sizes in pool.map(sizes_in, range(file_count(shards))) for size in sizes]


def find_records(prefix: str, record_ids: list[int]) -> dict[int, Record]:
    """Return the records with these ids; row groups that cannot hold one are not read."""
    table = _where(prefix, "record_id", record_ids)
    return dict(zip(table["record_id"].to_pylist(), records_of(table), strict=True))


def last_moments_ms(prefix: str, uris: list[str]) -> dict[str, int]:
    """Return the moment of each video's last sampled frame."""
    table = _where(prefix, "uri", uris).group_by("uri").aggregate([("time_ms", "max")])
    return dict(zip(table["uri"].to_pylist(), table["time_ms_max"].to_pylist(), strict=True))


def _where(prefix: str, column: str, values: Sequence[Any]) -> pa.Table:
    """Return the manifest's rows in which a column has one of some values."""
    folder, _, start = prefix.rpartition("/")
    found = [MANIFEST.empty_table()]
    for name in storage.list_names(folder) if values else ():
        if name.startswith(start):
            with storage.ours(storage.join(folder, name), MANIFEST) as file:
                rows = file.read_row_groups(storage.groups_that_may_hold(file, column, values))
            found.append(rows.filter(pc.is_in(rows[column], pa.array(values))).select(MANIFEST.names).cast(MANIFEST))
    return pa.concat_tables(found)


def records_of(table: pa.Table) -> list[Record]:
    """Return manifest rows as records, in order."""
    names = [field.name for field in fields(Record)]
    return [Record(**row) for row in table.select(names).to_pylist()]
