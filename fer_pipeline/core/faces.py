"""The flat table of faces, made from `images/`, and the counts that a run reports."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.core import storage
from fer_pipeline.core.run import RunFolder, RunRecord
from fer_pipeline.core.schemas import FACES, FAILED

ROWS_PER_FILE = 500_000
FAILURES_KEPT = 20


@dataclass
class Tally:
    """Counts over the rows seen so far."""

    statuses: Counter[str] = field(default_factory=Counter)
    expressions: Counter[str] = field(default_factory=Counter)
    faces: int = 0
    uncertain: int = 0
    failures: list[dict[str, str | None]] = field(default_factory=list)
    """The first failed records: uri, member, status, error."""

    @property
    def failed(self) -> int:
        return sum(self.statuses[status] for status in FAILED)

    def add(self, images: pa.Table, faces: pa.Table) -> None:
        self.statuses.update(images["status"].to_pylist())
        self.expressions.update(faces["expression"].to_pylist())
        self.faces += len(faces)
        self.uncertain += pc.sum(faces["uncertain"]).as_py() or 0
        if len(self.failures) < FAILURES_KEPT:
            failed = images.filter(pc.is_in(images["status"], pa.array(FAILED)))
            rows = failed.select(["uri", "member", "status", "error"]).to_pylist()
            self.failures += rows[: FAILURES_KEPT - len(self.failures)]


def flatten(images: pa.Table, record: RunRecord) -> pa.Table:
    """Return one row of `schemas.FACES` for each face nested in rows of `schemas.IMAGES`."""
    nested = images["faces"].combine_chunks()
    parents = images.take(pc.list_parent_indices(nested))
    faces = pa.Table.from_struct_array(pc.list_flatten(nested))
    columns = {name: faces[name] for name in faces.column_names}
    columns |= {name: parents[name] for name in ("record_id", "uri", "member", "time_ms")}
    constants = {"model": record.model.name, "detector": record.detector.name, "run_id": record.run_id}
    columns |= {name: pa.array([value] * len(faces), pa.string()) for name, value in constants.items()}
    return pa.table(columns).select(FACES.names).cast(FACES)


def write_faces(folder: RunFolder, record: RunRecord, images: Iterable[pa.Table]) -> Tally:
    """Write `faces/*.parquet` from all rows of `images/` and return their counts."""
    tally, pending, number = Tally(), [FACES.empty_table()], 0
    for table in images:
        faces = flatten(table, record)
        tally.add(table, faces)
        pending.append(faces)
        if sum(map(len, pending)) >= ROWS_PER_FILE:
            _write(folder, number, pending)
            pending, number = [FACES.empty_table()], number + 1
    if number == 0 or len(pending) > 1:
        _write(folder, number, pending)
    return tally


def _write(folder: RunFolder, number: int, tables: list[pa.Table]) -> None:
    storage.write_table(folder.path("faces", f"{number:05d}.parquet"), pa.concat_tables(tables), row_group_size=65_536)
