"""A record: one image or video frame of an archive, and where its bytes are."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from random import Random
from typing import TypeVar

import pyarrow as pa

Item = TypeVar("Item")
UNREADABLE = "cannot be read"
"""In the error of a container, or of a file that was opened to learn its kind: such a record is listed whatever its name."""


@dataclass(frozen=True, slots=True)
class Record:
    """One image or video frame to label, and where its bytes are."""

    uri: str
    """The file, or the container that holds the image."""
    member: str | None = None
    """The name in the container; `row 7` in a Parquet file."""
    offset: int | None = None
    """The position in the container. `archive.formats.FORMATS` says what it means in each source format."""
    stored_bytes: int | None = None
    """Size in the container of a video, or of a compressed member."""
    time_ms: int | None = None
    """The time of a video frame."""
    size_bytes: int | None = None
    """Size of the encoded image; None for a frame of a video, and if the listing does not know it."""
    etag: str | None = None
    """The etag of the file on a store, or the mtime in nanoseconds on a local disk."""
    error: str | None = None
    """Why the record cannot be read, if the listing already found that."""
    attempt: int = 1
    """The number of nights that have tried this record, this one included."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or a member that gets no record."""

    name: str
    """The name of the member; the uri of a file."""
    kind: str = ""
    """What it is and why it gets no record, in a few words, such as `copy in @eaDir`; empty for what is no media."""
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Opening:
    """What a lister yields before it opens a member, which may take long, or kill or hold up its process."""

    name: str


def split_into_shards(records: Iterable[Record], shard_records: int, shard_bytes: int) -> Iterator[list[Record]]:
    """Yield shards in listing order, each of at most `shard_records` records and `shard_bytes`; a larger record is alone."""
    shard: list[Record] = []
    size = 0
    for record in records:
        record_bytes = record.size_bytes or 0
        if shard and (len(shard) == shard_records or size + record_bytes > shard_bytes):
            yield shard
            shard, size = [], 0
        shard.append(record)
        size += record_bytes
    if shard:
        yield shard


def sampled(items: Iterable[Item], count: int, rng: Random) -> list[Item]:
    """Return `count` of the items, chosen at random, in their order (reservoir sampling)."""
    kept: list[tuple[int, Item]] = []
    for number, item in enumerate(items):
        place = number if number < count else rng.randrange(number + 1)
        if place < count:
            kept[place : place + 1] = [(number, item)]
    return [item for _, item in sorted(kept, key=lambda one: one[0])]


def records_of(table: pa.Table) -> list[Record]:
    """Return the rows of a manifest as records, in order."""
    names = [field.name for field in fields(Record)]
    return [Record(**row) for row in table.select(names).to_pylist()]
