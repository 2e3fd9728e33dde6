"""CSV files in stretches of bytes, so that many tasks read one file."""

import posixpath
from collections.abc import Iterator

from fer_pipeline.core import storage
from fer_pipeline.core.errors import UserError
from fer_pipeline.sources.layouts.layout import Part

Row = dict[str, str]


def _fields(line: bytes) -> list[str]:
    return [field.strip() for field in line.decode("utf-8-sig", "replace").split(",")]


def plan_csv(source: str, layout: str, columns: tuple[str, ...], part_bytes: int) -> list[Part]:
    """Return the stretches of a CSV file; raise UserError where it lacks one of `columns` or any row."""
    fs, path = storage.open_filesystem(source)
    if not fs.isfile(path):
        raise UserError(f"The source '{source}' is not a CSV file, which layout {layout} needs.")
    size = int(fs.size(path))
    header = fs.cat_file(path, start=0, end=min(size, 4096)).split(b"\n")[0]
    missing = [name for name in columns if name not in _fields(header)]
    if missing:
        raise UserError(f"'{source}' has no column {' and '.join(missing)}: layout {layout} needs {','.join(columns)}.")
    if size <= len(header) + 1:
        raise UserError(f"'{source}' holds no rows.")
    starts = range(len(header) + 1, size, part_bytes)
    return [Part(source, start, min(start + part_bytes, size)) for start in starts]


def read_csv(part: Part) -> Iterator[tuple[str, Row]]:
    """Yield the rows that begin in a stretch, each with where it stands. Fields hold no quoted commas."""
    fs, path = storage.open_filesystem(part.uri)
    with fs.open(path, "rb") as file:
        columns = _fields(file.readline())
        begin = file.tell()
        file.seek(max(begin, part.start - 1))
        if part.start > begin:
            file.readline()  # the row that began in the stretch before; only its end, if it ended just there
        while file.tell() < part.end:
            start = file.tell()
            line = file.readline()
            if line.strip():
                yield f"{posixpath.basename(part.uri)}@{start}", dict(zip(columns, _fields(line), strict=False))


def whole_number(text: str) -> int | None:
    """Return a number of at most three plain digits, None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 3 else None
