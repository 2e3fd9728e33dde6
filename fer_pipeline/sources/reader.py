"""Reads records' bytes, by byte range where a container holds them."""

import threading
from typing import IO

from fer_pipeline.core import storage
from fer_pipeline.core.errors import RecordError
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.containers import BROKEN
from fer_pipeline.sources.kinds import kind_of
from fer_pipeline.sources.parquets import Rows
from fer_pipeline.sources.tars import unpack
from fer_pipeline.sources.zips import read_zip_member


class Reader:
    """Reads records; what it opened stays open until it is closed. Safe to call from several threads."""

    def __init__(self, image_column: str | None = None) -> None:
        self.image_column = image_column
        self._rows: dict[str, Rows] = {}
        self._unpacked: dict[str, IO[bytes] | None] = {}
        self._lock = threading.Lock()

    def read(self, record: Record) -> bytes:
        """Return the encoded image; raise RecordError `unreadable` where it cannot be had."""
        if record.error:
            raise RecordError("unreadable", record.error)
        try:
            data = storage.read_bytes(record.uri) if record.offset is None else self._read_member(record, record.offset)
        except BROKEN as error:
            raise RecordError("unreadable", storage.reason(error)) from error
        if data is None:
            raise RecordError("unreadable", "the row holds no image")
        if record.member is not None and record.size_bytes is not None and len(data) != record.size_bytes:
            raise RecordError("unreadable", f"the container holds {len(data)} of the member's {record.size_bytes} bytes")
        return data

    def _read_member(self, record: Record, offset: int) -> bytes | None:
        size, kind = record.size_bytes or 0, kind_of(record.uri)
        if kind == "zip":
            return read_zip_member(record.uri, offset, record.stored_bytes or 0, size)
        with self._lock:
            if kind == "parquet":
                if record.uri not in self._rows:
                    self._rows[record.uri] = Rows(record.uri, self.image_column)
                return self._rows[record.uri].read(offset)
            if record.uri not in self._unpacked:
                self._unpacked[record.uri] = unpack(record.uri)
            unpacked = self._unpacked[record.uri]
            if unpacked:
                unpacked.seek(offset)
                return unpacked.read(size)
        return storage.read_range(record.uri, offset, size)

    def close(self) -> None:
        """Close what is open."""
        for rows in self._rows.values():
            rows.close()
        for unpacked in self._unpacked.values():
            if unpacked:
                unpacked.close()
        self._rows.clear()
        self._unpacked.clear()
