"""The index of a container: what it holds, listed once and remembered while the container is the same."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from fer_pipeline.core import storage
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.files import File

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
INDEX_VERSION = 1
BATCH = 10_000


def remembered(file: File, how: str, entries: Iterator[Record | str]) -> Iterator[Record | str]:
    """Yield the entries of a container from its index, where there is one, or make it on the way.

    `how` says what the listing depends on besides the file.
    """
    key = f"{INDEX_VERSION}|{file.uri}|{file.size_bytes}|{file.etag}|{how}"
    folder = storage.cache_folder() / "indexes"
    path = folder / f"{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()}.parquet"
    if _is_whole(path):
        yield from _read(path, file)
        return
    if not file.etag:  # a store that does not say when a file changes
        yield from entries
        return
    index = _NewIndex(path)
    try:
        for entry in entries:
            index.add(entry)
            yield entry
        index.finish()
    finally:
        index.discard()


def _is_whole(path: Path) -> bool:
    """Tell whether there is an index; one that a failing machine left torn is removed."""
    try:
        pq.read_metadata(path)
    except FileNotFoundError:
        return False
    except (pa.ArrowException, OSError):
        path.unlink(missing_ok=True)
        return False
    return True


class _NewIndex:
    """An index in the making. Where it cannot be written there will be none, and the next run lists the container again."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f".{uuid4().hex}.tmp")
        self.rows: list[tuple[object, ...]] = []
        self.writer: pq.ParquetWriter | None = None
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.writer = pq.ParquetWriter(str(self.temporary), INDEX, compression="zstd")

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

    def finish(self) -> None:
        """Put the index in its place."""
        self._flush()
        if self.writer:
            with suppress(OSError):
                self.writer.close()
                os.replace(self.temporary, self.path)

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
    with pq.ParquetFile(path) as index:
        for batch in index.iter_batches(BATCH):
            for name, is_record, offset, stored, size, time_ms in zip(*(column.to_pylist() for column in batch), strict=True):
                yield Record(file.uri, name, offset, stored, time_ms, size, file.etag) if is_record else name
