"""Erasing rows from a table, its history included: of a uri, or of an image's bytes wherever they stand."""

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.core import storage
from fer_pipeline.core.config import Config
from fer_pipeline.table.delta import Changes, LabelTable, TableFile
from fer_pipeline.table.publish import write_file

FORGET = "forget"


class Forgotten(Config):
    """What was erased."""

    rows: int
    files_deleted: int
    """Files of older versions that held the rows: those versions cannot be read any more."""
    says: str


def forget(table: LabelTable, uris: tuple[str, ...], contents: tuple[str, ...]) -> Forgotten:
    """Write the table without these rows, then delete every file below it that still holds one."""
    changes, rows = Changes(), 0
    for file in table.files:
        path = table.path(file.path)
        meant = _meant(path, uris, contents)
        if count := pc.sum(meant).as_py() or 0:
            rows += count
            changes.removed.append(file)
            rest = write_file(table.url, FORGET, storage.read_table(path).filter(pc.invert(meant)))
            changes.added.extend([rest] if rest else [])
    if rows:
        table.commit(changes, None, {"forgot": rows})
    table = table.refreshed()
    deleted = [name for name in _files_below(table) if not _is_active(table.files, name) and _holds(table, name, uris, contents)]
    for name in deleted:
        storage.remove(table.path(name))
    says = (
        f"{len(deleted)} files of older versions are deleted: reading one of those versions fails from now on" if deleted else ""
    )
    return Forgotten(rows=rows, files_deleted=len(deleted), says=says or "no older version held such a row")


def _meant(path: str, uris: tuple[str, ...], contents: tuple[str, ...]) -> pa.ChunkedArray:
    """Return which rows of a file (n,) are meant."""
    rows = storage.read_table(path, ["uri", "content_sha256"])
    by_uri = pc.is_in(rows["uri"], pa.array(uris, pa.string()))
    return pc.or_(by_uri, pc.is_in(rows["content_sha256"], pa.array(contents, pa.string())))


def _files_below(table: LabelTable) -> list[str]:
    return [name for name in storage.list_names(table.url) if name.endswith(".parquet")]


def _is_active(files: list[TableFile], name: str) -> bool:
    return any(file.path == name for file in files)


def _holds(table: LabelTable, name: str, uris: tuple[str, ...], contents: tuple[str, ...]) -> bool:
    return bool(pc.any(_meant(table.path(name), uris, contents)).as_py())
