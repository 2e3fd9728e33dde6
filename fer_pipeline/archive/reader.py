"""Reads the bytes of records. Members of a container are read as byte ranges, neighbours by one request."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain, islice

from fer_pipeline.archive.formats import format_at, format_of
from fer_pipeline.archive.formats.images import IMAGE
from fer_pipeline.archive.formats.spec import Frame, OpenFile, ReadRange, SourceFormat
from fer_pipeline.archive.formats.tiffs import TIFF_PAGES
from fer_pipeline.archive.formats.videos import VIDEO, OpenVideo
from fer_pipeline.archive.record import Record
from fer_pipeline.base import storage
from fer_pipeline.base.boundary import as_file_error
from fer_pipeline.base.errors import RecordError

BLOCK_BYTES = 4 * 1024**2
"""Largest block that one request reads for several members."""
SHARD_RECORDS, FEWEST_SHARDS, SMALLEST_SHARD = 64, 16, 4
GAP_BYTES = 64 * 1024
"""Largest gap between two members that is read too."""


def format_of_record(record: Record) -> SourceFormat:
    """Return the format of the file that holds a record, by its name or, if that does not tell, by what it holds.

    Raise RecordError for a member of a file of an unknown format, and what the storage raises.
    """
    by_name = format_of(record.uri)
    if by_name is IMAGE and record.offset is not None:
        return TIFF_PAGES
    if by_name:
        return by_name
    if record.time_ms is not None:
        return VIDEO
    if record.offset is None:
        return IMAGE
    if by_content := format_at(record.uri, record.etag):
        return by_content
    raise RecordError("unreadable", "the file has no supported format")


def shard_size(records: Iterable[Record]) -> tuple[int, Iterator[Record]]:
    """Return how many records a shard gets, and all the records.

    Few records make smaller shards, about `FEWEST_SHARDS`, so that all cores of a machine have some. Rows of tables and frames of
    videos do not: each shard reads them from a place before its first.
    """
    rest = iter(records)
    first = list(islice(rest, FEWEST_SHARDS * SHARD_RECORDS))
    size = SHARD_RECORDS
    if len(first) < FEWEST_SHARDS * SHARD_RECORDS and all(map(_stands_alone, first)):
        size = max(SMALLEST_SHARD, -(-len(first) // FEWEST_SHARDS))
    return size, chain(first, rest)


def _stands_alone(record: Record) -> bool:
    """Return whether a record is read by itself: a plain file, or a range of bytes."""
    return record.time_ms is None and (record.offset is None or _span(record) is not None)


def blocks(records: Iterable[Record | RecordError]) -> Iterator[list[Record | RecordError]]:
    """Yield records in blocks that one request can read: neighbours with spans in one file. Every other record is alone."""
    block: list[Record | RecordError] = []
    start = 0
    last: tuple[str, int, int] | None = None
    for record in records:
        span = _span(record)
        if not (block and last and span and _follows(span, last) and span[2] - start <= BLOCK_BYTES):
            if block:
                yield block
            block, start = [], span[1] if span else 0
        block.append(record)
        last = span
    if block:
        yield block


def _span(record: Record | RecordError) -> tuple[str, int, int] | None:
    """Return the file, start and end of a record's bytes; None if the record has no byte range."""
    if isinstance(record, RecordError) or record.offset is None:
        return None
    with suppress(RecordError, *storage.STORAGE_ERRORS):  # read alone, it gives its own error
        span = format_of_record(record).span(record)
        return span and (record.uri, *span)
    return None


def _etag(record: Record | RecordError) -> str | None:
    return record.etag if isinstance(record, Record) else None


def _follows(span: tuple[str, int, int], last: tuple[str, int, int]) -> bool:
    return span[0] == last[0] and last[1] <= span[1] <= last[2] + GAP_BYTES


