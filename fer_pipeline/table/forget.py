"""Erasing rows from a table, its history included: of a uri, or of an image's bytes wherever they stand."""

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.core import storage
from fer_pipeline.core.config import Config
from fer_pipeline.core.errors import UserError
from fer_pipeline.table.delta import Changes, LabelTable
from fer_pipeline.table.publish import write_file

FORGET = "forget"


class Forgotten(Config):
    """What was erased."""

    rows: int
    files_deleted: int
    """Files that held the rows: versions that consisted of them cannot be read any more."""
    says: str


def forget(table: LabelTable, uris: tuple[str, ...], contents: tuple[str, ...]) -> Forgotten:
    """Write the table without these rows, then delete every file that holds one. Raise UserError where there is none.

    The commit comes first, and comes always: whoever is publishing files that are about to be deleted is refused by it, and
    writes them again.
    """
    known = {*table.data_files(), *(file.path for file in table.files)}
    holding = [name for name in sorted(known) if pc.any(_meant(table.path(name), uris, contents)).as_py()]
    if not holding:
        raise UserError(f"The table '{table.url}' holds no such row in any version: uris are absolute paths or s3:// URLs.")
    changes, rows = Changes(), 0
    for file in table.files:
        if file.path in holding:
            meant = _meant(table.path(file.path), uris, contents)
            rows += pc.sum(meant).as_py()
            changes.removed.append(file)
            rest = write_file(table.url, FORGET, storage.read_table(table.path(file.path)).filter(pc.invert(meant)))
            changes.added.extend([rest] if rest else [])
    table.commit(changes, None, {"forgot": rows})
    for name in holding:
        storage.remove(table.path(name))
    says = f"{len(holding)} files are deleted: reading an older version that consisted of one of them fails from now on"
    return Forgotten(rows=rows, files_deleted=len(holding), says=says)


def _meant(path: str, uris: tuple[str, ...], contents: tuple[str, ...]) -> pa.ChunkedArray:
    """Return which rows of a file (n,) are meant."""
    rows = storage.read_columns(path, ["uri", "content_sha256"])
    by_uri = pc.is_in(rows["uri"], pa.array(uris, pa.string()))
    return pc.or_(by_uri, pc.is_in(rows["content_sha256"], pa.array(contents, pa.string())))
