"""The index of a container: a Parquet file of its entries. The process that lists the container writes it, the driver reads it.

An index is kept while its container stays the same: in this user's cache and, if the caller names one, in a folder beside a run
or a table, which outlives this machine.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fer_pipeline.archive.files import MOST_BYTES, File, Selection, require_name, valid_text
from fer_pipeline.archive.formats import FORMATS
from fer_pipeline.archive.record import Opening, Record, Skipped
from fer_pipeline.base import storage
from fer_pipeline.base.boundary import as_record_error
from fer_pipeline.base.memory import bounded_read
from fer_pipeline.base.storage import parquet
from fer_pipeline.base.temporary import temporary_folder

INDEX = pa.schema(
    [
        pa.field("name", pa.string()),  # of a member, or of an entry that is not a record
        pa.field("is_record", pa.bool_(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("stored_bytes", pa.int64()),
        pa.field("size_bytes", pa.int64()),
        pa.field("time_ms", pa.int64()),
        pa.field("reason", pa.string()),  # of an entry that is not a record: what it is; of a record: why it cannot be read
    ]
)
INDEX_VERSION = 4
STATE = b"container"
"""Metadata key of the container's size and etag."""
ERROR = b"error"
"""Metadata key of the error that ended the listing; such an index is not kept."""
FAILED = b"failed members"
"""Metadata key of an index with records that cannot be read; such an index is not kept."""
BATCH = 10_000
FLUSH_S = 1.0
"""Longest time that an entry waits to be written."""


def path_of(file: File, how: str) -> Path:
    """Return the path at which the index of a file is kept: the same for all its versions, so that they do not accumulate.

    `how`: what the listing depends on besides the file.
    """
    key = f"{INDEX_VERSION}|{file.uri}|{how}"
    return _folder() / f"{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()}.parquet"


@contextmanager
def unkept_indexes() -> Iterator[Path]:
    """Yield a folder for the indexes of one listing that are not kept, or not kept yet; it is removed afterwards."""
    place = _folder()
    with suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
    with temporary_folder(place if os.access(place, os.W_OK) else Path(tempfile.gettempdir()), "fer-listing-") as folder:
        yield folder


def _folder() -> Path:
    return storage.cache_folder() / "indexes"


def _state(file: File) -> bytes:
    return f"{file.size_bytes}|{file.etag}".encode("utf-8", "surrogateescape")


def is_kept(path: Path, file: File, beside: str | None) -> bool:
    """Tell whether `path` has the index of this version of a file; if not, try to copy it from the folder `beside`."""
    if _is_whole(path, file):
        return True
    if beside:
        with suppress(*storage.STORAGE_ERRORS):
            storage.write_bytes(str(path), storage.read_bytes(storage.join(beside, path.name)))
            return _is_whole(path, file)
    return False


def keep(temporary: Path, path: Path, beside: str | None) -> None:
    """Move a complete index to `path`, and copy it to the folder `beside` if that can be written."""
    os.replace(temporary, path)
    if beside:
        with suppress(*storage.STORAGE_ERRORS):
            storage.write_bytes(storage.join(beside, path.name), path.read_bytes())


def _is_whole(path: Path, file: File) -> bool:
    """Tell whether `path` has a valid index of this version of the file.

    Remove a damaged index, or one with more members than the container has bytes, which somebody else must have written.
    """
    try:
        with parquet.Parquet(path, str(path)) as found:
            if (found.metadata.metadata or {}).get(STATE) != _state(file):
                return False
            if not found.schema_arrow.equals(INDEX) or not 0 <= found.metadata.num_rows <= file.size_bytes:
                raise pa.ArrowInvalid("it is not an index of this container")
        return True
    except FileNotFoundError:
        return False
    except (pa.ArrowException, OSError, MemoryError):
        path.unlink(missing_ok=True)
        return False


def error_of(path: Path) -> str | None:
    """Return the error that ended the listing of the container; None if the index is complete."""
    error = _metadata(path).get(ERROR)
    return None if error is None else error.decode()


def may_be_kept(path: Path) -> bool:
    """Tell whether an index is complete and names no member that could not be read: the next listing tries it again."""
    return not {ERROR, FAILED} & set(_metadata(path))


def _metadata(path: Path) -> dict[bytes, bytes]:
    with parquet.Parquet(path, str(path)) as found:
        return found.metadata.metadata or {}


