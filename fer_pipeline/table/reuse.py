"""Rows of the table whose bytes turn up again, under their own key or another: labels are carried over, not computed."""

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.core import storage
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.schemas import IMAGES, LABELLED, LINEAGE
from fer_pipeline.table.delta import require_file_names

PLACES = pa.schema([("content_sha256", pa.string()), ("path", pa.string()), ("row", pa.int64())])
CARRIED = "carried"
"""Stands for the status of a row until it is carried over."""
_FROM_THE_TABLE = ["width", "height", "status", "error", "faces", *(field.name for field in LINEAGE)]


class Reusable:
    """Where in a table rows stand, by the digest of their bytes."""

    def __init__(self, table: str, places: pa.Table) -> None:
        """`places`: rows of `PLACES`, ordered by digest."""
        self.table = table
        self._digests = np.array(places["content_sha256"].to_pylist(), "S64")
        self._paths, self._rows = places["path"].combine_chunks().dictionary_encode(), places["row"].to_numpy()

    def __contains__(self, content_sha256: object) -> bool:
        digest = np.bytes_(content_sha256)
        place = np.searchsorted(self._digests, digest)
        return bool(place < len(self._digests) and self._digests[place] == digest)

    def carry_over(self, images: pa.Table) -> pa.Table:
        """Return rows of `schemas.IMAGES` in which those that are `CARRIED` have what the table's say, lineage included."""
        carried = pc.equal(images["status"].cast(pa.string()), CARRIED)
        wanted = images.filter(carried)
        if not len(wanted):
            return images
        old = self._read(wanted["content_sha256"].to_pylist())
        for name in _FROM_THE_TABLE:
            wanted = wanted.set_column(IMAGES.get_field_index(name), IMAGES.field(name), old[name].cast(IMAGES.field(name).type))
        rest = images.filter(pc.invert(carried))
        return pa.concat_tables([rest, wanted]).unify_dictionaries().sort_by("record_id")

    def _read(self, digests: list[str]) -> pa.Table:
        places = np.searchsorted(self._digests, np.array(digests, "S64")).tolist()
        rows = [_row(self.table, self._paths[place].as_py(), int(self._rows[place])) for place in places]
        return pa.concat_tables(rows)


def read_reusable(table: str, url: str) -> Reusable | None:
    """Return what `Comparison.write_places` wrote; None where there is nothing."""
    places = storage.read_ours(url, PLACES)
    require_file_names(pc.unique(places["path"]).to_pylist(), table)
    return Reusable(table, places) if len(places) else None


def _row(table: str, path: str, row: int) -> pa.Table:
    """Return one row of a file of the table: the columns that are carried over."""
    group, first = _group_of(table, path, row)
    return group.slice(row - first, 1)


def _group_of(table: str, path: str, row: int) -> tuple[pa.Table, int]:
    starts = _starts(table, path)
    number = int(np.searchsorted(starts, row, "right")) - 1
    return _read_group(table, path, number), int(starts[number])


@lru_cache(64)
def _starts(table: str, path: str) -> Any:
    """Return the first row of each row group of a file."""
    try:
        with storage.opened_parquet(storage.join(table, path)) as file:
            sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    except FileNotFoundError:
        raise UserError(
            f"The table '{table}' was vacuumed of files that this run needs: begin a new run, vacuum later (--retention-hours)."
        ) from None
    return np.cumsum([0, *sizes[:-1]])


@lru_cache(8)
def _read_group(table: str, path: str, number: int) -> pa.Table:
    with storage.opened_parquet(storage.join(table, path)) as file:
        return file.read_row_group(number, columns=_FROM_THE_TABLE)


assert set(_FROM_THE_TABLE) <= {*LABELLED.names, *IMAGES.names}
