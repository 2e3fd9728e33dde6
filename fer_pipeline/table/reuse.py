"""Finds table rows whose image bytes appear again, under any key, so that their labels are carried over, not computed."""

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.storage import parquet
from fer_pipeline.labelling.schemas import CARRIED, IMAGES, LABELLED, LINEAGE, OF_CONTENT
from fer_pipeline.table.delta import require_file_names
from fer_pipeline.table.rows import ROWS

PLACES = pa.schema([("content_sha256", pa.string()), ("path", pa.string()), ("row", pa.int64())])
_CARRIED_COLUMNS = [*OF_CONTENT, "status", "faces", *(field.name for field in LINEAGE)]


class Reusable:
    """Locates rows of a table by the digest of their image bytes."""

    def __init__(self, table: str, places: pa.Table) -> None:
        """`places`: rows of `PLACES`, sorted by digest."""
        self.table = table
        self._digests = np.array(places["content_sha256"].to_pylist(), "S64")
        self._paths, self._rows = places["path"].combine_chunks().dictionary_encode(), places["row"].to_numpy()

    def __contains__(self, content_sha256: object) -> bool:
        digest = np.bytes_(content_sha256)
        index = np.searchsorted(self._digests, digest)
        return bool(index < len(self._digests) and self._digests[index] == digest)

    def carry_over(self, images: pa.Table) -> pa.Table:
        """Return rows of `schemas.IMAGES` in which `CARRIED` rows have the values of their old rows, including the lineage."""
        carried = pc.equal(images["status"].cast(pa.string()), CARRIED)
        rows = images.filter(carried)
        if not len(rows):
            return images
        old = self._read(rows["content_sha256"].to_pylist())
        for name in _CARRIED_COLUMNS:
            rows = rows.set_column(IMAGES.get_field_index(name), IMAGES.field(name), old[name].cast(IMAGES.field(name).type))
        rest = images.filter(pc.invert(carried))
        return pa.concat_tables([rest, rows]).unify_dictionaries().sort_by("record_id")

    def _read(self, digests: list[str]) -> pa.Table:
        indices = np.searchsorted(self._digests, np.array(digests, "S64")).tolist()
        rows = [_row(self.table, self._paths[index].as_py(), int(self._rows[index])) for index in indices]
        return pa.concat_tables(rows)


def read_reusable(table: str, url: str) -> Reusable | None:
    """Return the places that `Comparison.write_places` wrote, None if it wrote none. Raise UserError for an invalid path."""
    places = parquet.read_own(url, PLACES)
    require_file_names(pc.unique(places["path"]).to_pylist(), table)
    return Reusable(table, places) if len(places) else None


def _row(table: str, path: str, row: int) -> pa.Table:
    """Return one row of a file of the table, with the columns that are carried over."""
    group, first = _group_of(table, path, row)
    return group.slice(row - first, 1)


def _group_of(table: str, path: str, row: int) -> tuple[pa.Table, int]:
    starts = _starts(table, path)
    number = int(np.searchsorted(starts, row, "right")) - 1
    return _read_group(table, path, number), int(starts[number])


@lru_cache(64)
def _starts(table: str, path: str) -> Any:
    """Return the number of the first row of each row group of a file."""
    try:
        with parquet.opened(storage.join(table, path)) as file:
            sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    except FileNotFoundError:
        raise UserError(
            f"`table vacuum` deleted files of '{table}' that this run needs: start a new run, and use a longer --retention-hours."
        ) from None
    return np.cumsum([0, *sizes[:-1]])


@lru_cache(8)
def _read_group(table: str, path: str, number: int) -> pa.Table:
    with parquet.opened(storage.join(table, path)) as file:
        found = file.read_row_group(number, columns=_CARRIED_COLUMNS)
    return parquet.with_columns(found, pa.schema([ROWS.field(name) for name in _CARRIED_COLUMNS]))  # of any version


assert set(_CARRIED_COLUMNS) <= {*LABELLED.names, *IMAGES.names}
