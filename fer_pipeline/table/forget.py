"""Erases rows from all versions of a table: all rows of a uri, or of an image's bytes under any uri."""

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.base import storage
from fer_pipeline.base.config import Config
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.storage import parquet
from fer_pipeline.table.data_files import write_file
from fer_pipeline.table.delta import Changes, LabelTable


class Forgotten(Config):
    """The result of an erasure."""

    rows: int
    files_deleted: int
    """Files that held the rows. Versions that include one of them cannot be read any more."""
    says: str


def forget(table: LabelTable, uris: tuple[str, ...], contents: tuple[str, ...]) -> Forgotten:
    """Commit the table without these rows, then delete every file that holds one. Raise UserError if no file does.

    The commit always comes first. It makes the commit of a concurrent publisher fail, which then writes its files again.
    """
    known = {*table.data_files(), *(file.path for file in table.files)}
    affected = [name for name in sorted(known) if pc.any(_matches(table.path(name), uris, contents)).as_py()]
    if not affected:
        raise UserError(f"The table '{table.url}' holds no such row in any version: give uris as absolute paths or s3:// URLs.")
    changes, rows = Changes(), 0
    for file in table.files:
        if file.path in affected:
            matches = _matches(table.path(file.path), uris, contents)
            rows += pc.sum(matches).as_py()
            changes.removed.append(file)
            rest = write_file(table.url, "forget", parquet.read_table(table.path(file.path)).filter(pc.invert(matches)))
            changes.added.extend([rest] if rest else [])
    table.commit(changes, None, {"forgot": rows})
    for name in affected:
        storage.remove(table.path(name))
    says = f"{len(affected)} files are deleted: reading an older version that includes one of them fails from now on"
    return Forgotten(rows=rows, files_deleted=len(affected), says=says)


def _matches(path: str, uris: tuple[str, ...], contents: tuple[str, ...]) -> pa.ChunkedArray:
    """Return which rows (n,) of a file have one of these uris or contents."""
    rows = parquet.read_columns(path, ["uri", "content_sha256"])
    by_uri = pc.is_in(rows["uri"], pa.array(uris, pa.string()))
    return pc.or_(by_uri, pc.is_in(rows["content_sha256"], pa.array(contents, pa.string())))
