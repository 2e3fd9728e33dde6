"""Reads records' bytes, by byte range where a container holds them, neighbours in a container by one request."""

import threading
from collections.abc import Iterable, Iterator
from functools import partial

from fer_pipeline.core import storage
from fer_pipeline.core.boundary import as_file_error
from fer_pipeline.core.errors import RecordError
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.formats import format_of
from fer_pipeline.sources.formats.images import IMAGE
from fer_pipeline.sources.formats.spec import Frame, OpenFile, ReadRange, SourceFormat

BLOCK_BYTES = 4 * 1024**2
"""Most that is read by one request for several members."""
GAP_BYTES = 64 * 1024
"""Most that is read in vain between two of them."""


def format_of_record(record: Record) -> SourceFormat:
    """Return the format of the file that holds a record; raise RecordError for a place in a file of no known format."""
    found = format_of(record.uri)
    if found is None and (record.offset is not None or record.time_ms is not None):
        raise RecordError("unreadable", "the file is of no format that is known here")
    return found or IMAGE


def blocks(records: Iterable[Record | RecordError]) -> Iterator[list[Record | RecordError]]:
    """Yield records in runs that one request can read: neighbours in a file with spans; every other record is alone."""
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
    """Return a record's file and its first and last byte there; None for one without such a place."""
    if isinstance(record, RecordError) or record.offset is None:
        return None
    source_format = format_of(record.uri)
    place = source_format.span(record) if source_format else None
    return place and (record.uri, *place)


def _etag(record: Record | RecordError) -> str | None:
    return record.etag if isinstance(record, Record) else None


def _follows(span: tuple[str, int, int], last: tuple[str, int, int]) -> bool:
    return span[0] == last[0] and last[1] <= span[1] <= last[2] + GAP_BYTES


def why(record: Record, error: Exception) -> RecordError:
    """Return the record's error: that its file is another one by now, where it is, whatever followed from that.

    Raise OutageError where the store is down (`as_file_error`).
    """
    found = as_file_error(record.uri, error, "unreadable")
    try:
        storage.require_version(record.uri, record.etag)
    except RecordError as other:
        return other
    except storage.STORAGE_ERRORS:
        return found
    return found


class RecordReader:
    """Reads records; what it opened stays open until it is closed. Safe to call from several threads."""

    def __init__(self, image_column: str | None = None) -> None:
        self.image_column = image_column
        self._opened: dict[str, OpenFile] = {}
        self._lock = threading.Lock()

    def read_block(self, block: list[Record | RecordError]) -> list[bytes | RecordError]:
        """Return the encoded image of each record of one of `blocks`, or why there is none."""
        window = self._window(block) if len(block) > 1 else None
        return [self._try(record, window) for record in block]

    def _window(self, block: list[Record | RecordError]) -> ReadRange | None:
        """Read from the first to the last of neighbours, when the first of them is asked for; None where that fails."""
        first, last = _span(block[0]), _span(block[-1])
        assert first and last
        uri, start, size, etag = first[0], first[1], last[2] - first[1], _etag(block[0])
        read: list[bytes] = []

        def read_range(offset: int, wanted: int) -> bytes:
            if not read:
                try:
                    read.append(storage.read_range(uri, start, size, etag))
                except storage.STORAGE_ERRORS:
                    read.append(b"")  # each record is read alone, and says what is wrong
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
        """Return the encoded image, from `window` where its container was read already; raise RecordError `unreadable`."""
        if record.error:
            raise RecordError("unreadable", record.error)
        try:
            data = self._file(record).read(record, window or partial(storage.read_range, record.uri, etag=record.etag))
        except Exception as error:
            raise why(record, error) from error
        if data is None:
            raise RecordError("unreadable", "the row holds no image")
        assert not isinstance(data, Frame)
        if record.member is not None and record.size_bytes is not None and len(data) != record.size_bytes:
            held = ValueError(f"the container holds {len(data)} of the member's {record.size_bytes} bytes")
            raise why(record, held)
        return data

    def _file(self, record: Record) -> OpenFile:
        """Return the record's file, opened; a container is kept for the records that follow."""
        source_format = format_of_record(record)
        if not source_format.is_container:
            return source_format.open(record.uri, record.etag, self.image_column)
        with self._lock:
            if record.uri not in self._opened:
                self._opened[record.uri] = source_format.open(record.uri, record.etag, self.image_column)
            return self._opened[record.uri]

    def close(self) -> None:
        """Close what is open."""
        for opened in self._opened.values():
            opened.close()
        self._opened.clear()