def record_error(record: Record, error: Exception) -> RecordError:
    """Return `error` as the record's error, or ChangedError if the file has changed, which explains every other error.

    Raise OutageError if the store is down (`as_file_error`).
    """
    as_read = as_file_error(record.uri, error, "unreadable")
    try:
        storage.require_version(record.uri, record.etag)
    except RecordError as changed:
        return changed
    except storage.STORAGE_ERRORS:
        return as_read
    return as_read


class RecordReader:
    """Reads records. Containers stay open until `close`. Several threads may call it."""

    def __init__(self, image_column: str | None = None) -> None:
        self.image_column = image_column
        self._opened: dict[str, OpenFile] = {}
        self._lock = threading.Lock()

    def read_block(self, block: list[Record | RecordError]) -> list[bytes | RecordError]:
        """Return the encoded image of each record of a block (`blocks`), or the error of that record."""
        window = self._window(block) if len(block) > 1 else None
        return [self._try(record, window) for record in block]

    def _window(self, block: list[Record | RecordError]) -> ReadRange | None:
        """Return a function that reads from one request for the whole block, which it makes at its first call."""
        first, last = _span(block[0]), _span(block[-1])
        assert first and last
        uri, start, size, etag = first[0], first[1], last[2] - first[1], _etag(block[0])
        read: list[bytes] = []

        def read_range(offset: int, wanted: int) -> bytes:
            if not read:
                try:
                    read.append(storage.read_range(uri, start, size, etag))
                except storage.STORAGE_ERRORS:
                    read.append(b"")  # each record is read alone, which gives its own error
            if offset + wanted > start + len(read[0]):  # a header longer than usual
                return storage.read_range(uri, offset, wanted, etag)
            return read[0][offset - start : offset - start + wanted]

        return read_range

    def _try(self, record: Record | RecordError, window: ReadRange | None) -> bytes | RecordError:
        if isinstance(record, RecordError):
            return record
        try:
            return self.read(record, window)
        except RecordError as error:
            return error

    def read(self, record: Record, window: ReadRange | None = None) -> bytes:
        """Return the encoded image, from `window` if its block is read already. Raise RecordError if it cannot be read."""
        if record.error:
            raise RecordError("unreadable", record.error)
        try:
            data = self._file(record).read(record, window or partial(storage.read_range, record.uri, etag=record.etag))
        except Exception as error:
            raise record_error(record, error) from error
        if data is None:
            raise RecordError("unreadable", "the row holds no image")
        if isinstance(data, Frame):
            raise RecordError("unreadable", "the file is a video by its name, and was listed as an image: list it again")
        if record.member is not None and record.size_bytes is not None and len(data) != record.size_bytes:
            truncated = ValueError(f"the container holds {len(data)} of the member's {record.size_bytes} bytes")
            raise record_error(record, truncated)
        return data

    def frame(self, record: Record) -> list[bytes | Frame | RecordError]:
        """Return the frame of a record, or its error, as the only item. Its video is opened, but no frame is decoded yet."""
        try:
            data = self._file(record).read(record, partial(storage.read_range, record.uri, etag=record.etag))
        except Exception as error:  # noqa: BLE001 (the boundary around one record)
            return [as_file_error(record.uri, error, "undecodable")]
        return [data or RecordError("undecodable", "there is no frame")]

    def release(self, uri: str) -> None:
        """Close a file that is a video. A container stays open for the records behind its video."""
        with self._lock:
            if uri in self._opened and isinstance(self._opened[uri], OpenVideo):
                self._opened.pop(uri).close()

    def _file(self, record: Record) -> OpenFile:
        """Open the record's file and return it. A container stays open for the next records."""
        source_format = format_of_record(record)
        if not source_format.is_container:
            return source_format.open(record.uri, record.etag, self.image_column)
        with self._lock:
            if record.uri not in self._opened:
                self._opened[record.uri] = source_format.open(record.uri, record.etag, self.image_column)
            return self._opened[record.uri]

    def close(self) -> None:
        """Close all open files."""
        for opened in self._opened.values():
            opened.close()
        self._opened.clear()
