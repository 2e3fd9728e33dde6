"""The index of a container: what it holds, listed once and remembered while the container is the same.

It is kept in this user's cache and, where one is named, in a folder that outlives this machine: beside a run or a table.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from fer_pipeline.core import storage
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.files import MOST_BYTES, File, require_name

INDEX = pa.schema(
    [
        pa.field("name", pa.string()),  # of a member, or of what is none of our records
        pa.field("is_record", pa.bool_(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("stored_bytes", pa.int64()),
        pa.field("size_bytes", pa.int64()),
        pa.field("time_ms", pa.int64()),
    ]
)
INDEX_VERSION = 2
STATE = b"container"
"""Key of an index's metadata: size and etag of the container that it is of."""
BATCH = 10_000
FORGOTTEN_S = 3600.0
"""Age from which an index in the making is one that a killed listing left."""


def remembered(
    file: File,
    how: str,
    entries: Iterator[Record | str],
    beside: str | None = None,
    elsewhere: Callable[[File], None] | None = None,
) -> Iterator[Record | str]:
    """Yield the entries of a container from its index, where there is one, or make it on the way.

    `how` says what the listing depends on besides the file; `beside` is the folder that outlives this machine, into which
    `elsewhere` puts the index from another one, if it can.
    """
    if not file.etag:  # a store that does not say when a file changes
        yield from entries
        return
    path = _path(file, how)
    if _is_whole(path, file) or (beside and _fetched(path, beside, file)):
        yield from _read(path, file)
        return
    if beside and elsewhere:
        elsewhere(file)
        if _fetched(path, beside, file):
            yield from _read(path, file)
            return
    index = _NewIndex(path, file)
    try:
        for entry in entries:
            index.add(entry)
            yield entry
        index.finish(beside)
    finally:
        index.discard()


def remove_forgotten() -> None:
    """Remove what listings that were killed have left in the cache."""
    for left in _folder().glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > FORGOTTEN_S:
                left.unlink()


def _folder() -> Path:
    return storage.cache_folder() / "indexes"


def _path(file: File, how: str) -> Path:
    """Return where the index of a file is kept: one name for all its versions, so that they do not pile up."""
    key = f"{INDEX_VERSION}|{file.uri}|{how}"
    return _folder() / f"{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()}.parquet"


def _state(file: File) -> bytes:
    return f"{file.size_bytes}|{file.etag}".encode("utf-8", "surrogateescape")


def _is_whole(path: Path, file: File) -> bool:
    """Tell whether there is an index of this version of the file.

    One that a failing machine left torn, or that somebody else put in its place, is removed: a container has no more members
    than bytes.
    """
    try:
        with storage.Parquet(path, str(path)) as index:
            if (index.metadata.metadata or {}).get(STATE) != _state(file):
                return False
            if not index.schema_arrow.equals(INDEX) or not 0 <= index.metadata.num_rows <= file.size_bytes:
                raise pa.ArrowInvalid("it is no index of this container")
        return True
    except FileNotFoundError:
        return False
    except (pa.ArrowException, OSError, MemoryError):
        path.unlink(missing_ok=True)
        return False


def _fetched(path: Path, beside: str, file: File) -> bool:
    """Copy an index from the folder that outlives this machine, if it has it; tell whether it is there now."""
    with suppress(*storage.STORAGE_ERRORS):
        storage.write_bytes(str(path), storage.read_bytes(storage.join(beside, path.name)))
        return _is_whole(path, file)
    return False


class _NewIndex:
    """An index in the making. Where it cannot be written there will be none, and the next run lists the container again."""

    def __init__(self, path: Path, file: File) -> None:
        self.path, self.temporary = path, path.with_name(f".{uuid4().hex}.tmp")
        self.rows: list[tuple[object, ...]] = []
        self.writer: pq.ParquetWriter | None = None
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            schema = INDEX.with_metadata({STATE: _state(file)})
            self.writer = pq.ParquetWriter(str(self.temporary), schema, compression="zstd")

    def add(self, entry: Record | str) -> None:
        if isinstance(entry, Record):
            self.rows.append((entry.member, True, entry.offset, entry.stored_bytes, entry.size_bytes, entry.time_ms))
        else:
            self.rows.append((entry.encode("utf-8", "backslashreplace").decode(), False, None, None, None, None))
        if len(self.rows) == BATCH:
            self._flush()

    def _flush(self) -> None:
        try:
            if self.writer:
                self.writer.write_table(_table(self.rows))
        except OSError:
            self.discard()
        self.rows = []

    def finish(self, beside: str | None) -> None:
        """Put the index in its place, and beside the run or table."""
        self._flush()
        if not self.writer:
            return
        with suppress(*storage.STORAGE_ERRORS):
            self.writer.close()
            os.replace(self.temporary, self.path)
            if beside:
                storage.write_bytes(storage.join(beside, self.path.name), self.path.read_bytes())

    def discard(self) -> None:
        """Remove what is left of an index that was not finished."""
        if self.writer:
            with suppress(OSError):
                self.writer.close()
        self.writer = None
        with suppress(OSError):
            self.temporary.unlink(missing_ok=True)


def _table(rows: Sequence[tuple[object, ...]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(INDEX)
    return pa.table([pa.array(column, field.type) for field, column in zip(INDEX, columns, strict=True)], schema=INDEX)


def _read(path: Path, file: File) -> Iterator[Record | str]:
    with storage.Parquet(path, str(path)) as index:
        for batch in index.iter_batches(BATCH):
            for name, is_record, offset, stored, size, time_ms in zip(*(column.to_pylist() for column in batch), strict=True):
                if name is not None:
                    require_name(name)
                if not all(0 <= number <= MOST_BYTES for number in (offset, stored, size, time_ms) if number is not None):
                    raise ValueError(f"its index tells of the impossible place of '{name[:40]!r}'")
                yield Record(file.uri, name, offset, stored, time_ms, size, file.etag) if is_record else name
