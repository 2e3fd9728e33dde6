"""Parquet files with an encoded image in every row, as Hugging Face datasets and this project's own samples are."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa

from fer_pipeline.core import storage
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.files import File, Selection, says_damage
from fer_pipeline.sources.formats.spec import ReadRange, SourceFormat

IMAGE_COLUMNS = ("image", "img", "png", "jpg", "jpeg", "webp", "image_bytes", "bytes", "content", "data")
ROWS_READ = 32
ROWS_PER_BYTE = 64
"""Most rows that a byte of a file can stand for: null rows are counted, not written."""
READ_BYTES = 8 * 1024**2


def image_column(schema: pa.Schema, wanted: str | None = None) -> str | None:
    """Return the path of the column that holds encoded images: `wanted`, or the one that its name and type speak for.

    A struct with binary `bytes` (Hugging Face) counts. Raise ValueError where `wanted` is none.
    """
    paths = {field.name: path for field in schema if (path := _binary_path(field))}
    if wanted:
        if wanted not in paths:
            raise ValueError(f"it has no binary column '{wanted}'; its columns are {', '.join(schema.names)}")
        return paths[wanted]
    named = [paths[name] for name in IMAGE_COLUMNS if name in paths]
    return named[0] if named else next(iter(paths.values()), None) if len(paths) == 1 else None


def _binary_path(field: pa.Field) -> str | None:
    if pa.types.is_struct(field.type):
        index = field.type.get_field_index("bytes")
        return f"{field.name}.bytes" if index >= 0 and _is_binary(field.type.field(index).type) else None
    return field.name if _is_binary(field.type) else None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def list_rows(file: File, selection: Selection) -> Iterator[Record | str]:
    """Yield a record for each row, or the file's name where it holds no images."""
    with storage.opened_parquet(file.uri) as parquet:
        _require_sane(parquet.metadata, file.size_bytes, selection.max_members)
        if image_column(parquet.schema_arrow, selection.image_column) is None:
            yield file.uri
            return
        for row in range(parquet.metadata.num_rows):
            yield Record(file.uri, f"row {row}", row, etag=file.etag)


def _require_sane(metadata: Any, size_bytes: int, most: int) -> None:
    """Raise ValueError for a footer that contradicts its row groups, or claims rows that its bytes cannot hold."""
    groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    if metadata.num_rows < 0 or min(groups, default=0) < 0 or sum(groups) != metadata.num_rows:
        raise ValueError(f"its footer claims {metadata.num_rows} rows, its row groups {sum(groups)}")
    if metadata.num_rows > min(most, ROWS_PER_BYTE * size_bytes):
        raise ValueError(f"it claims {metadata.num_rows} rows, more than its {size_bytes} bytes or --max-members allow")


class OpenParquet:
    """The images of one file, read forwards in small batches: rows asked for in order cost one pass over their row groups."""

    def __init__(self, uri: str, etag: str | None = None, wanted: str | None = None) -> None:
        self.uri, self.etag, self._wanted = uri, etag, wanted
        self._lock = threading.Lock()
        self._broken = ""
        self._opened: Any = None
        self._open()

    def _open(self) -> None:
        """Open, or open again after a read that failed: what a reader holds after that cannot be trusted."""
        local = storage.is_local(self.uri)
        self._opened = pa.OSFile(storage.normalize(self.uri)) if local else storage.open_version(self.uri, self.etag, READ_BYTES)
        # Unbuffered, whole row groups and all that was read would stay in memory.
        self._file = storage.Parquet(self._opened, self.uri, pre_buffer=False, buffer_size=READ_BYTES)
        column = image_column(self._file.schema_arrow, self._wanted)
        storage.require_unchanged(self.uri, self.etag)
        if column is None:
            raise ValueError("it holds no images")
        self._column = column
        self._batches: Iterator[Any] = iter(())
        self._next_row = -1
        self._held: dict[int, list[bytes | None]] = {}

    def read(self, record: Record, read_range: ReadRange) -> bytes | None:
        """Return the image of the record's row, None where it is null; raise ValueError beyond the end.

        A damaged file, or one that fills the memory, is not read on: each row could take as long and as much. After a read that
        failed on the way the file is opened again, once for this row, and for each row that follows.
        """
        with self._lock:
            if self._broken:
                raise ValueError(self._broken)
            for is_last in (False, True):
                try:
                    if self._opened is None:
                        self._open()
                    return self._read(record.offset or 0)
                except (MemoryError, pa.ArrowException, *storage.STORAGE_ERRORS) as error:
                    if says_damage(error) or isinstance(error, MemoryError):
                        self._broken = storage.reason(error)
                        raise
                    self.close()
                    if is_last or storage.says_changed(error):
                        raise
        raise AssertionError("the last try returns or raises")

    def _read(self, row: int) -> bytes | None:
        while True:
            for start, images in self._held.items():
                if start <= row < start + len(images):
                    return images[row - start]
            if not 0 <= self._next_row <= row:
                self._start_at(row)
            self._advance()

    def _start_at(self, row: int) -> None:
        """Begin at the row group that holds `row`."""
        first, metadata = 0, self._file.metadata
        for group in range(metadata.num_row_groups):
            if row < first + metadata.row_group(group).num_rows:
                groups = list(range(group, metadata.num_row_groups))
                self._batches = self._file.iter_batches(ROWS_READ, groups, [self._column], use_threads=False)
                self._next_row, self._held = first, {}
                return
            first += metadata.row_group(group).num_rows
        raise ValueError(f"the file has {first} rows")

    def _advance(self) -> None:
        """Hold the next batch and the one before, which threads that read side by side may still ask for."""
        batch = next(self._batches, None)
        storage.require_unchanged(self.uri, self.etag)
        if batch is None:
            raise ValueError("the file ended early")
        images = batch.column(0)
        while pa.types.is_struct(images.type):
            images = images.field(images.type.get_field_index("bytes"))
        self._held = dict(list(self._held.items())[-1:]) | {self._next_row: images.to_pylist()}
        self._next_row += len(images)

    def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            with suppress(*storage.STORAGE_ERRORS):
                opened.close()


PARQUET = SourceFormat(
    name="parquet",
    extensions=(".parquet",),
    list_records=list_rows,
    open=OpenParquet,
)
