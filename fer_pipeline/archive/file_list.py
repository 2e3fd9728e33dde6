"""A list of files as a source: the paths in a column of a Parquet or CSV file, or the lines of a text file."""

import io
import os
import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from stat import S_ISDIR
from typing import Any

import pyarrow as pa
import pyarrow.csv

from fer_pipeline.archive.files import File
from fer_pipeline.archive.walk import file_of, unreadable
from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.read_ahead import read_ahead
from fer_pipeline.base.storage import parquet

REQUESTS_AT_ONCE = 64
PARQUET, SEPARATORS = (".parquet", ".pq", ".parq"), {".csv": ",", ".tsv": "\t"}
LIST_EXTENSIONS = (*PARQUET, *SEPARATORS, ".txt", ".lst")
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
        if not text or "\0" in text:
            raise UserError(f"Entry {number} of '{self.url}' names no file{' of any disk or store' if text else ''}.")
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
    """Return the folder or prefix that the bases of a list have in common; raise UserError if that is none, or a whole disk."""
    found = bases_of(url, bases)
    schemes = {base.partition("://")[0] if "://" in base else "" for base in found}
    common = posixpath.commonpath([base.rpartition("://")[2] for base in found]) if len(schemes) == 1 else ""
    if common in ("", "/"):
        raise UserError(f"The bases {' and '.join(found)} have no folder in common: label them in two runs.")
    scheme = schemes.pop()
    return f"{scheme}://{common}" if scheme else common


def _rows(url: str, column: str, keep: Sequence[str]) -> pa.Table:
    """Return the column of paths, as text, and the kept columns of a list."""
    extension = posixpath.splitext(url)[1].lower()
    if storage.is_local(url) and os.path.isdir(url):
        raise UserError(f"'{url}' is a folder, and --uri-column needs a list. {LIST_NEEDS}.")
    wanted = list(dict.fromkeys([column, *keep]))
    try:
        if extension in PARQUET:
            rows = _read_parquet(url, wanted)
        elif extension in SEPARATORS:
            rows = _read_csv(url, SEPARATORS[extension], wanted)
        else:
            _require_columns(url, [column], wanted)
            lines = [line.removesuffix("\r") for line in storage.read_bytes(url).decode("utf-8-sig").split("\n")]
            rows = pa.table({column: pa.array([line for line in lines if line.strip()], pa.string())})
        rows = pa.table({name: _plain(url, name, rows[name], is_path=name == column) for name in wanted})
    except FileNotFoundError:
        raise UserError(f"There is no list '{url}'.") from None
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"'{url}' cannot be read as a list: {storage.reason(error)[:200]}. {LIST_NEEDS}.") from error
    if not len(rows):
        raise UserError(f"'{url}' names no file.")
    return rows


def _require_columns(url: str, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise UserError unless a list has each of the wanted columns once."""
    if missing := [name for name in wanted if name not in names]:
        raise UserError(f"'{url}' has no column '{missing[0]}': it has {', '.join(names)[:300]}.")
    if twice := [name for name in wanted if names.count(name) > 1]:
        raise UserError(f"'{url}' has two columns '{twice[0]}': rename one.")


def _read_parquet(url: str, wanted: list[str]) -> pa.Table:
    with parquet.opened(url) as file:
        _require_columns(url, file.schema_arrow.names, wanted)
        return file.read(columns=wanted)


def _read_csv(url: str, separator: str, wanted: list[str]) -> pa.Table:
    """Return columns of a CSV file as text, as they are written; an empty field is null."""
    data = storage.read_bytes(url)
    parse = pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    with pyarrow.csv.open_csv(io.BytesIO(data), parse_options=parse) as opened:
        _require_columns(url, opened.schema.names, wanted)
    texts = pyarrow.csv.ConvertOptions(
        include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    return pyarrow.csv.read_csv(io.BytesIO(data), parse_options=parse, convert_options=texts)


def _plain(url: str, name: str, column: pa.ChunkedArray, is_path: bool) -> pa.ChunkedArray:
    """Return a column as text, numbers or times. Raise UserError for any other type, which exports cannot hold."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()
    is_value = pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)
    if not is_text and (is_path or not is_value):
        raise UserError(f"The column '{name}' of '{url}' is {column.type}: a list has {'paths' if is_path else 'plain values'}.")
    column = column.cast(pa.string() if is_text else kind)
    column.validate(full=True)  # text of another program may not be UTF-8
    return column


def _file(uri: str) -> File:
    """Return a file as it is now; one that is gone, is a folder or may not be looked at has an error."""
    try:
        if not storage.is_local(uri):
            return File(uri, *storage.size_and_etag(uri), unreadable(uri, uri.split("://")[1]))
        stat = os.stat(uri)
    except FileNotFoundError:
        return File(uri, 0, "", "the file cannot be found")
    except storage.STORAGE_ERRORS as error:
        storage.require_store(uri)
        return File(uri, 0, "", f"the file cannot be looked at: {storage.reason(error)}", hides=True)
    if S_ISDIR(stat.st_mode):
        return File(uri, 0, "", "a list names files, and this is a folder")
    return file_of(uri, stat)
