"""Tables with encoded images in their rows: which column has them, and how they are read again after a failure."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.archive.files import File, Selection, says_damage
from fer_pipeline.archive.formats.spec import ReadRange
from fer_pipeline.archive.record import Record, Skipped
from fer_pipeline.base import storage

IMAGE_COLUMNS = (
    "image",
    "img",
    "images",
    "photo",
    "picture",
    "png",
    "jpg",
    "jpeg",
    "webp",
    "image_bytes",
    "bytes",
    "content",
    "data",
)
BYTES = "bytes"
"""The field of a struct that holds the image, as Hugging Face writes it."""
SMALLEST_IMAGE_BYTES = 64
"""Values of a fixed size below this are digests and ids."""
ROWS_AT_ONCE = 32
READ_BYTES = 8 * 1024**2
"""Size of a request for a table on a store."""
ELEMENT = 2**40
"""A record's offset is the number of its row and, in a list, this many times the number of the image in the row."""


@dataclass(frozen=True)
class ImageColumn:
    """A column of encoded images, perhaps in structs, perhaps several in a row."""

    fields: tuple[str, ...]
    """Its name, followed by the names of fields in structs."""
    kind: pa.DataType
    """The type of an image."""
    in_list: tuple[str, ...] | None = None
    """If the rows are lists of images: the names of the fields in structs in the list, often none."""

    @property
    def path(self) -> str:
        """The path of what is read from the file."""
        return ".".join(self.fields)

    @property
    def name(self) -> str:
        """The last name that is not only `bytes`."""
        names = self.fields if len(self.fields) == 1 or self.fields[-1] != BYTES else self.fields[:-1]
        return names[-1]

    @property
    def is_plain(self) -> bool:
        """Whether it holds an image in each row by itself, or in a struct that Hugging Face writes."""
        return self.in_list is None and self.fields[1:] in ((), (BYTES,))

    def rank(self) -> int:
        """Return the place of its name in `IMAGE_COLUMNS`."""
        return IMAGE_COLUMNS.index(self.name.lower())

    def is_called(self, wanted: str) -> bool:
        """Tell whether a user means this column: by its name, or by the path of its fields."""
        return wanted in (self.fields[0], self.path, self.path.removesuffix(f".{BYTES}"))

    @property
    def is_rare(self) -> bool:
        """Whether its values are of a form that digests and categories have as often as images."""
        kind = self.kind
        return bool(pa.types.is_dictionary(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_binary_view(kind))

    @property
    def batch_rows(self) -> int:
        """Number of rows to hold at once: a list may have many images."""
        return ROWS_AT_ONCE if self.in_list is None else 1

    def rows(self, batch: pa.RecordBatch) -> pa.Array:
        """Return the column of a batch (n,): images, or lists of them or of structs."""
        column = batch.column(0)
        for name in self.fields[1:]:
            column = pc.struct_field(column, [column.type.get_field_index(name)])
        return column

    def images(self, batch: pa.RecordBatch) -> list[Any]:
        """Return the image of each row, None if it has none, or each row's list of images."""
        rows: list[Any] = self.rows(batch).to_pylist()
        if self.in_list is None:
            return rows
        return [[_inside(one, self.in_list) for one in row or ()] for row in rows]


def _inside(value: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        value = None if value is None else value[name]
    return value


def image_columns(schema: pa.Schema, wanted: str | None = None) -> list[ImageColumn]:
    """Return the column with encoded images: `wanted`, or the one chosen by name and type; several if these do not decide.

    Fields of structs, and lists, count if no column holds images by itself. Raise ValueError if `wanted` is no such column.
    """
    columns = [column for field in schema for column in _columns_in(field)]
    if wanted:
        columns = [column for column in columns if column.is_called(wanted)]
        if not columns:
            raise ValueError(f"it has no binary column '{wanted}'; its columns are {', '.join(schema.names)}")
    columns = [column for column in columns if column.is_plain] or columns
    named = sorted((column for column in columns if column.name.lower() in IMAGE_COLUMNS), key=ImageColumn.rank)
    return named[:1] or [column for column in columns if not column.is_rare] or columns


def _columns_in(field: pa.Field, above: tuple[str, ...] = ()) -> Iterator[ImageColumn]:
    """Yield the columns of binary values in a field."""
    fields, kind = (*above, field.name), field.type
    if _is_binary(kind):
        yield ImageColumn(fields, kind)
    elif pa.types.is_struct(kind):
        inside = [one for number in range(kind.num_fields) for one in _columns_in(kind.field(number), fields)]
        yield from [one for one in inside if one.fields == (*fields, BYTES)] or inside
    elif _is_list(kind):
        (*inside,) = _columns_in(kind.value_field.with_name(""))
        if len(inside) == 1 and inside[0].in_list is None:
            yield ImageColumn(fields, inside[0].kind, inside[0].fields[1:])


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_binary(kind.value_type)
    if pa.types.is_fixed_size_binary(kind):
        return int(kind.byte_width) >= SMALLEST_IMAGE_BYTES
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def chosen_column(file: File, schema: pa.Schema, selection: Selection) -> ImageColumn | Skipped:
    """Return the column of images of a listed file, or why the file is skipped."""
    columns = image_columns(schema, selection.image_column)
    if len(columns) == 1:
        return columns[0]
    names = " or ".join(column.path[:30] for column in columns[:3])
    such_as = f", such as {names}" if names else ""
    return Skipped(file.uri, f"no image column: name it with --image-column{such_as}", file.size_bytes)


def element_records(file: File, column: ImageColumn, batch: pa.RecordBatch, row: int, place: int) -> Iterator[Record]:
    """Yield a record for each row of a batch, or for each image of the rows' lists.

    `row`: the number of the batch's first row in the file. `place`: what the offsets of its records begin with.
    """
    if column.in_list is None:
        yield from (Record(file.uri, f"row {row + number}", place + number, etag=file.etag) for number in range(len(batch)))
        return
    for number, length in enumerate(pc.list_value_length(column.rows(batch)).to_pylist()):
        for index in range(length or 0):
            yield Record(file.uri, f"row {row + number} image {index}", place + number + index * ELEMENT, etag=file.etag)


def open_table(uri: str, etag: str | None) -> Any:
    """Open the file of a table. Raise what its storage raises."""
    return pa.OSFile(storage.normalize(uri)) if storage.is_local(uri) else storage.open_version(uri, etag, READ_BYTES)


def keyed_by_column(selection: Selection) -> str:
    """Return the `index_key` of a table: its listing depends on the file and the column of images."""
    return f"image column {selection.image_column}"


class OpenRows:
    """The images of one table. Calls may come from several threads."""

    def __init__(self, uri: str, etag: str | None = None, wanted: str | None = None) -> None:
        self.uri, self.etag, self._wanted = uri, etag, wanted
        self._lock = threading.Lock()
        self._damage = ""
        self._opened: Any = None
        self._open()

    def _schema(self) -> pa.Schema:
        """Return the schema of the file that was just opened."""
        raise NotImplementedError

    def _begin(self) -> None:
        """Begin to read the column that was chosen; forget what was read before."""
        raise NotImplementedError

    def _read(self, row: int) -> Any:
        """Return the image, or the list of images, of a row. Raise ValueError for a row beyond the end."""
        raise NotImplementedError

    def _open(self) -> None:
        """Open the file, or reopen it after a failed read, which leaves the reader in an unknown state."""
        self._opened = open_table(self.uri, self.etag)
        columns = image_columns(self._schema(), self._wanted)
        storage.require_unchanged(self.uri, self.etag)
        if len(columns) != 1:
            raise ValueError("it holds no images, or several columns of them")
        self._column = columns[0]
        self._begin()

    def read(self, record: Record, read_range: ReadRange) -> bytes | None:
        """Return the image of the record's row, None if it is null. Raise ValueError for a row beyond the end.

        After damage or a lack of memory, all further rows fail without a read, because each could cost as much again. After a
        failed transfer the file is reopened once for each row.
        """
        element, row = divmod(record.offset or 0, ELEMENT)
        with self._lock:
            if self._damage:
                raise ValueError(self._damage)
            for is_last in (False, True):
                try:
                    if self._opened is None:
                        self._open()
                    return self._image(self._read(row), element)
                except (MemoryError, pa.ArrowException, *storage.STORAGE_ERRORS) as error:
                    if says_damage(error) or isinstance(error, MemoryError):
                        self._damage = storage.reason(error)
                        raise
                    self.close()
                    if is_last or storage.says_changed(error):
                        raise
        raise AssertionError("the last try returns or raises")

    def _image(self, value: Any, element: int) -> bytes | None:
        if self._column.in_list is None:
            return value  # type: ignore[no-any-return]
        if element >= len(value):
            raise ValueError(f"the row holds {len(value)} images")
        return value[element]  # type: ignore[no-any-return]

    def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            with suppress(*storage.STORAGE_ERRORS):
                opened.close()
