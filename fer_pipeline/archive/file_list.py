"""A list of files as a source: the paths in a column of a Parquet or CSV file, or the lines of a text file."""

import io
import os
import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from stat import S_ISDIR, S_ISREG
from typing import Any

import pyarrow as pa
import pyarrow.csv

from fer_pipeline.archive.files import NOT_REGULAR, File
from fer_pipeline.base import storage
from fer_pipeline.base.errors import OutageError, UserError
from fer_pipeline.base.read_ahead import read_ahead
from fer_pipeline.base.storage import parquet

REQUESTS_AT_ONCE = 64
LIST_EXTENSIONS = (".csv", ".tsv", ".txt", ".lst", ".parquet", ".pq", ".parq")
LIST_NEEDS = "A list of files is a Parquet, CSV or TSV file with a column of paths or URLs, or a text file with one in each line"


class FileList:
    """The files that a list names, each once, in its order, and the columns that are kept with each."""

    def __init__(self, url: str, column: str, bases: Sequence[str] = (), keep: Sequence[str] = ()) -> None:
        """Read the list at `url`. All its files must be below one of `bases`, by default the folder of the list.

        A relative path is relative to the list or, if that is not below a base, to the first base. Raise UserError for a list
        that cannot be read, lacks a column or names a file elsewhere.
        """
        self.url = storage.normalize(url)
        self.bases = bases_of(self.url, bases)
        rows = _rows(self.url, column, list(keep))
        uris = [self._resolved(number, text) for number, text in enumerate(rows[column].to_pylist(), 1)]
        self._places = {uri: place for place, uri in reversed(list(enumerate(uris)))}
        self.doubled = len(uris) - len(self._places)
        """Rows that name a file again, which are left out."""
        self.uris = [uri for place, uri in enumerate(uris) if self._places[uri] == place]
        self._kept = rows.select(list(keep))

    def __contains__(self, uri: object) -> bool:
        return uri in self._places

    def kept(self, uris: Sequence[str]) -> pa.Table:
        """Return the kept columns of files of the list, in the given order."""
        return self._kept.take(pa.array([self._places[uri] for uri in uris], pa.int64()))

    def files(self) -> Iterator[File]:
        """Yield each file as it is now; one that cannot be found has an error. Raise OutageError if the store fails."""
        with ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="list") as pool:
            for _, found in read_ahead(self.uris, lambda uri: pool.submit(_file, uri), 8 * REQUESTS_AT_ONCE):
                yield found.result()

    def _resolved(self, number: int, text: Any) -> str:
        """Return the normalized path or URL that a row names."""
        if not text:
            raise UserError(f"Entry {number} of '{self.url}' names no file.")
        is_absolute = "://" in text or text.startswith(("/", "~/"))
        folders = [""] if is_absolute else [posixpath.dirname(self.url), self.bases[0]]
        for place in (posixpath.join(folder, text) for folder in folders):
            if any(storage.is_below(place, base) for base in self.bases):
                return storage.normalize(place)
        raise UserError(
            f"Entry {number} of '{self.url}' names '{storage.reason(ValueError(text))[:200]}', which is not below "
            f"{' or '.join(self.bases)}: name a folder or a prefix of a store above it by --base. Web addresses are not read."
        )


def bases_of(url: str, bases: Sequence[str]) -> list[str]:
    """Return the normalized bases of a list; without any, the folder of the list."""
    return [storage.normalize(base) for base in bases] or [storage.normalize(url).rpartition("/")[0] or "/"]


def root_of(url: str, bases: Sequence[str]) -> str:
    """Return the folder or prefix that the bases of a list have in common. Raise UserError if they have none."""
    return _common(bases_of(url, bases))


