"""CSV files in parts of bytes, so that many tasks read one file in parallel."""

import csv
import os
import posixpath
from collections.abc import Iterator

from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.datasets.layouts.layout import Part

Row = dict[str, str]


def _fields(line: bytes) -> list[str]:
    text = line.decode("utf-8-sig", "replace").rstrip("\r\n").replace("\0", "")
    try:
        return [field.strip() for field in next(csv.reader([text], skipinitialspace=True), [])]
    except csv.Error:  # a field of more than 128 kB
        return [field.strip() for field in text.split(",")]


def plan_csv(source: str, layout: str, columns: tuple[str, ...], part_bytes: int) -> list[Part]:
    """Return the parts of a CSV file. Raise UserError if it lacks one of `columns` or has no rows."""
    try:
        with storage.open_file(source) as file:
            header, size = file.read(4096).split(b"\n")[0], file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        raise UserError(f"There is no file '{source}': layout {layout} needs a CSV file there.") from None
    except IsADirectoryError:
        raise UserError(f"The source '{source}' is not a CSV file: layout {layout} needs one.") from None
    missing = [name for name in columns if name not in _fields(header)]
    if missing:
        raise UserError(f"'{source}' has no column {' and '.join(missing)}: layout {layout} needs {','.join(columns)}.")
    if size <= len(header) + 1:
        raise UserError(f"'{source}' holds no rows.")
    starts = range(len(header) + 1, size, part_bytes)
    return [Part(source, start, min(start + part_bytes, size)) for start in starts]


def read_csv(part: Part) -> Iterator[tuple[str, Row]]:
    """Yield the place and the fields of each row that begins in the part. A quoted field may hold commas, but no line breaks."""
    with storage.open_file(part.uri) as file:
        columns = _fields(file.readline())
        begin = file.tell()
        file.seek(max(begin, part.start - 1))
        if part.start > begin:
            file.readline()  # the rest of a row of the part before: just its newline, if it ends exactly there
        while file.tell() < part.end:
            start = file.tell()
            line = file.readline()
            if line.strip():
                fields = [*_fields(line), *[""] * len(columns)]
                yield f"{posixpath.basename(part.uri)}@{start}", dict(zip(columns, fields, strict=False))


def whole_number(text: str) -> int | None:
    """Return the number in a text of one to three ASCII digits, or None."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 3 else None
