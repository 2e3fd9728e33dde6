"""Putting small files of a table together: what many small nights leave."""

from collections.abc import Iterator

import pyarrow as pa

from fer_pipeline.core import storage
from fer_pipeline.table.delta import Changes, LabelTable, TableFile
from fer_pipeline.table.publish import ROWS_PER_FILE, write_file
from fer_pipeline.table.rows import KEY, ROWS

COMPACT = "compact"


def compact(table: LabelTable) -> None:
    """Write small files anew, several as one, ordered by key; the rows stay as they are."""
    changes = Changes()
    for together in _bins(table.files):
        rows = pa.concat_tables([storage.read_table(table.path(file.path)) for file in together], promote_options="default")
        rows = rows.select(ROWS.names).cast(ROWS).sort_by([(name, "ascending") for name in KEY])
        written = write_file(table.url, COMPACT, rows)
        changes.added.extend([written] if written else [])
        changes.removed.extend(together)
    if changes.removed:
        table.commit(changes, None, {"compacted": len(changes.removed)})


def _bins(files: list[TableFile]) -> Iterator[list[TableFile]]:
    """Yield neighbouring files that make one of at most `ROWS_PER_FILE` rows together."""
    waiting: list[TableFile] = []
    for file in [file for file in files if file.rows <= ROWS_PER_FILE // 2]:
        if sum(one.rows for one in waiting) + file.rows > ROWS_PER_FILE:
            yield waiting
            waiting = []
        waiting.append(file)
    if len(waiting) > 1:
        yield waiting
