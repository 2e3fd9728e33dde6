"""Parquet files with encoded images in their rows, such as Hugging Face datasets and this project's own samples."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from fer_pipeline.archive.files import File, Selection
from fer_pipeline.archive.formats.rows import READ_BYTES, OpenRows, chosen_column, element_records, keyed_by_column
from fer_pipeline.archive.formats.spec import SourceFormat
from fer_pipeline.archive.record import Record, Skipped
from fer_pipeline.base import storage
from fer_pipeline.base.storage import parquet

ROWS_PER_BYTE = 64
"""Largest plausible number of rows per byte of a file: null rows are counted, not stored."""


def list_rows(file: File, selection: Selection) -> Iterator[Record | Skipped]:
    """Yield a record for each row, or each image in a row's list, or the file as skipped if it holds no images.

    Lists cost a pass over their column: only it tells how long they are.
    """
    with parquet.opened(file.uri) as opened:
        _require_plausible(opened.metadata, file.size_bytes, selection.max_members)
        column = chosen_column(file, opened.schema_arrow, selection)
        if isinstance(column, Skipped):
            yield column
        elif column.in_list is None:
            yield from (Record(file.uri, f"row {row}", row, etag=file.etag) for row in range(opened.metadata.num_rows))
        else:
            row = 0
            for batch in opened.iter_batches(column.batch_rows, columns=[column.path], use_threads=False):
                yield from element_records(file, column, batch, row, row)
                row += len(batch)


def _require_plausible(metadata: Any, size_bytes: int, most: int) -> None:
    """Raise ValueError if the footer contradicts its row groups, or claims more rows than the bytes can hold."""
    groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    if metadata.num_rows < 0 or min(groups, default=0) < 0 or sum(groups) != metadata.num_rows:
        raise ValueError(f"its footer claims {metadata.num_rows} rows, its row groups {sum(groups)}")
    if metadata.num_rows > min(most, ROWS_PER_BYTE * size_bytes):
        raise ValueError(f"it claims {metadata.num_rows} rows, more than its {size_bytes} bytes or --max-members allow")


class OpenParquet(OpenRows):
    """The images of one Parquet file, read forwards in small batches: rows read in order cost one pass over their row groups."""

    def _schema(self) -> pa.Schema:
        # Without a buffer, whole row groups and all data that was read would stay in memory.
        self._file = parquet.Parquet(self._opened, self.uri, pre_buffer=False, buffer_size=READ_BYTES)
        return self._file.schema_arrow

    def _begin(self) -> None:
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._next_row = -1
        self._held: dict[int, list[Any]] = {}

    def _read(self, row: int) -> Any:
        while True:
            for start, images in self._held.items():
                if start <= row < start + len(images):
                    return images[row - start]
            if not 0 <= self._next_row <= row:
                self._start_at(row)
            self._advance()

    def _advance(self) -> None:
        """Keep the next batch and the one before it, which parallel threads may still read."""
        batch = next(self._batches, None)
        storage.require_unchanged(self.uri, self.etag)
        if batch is None:
            raise ValueError("the file ended early")
        images = self._column.images(batch)
        self._held = dict(list(self._held.items())[-1:]) | {self._next_row: images}
        self._next_row += len(images)

    def _start_at(self, row: int) -> None:
        """Start reading at the row group that holds the row."""
        first, metadata = 0, self._file.metadata
        for group in range(metadata.num_row_groups):
            if row < first + metadata.row_group(group).num_rows:
                groups = list(range(group, metadata.num_row_groups))
                column = self._column
                self._batches = self._file.iter_batches(column.batch_rows, groups, [column.path], use_threads=False)
                self._next_row, self._held = first, {}
                return
            first += metadata.row_group(group).num_rows
        raise ValueError(f"the file has {first} rows")


PARQUET = SourceFormat(
    name="parquet",
    extensions=(".parquet", ".pq", ".parq"),
    list_records=list_rows,
    open=OpenParquet,
    index_key=keyed_by_column,
)