def _common(bases: Sequence[str]) -> str:
    schemes = {base.partition("://")[0] if "://" in base else "" for base in bases}
    paths = [base.partition("://")[2] if "://" in base else base for base in bases]
    if len(schemes) == 1 and (common := posixpath.commonpath(paths)):
        return f"{schemes.pop()}://{common}" if "://" in bases[0] else common
    raise UserError(f"The bases {' and '.join(bases)} have no folder in common: label them in two runs.")


def _rows(url: str, column: str, keep: Sequence[str]) -> pa.Table:
    """Return the column of paths, as text, and the kept columns of a list."""
    extension = posixpath.splitext(url)[1].lower()
    if storage.is_local(url) and os.path.isdir(url):
        raise UserError(f"'{url}' is a folder, and --uri-column needs a list. {LIST_NEEDS}.")
    try:
        if extension in LIST_EXTENSIONS[-3:]:
            with parquet.opened(url) as file:
                rows = _chosen(url, file.schema_arrow.names, column, keep, lambda names: file.read(columns=names))
        elif extension in (".csv", ".tsv"):
            rows = _read_csv(url, "\t" if extension == ".tsv" else ",", column, keep)
        else:
            lines = storage.read_bytes(url).decode("utf-8-sig").splitlines()
            rows = _chosen(url, [column], column, keep, lambda _: pa.table({column: [line for line in lines if line.strip()]}))
        paths = rows[column].cast(pa.string())
    except FileNotFoundError:
        raise UserError(f"There is no list '{url}'.") from None
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"'{url}' cannot be read as a list: {storage.reason(error)[:200]}. {LIST_NEEDS}.") from error
    if not len(rows):
        raise UserError(f"'{url}' names no file.")
    return rows.set_column(rows.column_names.index(column), column, paths)


def _chosen(url: str, names: Sequence[str], column: str, keep: Sequence[str], read: Any) -> pa.Table:
    """Return the wanted columns by `read`, without dictionaries. Raise UserError if the list lacks one, or one is nested."""
    wanted = list(dict.fromkeys([column, *keep]))
    if missing := [name for name in wanted if name not in names]:
        raise UserError(f"'{url}' has no column '{missing[0]}': it has {', '.join(names)[:300]}.")
    rows: pa.Table = read(wanted)
    for place, field in enumerate(rows.schema):
        if pa.types.is_dictionary(field.type):
            rows = rows.set_column(place, field.name, rows[field.name].cast(field.type.value_type))
        elif pa.types.is_nested(field.type):
            raise UserError(f"The column '{field.name}' of '{url}' is {field.type}: keep plain columns only.")
    return rows


def _read_csv(url: str, delimiter: str, column: str, keep: Sequence[str]) -> pa.Table:
    """Return columns of a CSV file as text, as they are written; an empty field is null."""
    data = storage.read_bytes(url)
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with pyarrow.csv.open_csv(io.BytesIO(data), parse_options=parse) as opened:
        names = opened.schema.names

    def read(wanted: list[str]) -> pa.Table:
        texts = pyarrow.csv.ConvertOptions(
            include_columns=wanted, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
        )
        return pyarrow.csv.read_csv(io.BytesIO(data), parse_options=parse, convert_options=texts)

    return _chosen(url, names, column, keep, read)


def _file(uri: str) -> File:
    """Return a file as it is now; one that is gone, is a folder or may not be looked at has an error."""
    try:
        if not storage.is_local(uri):
            return File(uri, *storage.size_and_etag(uri))
        stat = os.stat(uri)
    except OutageError:
        raise
    except storage.STORAGE_ERRORS as error:
        storage.require_store(uri)
        found = "the file cannot be found" if isinstance(error, FileNotFoundError) else "the file cannot be looked at"
        return File(uri, 0, "", found if isinstance(error, FileNotFoundError) else f"{found}: {storage.reason(error)}")
    if S_ISREG(stat.st_mode):
        return File(uri, stat.st_size, str(stat.st_mtime_ns))
    return File(uri, 0, "", "a list names files, and this is a folder" if S_ISDIR(stat.st_mode) else NOT_REGULAR)
