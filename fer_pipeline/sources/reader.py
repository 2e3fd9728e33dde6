"""Reads records' bytes, by byte range where a container holds them, neighbours in a container by one request."""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import IO

from fer_pipeline.core import storage
from fer_pipeline.core.errors import RecordError
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.containers import BROKEN
from fer_pipeline.sources.kinds import kind_of
from fer_pipeline.sources.parquets import Rows
from fer_pipeline.sources.tars import unpack
from fer_pipeline.sources.zips import MEMBER_OVERHEAD_BYTES, read_zip_member

BLOCK_BYTES = 4 * 1024**2
"""Most that is read by one request for several members."""
GAP_BYTES = 64 * 1024
"""Most that is read in vain between two of them."""

Range = Callable[[int, int], bytes]
"""Returns the bytes of a container from a place on, so many of them."""


def blocks(records: Iterable[Record | RecordError]) -> Iterator[list[Record | RecordError]]:
    """Yield records in runs that one request can read: neighbours in a tar or zip; every other one is alone."""
    block: list[Record | RecordError] = []
    first = last = None
    for record in records:
        place = _place(record)
        if not (first and last and place and place.follows(last) and place.end - first.start <= BLOCK_BYTES):
            if block:
                yield block
            block, first = [], place
        block.append(record)
        last = place
    if block:
        yield block


@dataclass(frozen=True)
class _Place:
    """From where to where a member stands in its container."""

    uri: str
    start: int
    end: int

    def follows(self, other: "_Place") -> bool:
        return self.uri == other.uri and other.start <= self.start <= other.end + GAP_BYTES


def _place(record: Record | RecordError) -> _Place | None:
    """Return the place of a member of a tar or zip; None for what is none."""
    if isinstance(record, RecordError) or record.offset is None:
        return None
    match kind_of(record.uri):
        case "tar":
            return _Place(record.uri, record.offset, record.offset + (record.size_bytes or 0))
        case "zip":
            size = (record.stored_bytes or 0) + MEMBER_OVERHEAD_BYTES
            return _Place(record.uri, record.offset, record.offset + size)
    return None


class Reader:
    """Reads records; what it opened stays open until it is closed. Safe to call from several threads."""

    def __init__(self, image_column: str | None = None) -> None:
        self.image_column = image_column
        self._rows: dict[str, Rows] = {}
        self._unpacked: dict[str, IO[bytes] | None] = {}
        self._lock = threading.Lock()

    def read_block(self, block: list[Record | RecordError]) -> list[bytes | RecordError]:
        """Return the encoded image of each record of one of `blocks`, or why there is none."""
        window = self._window(block) if len(block) > 1 else None
        return [self._try(record, window) for record in block]

    def _window(self, block: list[Record | RecordError]) -> Range | None:
        """Read from the first to the last of neighbours; None where that fails or they are in a compressed tar."""
        first, last = _place(block[0]), _place(block[-1])
        assert first and last
        try:
            if kind_of(first.uri) == "tar" and self._stream(first.uri):
                return None
            data = storage.read_range(first.uri, first.start, last.end - first.start)
        except BROKEN:
            return None  # each is tried alone, and says what is wrong

        def read(offset: int, size: int) -> bytes:
            if offset + size > first.start + len(data):  # a header longer than usual
                return storage.read_range(first.uri, offset, size)
            return data[offset - first.start : offset - first.start + size]

        return read

    def _try(self, record: Record | RecordError, window: Range | None) -> bytes | RecordError:
        if isinstance(record, RecordError):
            return record
        try:
            return self.read(record, window)
        except RecordError as error:
            return error

    def read(self, record: Record, window: Range | None = None) -> bytes:
        """Return the encoded image, from `window` where its container was read already; raise RecordError `unreadable`."""
        if record.error:
            raise RecordError("unreadable", record.error)
        try:
            if record.offset is None:
                data: bytes | None = storage.read_bytes(record.uri)
            else:
                data = self._read_member(record, record.offset, window or partial(storage.read_range, record.uri))
        except BROKEN as error:
            raise RecordError("unreadable", storage.reason(error)) from error
        if data is None:
            raise RecordError("unreadable", "the row holds no image")
        if record.member is not None and record.size_bytes is not None and len(data) != record.size_bytes:
            raise RecordError("unreadable", f"the container holds {len(data)} of the member's {record.size_bytes} bytes")
        return data

    def _read_member(self, record: Record, offset: int, read: Range) -> bytes | None:
        size = record.size_bytes or 0
        match kind_of(record.uri):
            case "zip":
                return read_zip_member(read, offset, record.stored_bytes or 0, size)
            case "parquet":
                with self._lock:
                    if record.uri not in self._rows:
                        self._rows[record.uri] = Rows(record.uri, self.image_column)
                    return self._rows[record.uri].read(offset)
        stream = self._stream(record.uri)
        if stream is None:
            return read(offset, size)
        with self._lock:
            stream.seek(offset)
            return stream.read(size)

    def _stream(self, uri: str) -> IO[bytes] | None:
        """Return a compressed tar's stream, unpacked once; None for a tar that is not compressed."""
        with self._lock:
            if uri not in self._unpacked:
                self._unpacked[uri] = unpack(uri)
            return self._unpacked[uri]

    def close(self) -> None:
        """Close what is open."""
        for rows in self._rows.values():
            rows.close()
        for unpacked in self._unpacked.values():
            if unpacked:
                unpacked.close()
        self._rows.clear()
        self._unpacked.clear()
