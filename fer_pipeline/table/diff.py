"""What changed between two versions of a table: rows that came, went, or have other labels."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from fer_pipeline.base.config import Config
from fer_pipeline.base.storage import parquet
from fer_pipeline.table.delta import LabelTable, TableFile
from fer_pipeline.table.rows import KEY, ROWS, DigestSet, digests_of

_FILE = ("size_bytes", "etag")
_IDENTITY = ("model_digest", "detector_digest", "settings_digest", "decoding")
_COLUMNS = [*KEY, "path", *_FILE, *_IDENTITY, "status", "faces"]
CHANGES = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("time_ms", pa.int64()),
        pa.field("path", pa.string()),
        pa.field("what", pa.string(), nullable=False),  # added, removed, or a name of `Diff`
        pa.field("status_before", pa.string()),
        pa.field("status", pa.string()),
        pa.field("expressions_before", pa.list_(pa.string())),  # of its faces, best detection first
        pa.field("expressions", pa.list_(pa.string())),
    ]
)


class Diff(Config):
    """The changes from one version of a table to another; `expressions` counts the faces of the rows that changed."""

    table: str
    before: int
    after: int
    added: int = 0
    removed: int = 0
    file_changed: int = 0
    """Rows of which the file was changed."""
    relabelled: int = 0
    """Rows of unchanged files that another model, detector, setting or decoding labelled."""
    retried: int = 0
    """Rows of unchanged files with another status, otherwise labelled alike."""
    relabelled_same: int = 0
    """Rows that were relabelled, with the same status and the same expressions as before; `relabelled` counts them, too."""
    expressions: dict[str, list[int]] = Field(default_factory=dict)
    """For each expression: faces before, and after."""


def diff(table: LabelTable, before: int, after: int) -> tuple[Diff, pa.Table]:
    """Return the changes between two versions in numbers, and as rows of `CHANGES`. Only files that one of them has are read.

    Raise UserError for a version that is gone.
    """
    old, new = table.at(before), table.at(after)
    kept = {file.path for file in old.files} & {file.path for file in new.files}
    ours, theirs = (_rows(one, [file for file in one.files if file.path not in kept]) for one in (old, new))
    places = DigestSet(digests_of(ours)).find(digests_of(theirs))
    common = np.flatnonzero(places >= 0)
    first, second = ours.take(places[common]), theirs.take(common)
    what = _changes(first, second)
    gone = np.setdiff1d(np.arange(len(ours)), places[common])
    parts = [
        _as_changes(None, theirs.take(np.flatnonzero(places < 0)), "added"),
        _as_changes(ours.take(gone), None, "removed"),
        *(_as_changes(_chosen(first, what, name), _chosen(second, what, name), name) for name in sorted(set(what) - {""})),
    ]
    changes = pa.concat_tables([CHANGES.empty_table(), *parts]).sort_by([(name, "ascending") for name in KEY])
    counts = Counter(changes["what"].to_pylist())
    same = pc.equal(changes["what"], "relabelled").to_numpy() & _same_labels(changes)
    expressions = {name: [counted[name] for counted in map(_faces_in, _sides(changes))] for name in _names(changes)}
    return Diff(
        table=table.url, before=before, after=after, relabelled_same=int(same.sum()), expressions=expressions, **counts
    ), changes


def _rows(table: LabelTable, files: Sequence[TableFile]) -> pa.Table:
    schema = pa.schema([ROWS.field(name) for name in _COLUMNS])
    parts = [parquet.with_columns(parquet.read_columns(table.path(file.path), _COLUMNS), schema) for file in files]
    return pa.concat_tables([schema.empty_table(), *parts], promote_options="permissive")


def _changes(first: pa.Table, second: pa.Table) -> list[str]:
    """Return the name of the change of each row (n,), empty for none."""

    def differs(names: Sequence[str]) -> Any:
        found = np.zeros(len(first), bool)
        for name in names:
            one, other = first[name], second[name]
            equal = pc.or_kleene(pc.equal(one, other), pc.and_(pc.is_null(one), pc.is_null(other)))
            found |= ~pc.fill_null(equal, False).to_numpy()
        return found

    file, identity, status = differs(_FILE), differs(_IDENTITY), differs(["status"])
    return np.select([file, identity, status], ["file_changed", "relabelled", "retried"], "").tolist()  # type: ignore[no-any-return]


def _chosen(rows: pa.Table, what: Sequence[str], name: str) -> pa.Table:
    return rows.filter(pa.array([one == name for one in what]))


def _as_changes(before: pa.Table | None, after: pa.Table | None, what: str) -> pa.Table:
    rows = after if after is not None else before
    assert rows is not None
    columns = {name: rows[name] for name in (*KEY, "path")} | {"what": pa.repeat(pa.scalar(what), len(rows))}
    for suffix, side in (("_before", before), ("", after)):
        nothing = pa.nulls(len(rows), pa.string()), pa.nulls(len(rows), pa.list_(pa.string()))
        status, expressions = nothing if side is None else (side["status"], _expressions(side))
        columns |= {f"status{suffix}": status, f"expressions{suffix}": expressions}
    return pa.table([columns[name] for name in CHANGES.names], CHANGES.names).cast(CHANGES)


def _expressions(rows: pa.Table) -> pa.Array:
    return pa.array([[face["expression"] for face in faces] for faces in rows["faces"].to_pylist()], pa.list_(pa.string()))


def _sides(changes: pa.Table) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    return changes["expressions_before"], changes["expressions"]


def _same_labels(changes: pa.Table) -> Any:
    pairs = zip(
        *(changes[name].to_pylist() for name in ("status_before", "status", "expressions_before", "expressions")), strict=True
    )
    return np.fromiter((one == other and mine == its for one, other, mine, its in pairs), bool, len(changes))


def _faces_in(lists: pa.ChunkedArray) -> Counter[str]:
    return Counter(pc.list_flatten(lists).to_pylist())


def _names(changes: pa.Table) -> list[str]:
    return sorted(set().union(*(_faces_in(side) for side in _sides(changes))))
