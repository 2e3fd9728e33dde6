"""Arrow files (`.arrow`, Feather) and streams (the cache of Hugging Face's `datasets`) with encoded images in their rows."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from fer_pipeline.archive.files import File, Selection
from fer_pipeline.archive.formats.rows import OpenRows, chosen_column, element_records, keyed_by_column, open_table
from fer_pipeline.archive.formats.spec import SourceFormat
from fer_pipeline.archive.record import Record, Skipped
from fer_pipeline.base import storage
from fer_pipeline.base.isolated import sign_of_life
from fer_pipeline.base.memory import ReadTooLargeError, bounded_read
from fer_pipeline.base.storage import parquet

FILE, FEATHER_1 = b"ARROW1", b"FEA1"
"""With which files begin; a stream has no such mark."""
CONTINUES, ENDS = b"\xff\xff\xff\xff", b"\0\0\0\0"
"""With the first begins each message of a stream since 2019, also the last one, which has nothing but the second."""
BATCH = 2**24
"""The place of a row is its number in its batch, and this many times the number of the batch."""


def list_rows(file: File, selection: Selection) -> Iterator[Record | Skipped]:
    """Yield a record for each row, or each image in a row's list, or the file as skipped if it holds no images.

    It costs a pass over the column of images: only that tells how long batches and lists are. Raise ValueError at the end if a
    stream may go on.
    """
    with open_table(file.uri, file.etag or None) as opened:
        schema = _schema(opened, file.uri)
        column = chosen_column(file, schema, selection)
        if isinstance(column, Skipped):
            yield column
            return
        batches, row = Batches(opened, file.uri, schema.get_field_index(column.fields[0])), 0
        for number, batch in enumerate(batches.all()):
            if len(batch) > BATCH or number * BATCH >= 2**39:
                raise ValueError("it has too many batches, or too many rows in one: write it as Parquet")
            yield from element_records(file, column, batch, row, number * BATCH)
            row += len(batch)
        batches.require_end(file.size_bytes)


def _schema(opened: Any, what: str) -> pa.Schema:
    """Return the schema of an open file or stream. Raise ValueError for damage, old versions, and types of Python."""
    head = opened.read(len(FILE))
    if not head or head.startswith(FEATHER_1):
        raise ValueError("it is Feather of version 1: write it as version 2, or as Parquet" if head else "the file is empty")
    with bounded_read(what):
        schema = _reader(opened).schema
    parquet.require_plain(schema, what)
    if len(set(schema.names)) < len(schema.names):
        raise ValueError("it has two columns of one name: rename one")
    return schema


def _reader(opened: Any, fields: list[int] | None = None) -> Any:
    """Return a reader from the start on; `fields`: the numbers of the columns that it reads."""
    opened.seek(0)
    is_file = opened.read(len(FILE)) == FILE
    opened.seek(0)
    options = pa.ipc.IpcReadOptions(included_fields=fields or [], use_threads=False)
    return pa.ipc.open_file(opened, options=options) if is_file else pa.ipc.open_stream(opened, options=options)


class Batches:
    """The batches of one column of an open file or stream. Arrow trusts what it reads, so each is validated."""

    def __init__(self, opened: Any, what: str, field: int) -> None:
        self._opened, self._what, self._field = opened, what, field
        self._start()

    def _start(self) -> None:
        with bounded_read(self._what):
            self._reader = _reader(self._opened, [self._field])
        self._count: int | None = getattr(self._reader, "num_record_batches", None)
        self._next = 0

    def all(self) -> Iterator[pa.RecordBatch]:
        """Yield all batches."""
        while (batch := self.read(self._next)) is not None:
            yield batch

    def read(self, number: int) -> pa.RecordBatch | None:
        """Return a batch; None behind the last one. A file is read there, a stream from where it stands, or from its start."""
        if self._count is None and number < self._next:
            self._start()
        while True:
            sign_of_life()
            try:
                with bounded_read(self._what):
                    batch = self._advance(number)
                    if batch is not None and self._next > number:
                        batch.validate(full=True)
            except ReadTooLargeError as error:
                hint = "its batches are larger than memory allows: write it with smaller ones, or as Parquet"
                raise ReadTooLargeError(f"{error}: {hint}") from error
            if batch is None or self._next > number:
                return batch

    def _advance(self, number: int) -> pa.RecordBatch | None:
        """Return the batch of a file, or the next one of a stream; None behind the last one."""
        if self._count is not None:
            self._next = number + 1
            return self._reader.get_batch(number) if number < self._count else None
        try:
            batch = self._reader.read_next_batch()
        except StopIteration:
            return None
        self._next += 1
        return batch

    def require_end(self, size_bytes: int) -> None:
        """Raise ValueError if a stream that was read does not end with a mark, or something follows."""
        if self._count is not None:
            return
        place = self._opened.tell()
        self._opened.seek(0)
        mark = (CONTINUES if self._opened.read(len(CONTINUES)) == CONTINUES else b"") + ENDS
        self._opened.seek(max(0, place - len(mark)))
        if self._opened.read(len(mark)) != mark:
            raise ValueError(f"the stream ends at byte {place} without a mark: it may be cut off")
        if place < size_bytes:
            raise ValueError(f"{size_bytes - place} bytes follow the end of the stream at byte {place}, which are not read")


class OpenArrow(OpenRows):
    """The images of one Arrow file, read by batch, or of a stream, which is read from its start on."""

    def _schema(self) -> pa.Schema:
        schema = _schema(self._opened, self.uri)
        self._names = schema.names
        return schema

    def _begin(self) -> None:
        self._batches = Batches(self._opened, self.uri, self._names.index(self._column.fields[0]))
        self._held: dict[int, pa.RecordBatch] = {}

    def _read(self, row: int) -> Any:
        number, place = divmod(row, BATCH)
        if number not in self._held:
            batch = self._batches.read(number)
            storage.require_unchanged(self.uri, self.etag)
            if batch is None:
                raise ValueError("the file ended early")
            self._held = dict(list(self._held.items())[-1:]) | {number: batch}  # parallel threads may still read the last one
        if place >= len(self._held[number]):
            raise ValueError(f"its batch {number} has {len(self._held[number])} rows")
        return self._column.images(self._held[number].slice(place, 1))[0]


ARROW = SourceFormat(
    name="arrow",
    extensions=(".arrow", ".feather"),
    list_records=list_rows,
    open=OpenArrow,
    index_key=keyed_by_column,
)