def write_index(name: str, file: dict[str, Any], selection: dict[str, Any], path: str) -> Iterator[str | None]:
    """List a file of the format `name` and write its index to `path`.

    Yield None after each entry, as a sign of life, and the name of a member before it is opened, when all before it is written.

    All arguments are JSON, because this runs in a process of its own (`base/isolated.py`). If a container breaks off, its index
    has the entries before that, and the reason. If the process dies, `rescue_index` finds the entries in a stream beside `path`.
    Raise what is not the file's fault, such as an outage of its store.
    """
    listed, selected, error, has_failed, count = File(**file), Selection(**selection), None, False, 0
    rows, flushed = list[tuple[object, ...]](), time.monotonic()
    options, stream_path = pa.ipc.IpcWriteOptions(compression="zstd"), _stream(Path(path))
    with pa.OSFile(str(stream_path), "wb") as sink, pa.ipc.new_stream(sink, INDEX, options=options) as stream:
        try:
            for entry in FORMATS[name].list_records(listed, selected):
                opening = valid_text(entry.name) if isinstance(entry, Opening) else None
                if not isinstance(entry, Opening):
                    if count == selected.max_members:
                        raise ValueError(f"it holds more than {count} members (--max-members)")
                    count += 1
                    has_failed = has_failed or (isinstance(entry, Record) and entry.error is not None)
                    rows.append(_row(entry))
                if len(rows) == BATCH or opening is not None or time.monotonic() - flushed > FLUSH_S:
                    stream.write_table(_table(rows))
                    rows, flushed = [], time.monotonic()
                yield opening
        except Exception as fault:  # noqa: BLE001 (the boundary around one container)
            # zipfile also raises BadZipFile if a read fails
            if any(storage.says_store_failed(one) for one in (fault, fault.__cause__, fault.__context__)):
                storage.require_store(listed.uri)
            error = as_record_error(fault, "unreadable").reason
        stream.write_table(_table(rows))
    _write(Path(path), listed, error, _batches(stream_path), has_failed)


def rescue_index(path: Path, file: File, error: str) -> None:
    """Write the index of what a process listed before it died: `error` says of what. A torn end of its stream is left out."""

    def whole() -> Iterator[pa.RecordBatch]:
        with suppress(FileNotFoundError, pa.ArrowException, OSError):
            yield from _batches(_stream(path))

    _write(path, file, error, whole())


def _stream(path: Path) -> Path:
    """Return the file beside an index to which its entries are written first."""
    return path.with_name(f"{path.name}.stream")


def _batches(stream: Path) -> Iterator[pa.RecordBatch]:
    with bounded_read(str(stream)), pa.OSFile(str(stream)) as source:
        yield from pa.ipc.open_stream(source)


def _write(path: Path, file: File, error: str | None, batches: Iterator[pa.RecordBatch], has_failed: bool = False) -> None:
    """Write an index, and remove the stream beside it."""
    metadata = {STATE: _state(file)} | ({ERROR: error.encode()} if error else {}) | ({FAILED: b""} if has_failed else {})
    with pq.ParquetWriter(str(path), INDEX.with_metadata(metadata), compression="zstd") as writer:
        for batch in batches:
            writer.write_table(pa.Table.from_batches([batch]).cast(INDEX))
    _stream(path).unlink(missing_ok=True)


def _row(entry: Record | Skipped) -> tuple[object, ...]:
    if isinstance(entry, Skipped):
        return valid_text(entry.name), False, None, None, entry.size_bytes, None, entry.kind
    numbers = entry.offset, entry.stored_bytes, entry.size_bytes, entry.time_ms
    if any(number is not None and not 0 <= number <= MOST_BYTES for number in numbers):
        raise ValueError(f"the member {entry.member!r:.60} has an impossible place or size")
    return entry.member, True, *numbers, entry.error


def _table(rows: list[tuple[object, ...]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(INDEX)
    return pa.table([pa.array(column, field.type) for field, column in zip(INDEX, columns, strict=True)], schema=INDEX)


def read_index(path: Path, file: File) -> Iterator[Record | Skipped]:
    """Yield the entries of a container from its index; raise ValueError for values that this project does not write."""
    with parquet.Parquet(path, str(path)) as found:
        for batch in found.iter_batches(BATCH):
            for name, is_record, offset, stored, size, time_ms, reason in zip(
                *(column.to_pylist() for column in batch), strict=True
            ):
                if name is not None:
                    require_name(name)
                if not all(0 <= number <= MOST_BYTES for number in (offset, stored, size, time_ms) if number is not None):
                    raise ValueError(f"its index has an impossible place or size for '{name[:40]!r}'")
                if is_record:
                    yield Record(file.uri, name, offset, stored, time_ms, size, file.etag, reason)
                else:
                    yield Skipped(name or "", reason or "", size or 0)
