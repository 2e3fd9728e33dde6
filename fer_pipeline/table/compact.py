"""Merges the small files that many small nights leave in a table."""

from collections.abc import Iterator

import pyarrow as pa

from fer_pipeline.base.storage import parquet
from fer_pipeline.table.data_files import ROWS_PER_FILE, write_file
from fer_pipeline.table.delta import Changes, LabelTable, TableFile
from fer_pipeline.table.rows import KEY, ROWS


def compact(table: LabelTable) -> None:
    """Merge small files into larger ones, ordered by key. The rows do not change."""
    changes = Changes()
    for group in _groups(table.files):
        rows = pa.concat_tables([parquet.read_table(table.path(file.path)) for file in group], promote_options="default")
        rows = parquet.with_columns(rows, ROWS).cast(ROWS).sort_by([(name, "ascending") for name in KEY])
        written = write_file(table.url, "compact", rows)
        changes.added.extend([written] if written else [])
        changes.removed.extend(group)
    if changes.removed:
        table.commit(changes, None, {"compacted": len(changes.removed)})


def _groups(files: list[TableFile]) -> Iterator[list[TableFile]]:
    """Yield groups of neighbouring small files that together have at most `ROWS_PER_FILE` rows."""
    group: list[TableFile] = []
    for file in [file for file in files if file.rows <= ROWS_PER_FILE // 2]:
        if sum(one.rows for one in group) + file.rows > ROWS_PER_FILE:
            yield group
            group = []
        group.append(file)
    if len(group) > 1:
        yield group
