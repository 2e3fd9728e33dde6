"""Reads and writes Parquet files, those of this project and untrusted ones."""

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.memory import bounded_read
from fer_pipeline.base.storage import objects

FOOTER_BYTES = 64 * 1024
"""Bytes at the end of a Parquet file that are read first."""
GAP_BYTES = 256 * 1024
"""Largest gap between two columns that is read too, which costs less than another request."""
MOST_CATEGORY_BYTES = 4096
"""Longest value of a dictionary column, such as a status, a model or a digest."""


class Parquet(pq.ParquetFile):  # type: ignore[misc]
    """A Parquet file that may be untrusted: it is read under a memory limit, and Python's extension types are rejected.

    A name in the file's metadata selects such a type, and some types of libraries load pickles (Ray Data's objects). Arrow's own
    types, such as UUID, are plain values.
    """

    def __init__(self, source: Any, what: str, **options: Any) -> None:
        """Open `source`, which messages call `what`. Raise MemoryError above the limit, here and in all reads."""
        self.what = what
        try:
            with bounded_read(what):
                super().__init__(source, **options)
                schema = self.schema_arrow
        except pa.ArrowException:
            raise
        except ValueError as error:  # raised by a registered type that cannot read its metadata
            raise pa.ArrowInvalid(f"the column types of '{what}' cannot be read: {storage.reason(error)[:200]}") from error
        try:
            require_plain(schema, what)
        except pa.ArrowInvalid:
            self.close()
            raise

    def read(self, *arguments: Any, **options: Any) -> pa.Table:
        with bounded_read(self.what):
            return super().read(*arguments, **options)

    def read_row_group(self, *arguments: Any, **options: Any) -> pa.Table:
        with bounded_read(self.what):
            return super().read_row_group(*arguments, **options)

    def read_row_groups(self, *arguments: Any, **options: Any) -> pa.Table:
        with bounded_read(self.what):
            return super().read_row_groups(*arguments, **options)

    def iter_batches(self, *arguments: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        batches = super().iter_batches(*arguments, **options)
        while True:
            with bounded_read(self.what):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def require_plain(schema: pa.Schema, what: str) -> None:
    """Raise ArrowInvalid if a column of `what` has an extension type of Python."""
    for field in schema:
        if _is_extended(field.type):
            raise pa.ArrowInvalid(f"the column '{field.name[:100]}' of '{what}' has an extension type, {field.type}")


def _is_extended(kind: pa.DataType) -> bool:
    """Return whether a type is a Python extension type, or contains one."""
    if isinstance(kind, pa.ExtensionType):
        return True
    if pa.types.is_dictionary(kind):
        return _is_extended(kind.value_type)
    return any(_is_extended(kind.field(index).type) for index in range(kind.num_fields))


def open_whole(url: str) -> Parquet:
    """Read a whole Parquet file by one request and return it opened: for files of a few megabytes, such as a shard."""
    with bounded_read(url):
        return Parquet(pa.BufferReader(storage.read_bytes(url)), url)


@contextmanager
def opened(url: str) -> Iterator[Parquet]:
    """Open a Parquet file of any size in a context. Only the requested parts are read.

    It is opened by a handle: a dataset over a Python file system (`PyFileSystem`) can abort the process at its exit with status
    134, because threads of Arrow still hold Python objects (pyarrow 26).
    """
    place = storage.normalize(url)
    if storage.is_local(place):
        with pa.OSFile(place) as opened:
            yield Parquet(opened, url)
        return
    with _unbuffered(place) as opened:
        yield Parquet(opened, url, pre_buffer=False)


def _unbuffered(place: str) -> Any:
    """Open a file on a store that reads nothing ahead: pyarrow knows what it needs."""
    if not objects.needs_s3fs(place):
        return objects.ObjectFile(place, None)
    fs, path = storage.open_filesystem(place)
    return fs.open(path, "rb", cache_type="none")


def read_columns(url: str, columns: list[str]) -> pa.Table:
    """Return some columns of a Parquet file. From a store only these are read, neighbouring columns by one request."""
    place = storage.normalize(url)
    if storage.is_local(url):
        return Parquet(place, url).read(columns=columns)
    if objects.needs_s3fs(place):
        return open_whole(url).read(columns=columns)
    size, _ = objects.size_and_etag(place)
    if not size:
        raise pa.ArrowInvalid("the file is empty")
    whole = bytearray(size)  # the system allocates only the pages that are written
    _fill(place, whole, [(max(0, size - FOOTER_BYTES), size)])
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    if footer > FOOTER_BYTES:
        _fill(place, whole, [(max(0, size - footer), size - FOOTER_BYTES)])
    metadata = Parquet(pa.BufferReader(whole), url).metadata
    _fill(place, whole, list(_chunks(metadata, columns, size)))
    return Parquet(pa.BufferReader(whole), url, metadata=metadata).read(columns=columns)


def _chunks(metadata: Any, columns: list[str], size: int) -> Iterator[tuple[int, int]]:
    """Yield the byte ranges (start, end) of a file that hold these columns."""
    places = []
    for group in (metadata.row_group(index) for index in range(metadata.num_row_groups)):
        for column in (group.column(index) for index in range(group.num_columns)):
            if column.path_in_schema.partition(".")[0] in columns:
                start = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
                places.append((start, start + column.total_compressed_size))
    places.sort()
    if places and not 0 <= places[0][0] <= max(end for _, end in places) <= size:
        raise pa.ArrowInvalid(f"the footer places columns outside the {size} bytes of the file")
    while places:
        start, end = places.pop(0)
        while places and places[0][0] - end <= GAP_BYTES:
            end = max(end, places.pop(0)[1])
        yield start, end


def _fill(url: str, whole: bytearray, ranges: list[tuple[int, int]]) -> None:
    """Read byte ranges of an object into `whole`, in parallel."""
    for (start, end), data in zip(ranges, objects.get_ranges(url, ranges), strict=True):
        whole[start:end] = data


def groups_that_may_hold(file: Parquet, column: str, values: Sequence[Any]) -> list[int]:
    """Return the row groups whose statistics do not exclude all of `values` in a column."""
    wanted = sorted(set(values))

    def may_hold(group: Any) -> bool:
        columns = (group.column(index) for index in range(group.num_columns))
        found = next((one.statistics for one in columns if one.path_in_schema == column), None)
        if not (found and found.has_min_max):
            return True
        place = bisect_left(wanted, found.min)
        return place < len(wanted) and bool(wanted[place] <= found.max)

    return [index for index in range(file.num_row_groups) if may_hold(file.metadata.row_group(index))]


def read_table(url: str, columns: list[str] | None = None) -> pa.Table:
    """Return one Parquet file as a table."""
    return open_whole(url).read(columns=columns)


@contextmanager
def opened_own(url: str, schema: pa.Schema, columns: list[str] | None = None, added: Collection[str] = ()) -> Iterator[Parquet]:
    """Read and open a Parquet file of this project. Raise UserError if it is damaged or has another schema.

    `added`: columns that the file may lack.
    """
    try:
        file = open_whole(url)
        there = file.schema_arrow
        _require_types(there, schema, [name for name in columns or schema.names if name not in added or name in there.names])
        yield file
    except (pa.ArrowException, OSError) as error:
        if not isinstance(error, pa.ArrowException) and not storage.says_damage(error):
            raise
        raise UserError(
            f"'{url}' is not a table that this project wrote, or it is damaged: {storage.reason(error)[:300]}"
        ) from error


def read_own(
    url: str, schema: pa.Schema, columns: list[str] | None = None, added: Collection[str] = (), kept: Sequence[str] = ()
) -> pa.Table:
    """Return some columns (default: all) of a Parquet file of this project. Raise UserError as `opened_own` does.

    `added`: columns that the file may lack, which are null then. `kept`: further columns, of any type, if the file has them.
    """
    wanted = columns or schema.names
    with opened_own(url, schema, wanted, added) as file, bounded_read(url):
        table = file.read(columns=columns)
        for name in table.column_names:
            _require_short(name, table[name])
        own = with_columns(table, pa.schema([schema.field(name) for name in wanted]))
        return joined(own, table.select([name for name in kept if name in table.column_names])) if kept else own


def with_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the columns of `schema`, in its order; those that the table lacks are null."""
    if table.column_names == schema.names:
        return table
    columns = [table[field.name] if field.name in table.column_names else pa.nulls(len(table), field.type) for field in schema]
    return pa.table(columns, schema=pa.schema([field.with_type(one.type) for field, one in zip(schema, columns, strict=True)]))


def joined(table: pa.Table, others: pa.Table) -> pa.Table:
    """Return a table with the columns of another one, of the same rows, behind its own."""
    for field in others.schema:
        table = table.append_column(field, others[field.name])
    return table


def beyond(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the columns of a table that a schema does not have."""
    return table.select([name for name in table.column_names if name not in schema.names])


def _require_short(name: str, column: pa.ChunkedArray) -> None:
    """Raise ArrowInvalid if a dictionary has a long value, which would take its bytes in every row once it is decoded."""
    for chunk in column.chunks if pa.types.is_dictionary(column.type) else ():
        if (pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0) > MOST_CATEGORY_BYTES:
            raise pa.ArrowInvalid(f"its column '{name}' has a value of more than {MOST_CATEGORY_BYTES} bytes")


def _require_types(found: pa.Schema, wanted: pa.Schema, columns: list[str]) -> None:
    """Raise ArrowInvalid unless each of `columns` exists and has its type of `wanted`."""
    for name in columns:
        kind = found.field(name).type if name in found.names else "missing"
        if kind != wanted.field(name).type:
            raise pa.ArrowInvalid(f"its column '{name}' is {kind}, not {wanted.field(name).type}")


def write_table(url: str, table: pa.Table, row_group_size: int | None = None) -> int:
    """Write one Parquet file atomically and return its size in bytes."""
    data = table_bytes(table, row_group_size)
    storage.write_bytes(url, data)
    return len(data)


def table_bytes(table: pa.Table, row_group_size: int | None = None) -> bytes:
    """Return a table as the bytes of a Parquet file, compressed by zstd, with statistics."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group_size)
    data: bytes = sink.getvalue().to_pybytes()
    return data
