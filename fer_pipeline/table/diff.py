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
_COLUMNS = [*KEY, "path", *_FILE, *_IDENTITY, "status"]
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

    Their keys are in memory, and the faces of one file at a time. Raise UserError for a version that is gone.
    """
    old, new = table.at(before), table.at(after)
    kept = {file.path for file in old.files} & {file.path for file in new.files}
    ours, theirs = (_rows(one, [file for file in one.files if file.path not in kept]) for one in (old, new))
    places = DigestSet(digests_of(ours)).find(digests_of(theirs))
    common = np.flatnonzero(places >= 0)
    first, second = ours.take(places[common]), theirs.take(common)
    what = _changes(first, second)
    changed = np.flatnonzero([bool(one) for one in what])
    gone, came = ours.take(np.setdiff1d(np.arange(len(ours)), places[common])), theirs.take(np.flatnonzero(places < 0))
    parts = [
        _joined(None, _with_expressions(new, came), ["added"] * len(came)),
        _joined(_with_expressions(old, gone), None, ["removed"] * len(gone)),
        _joined(
            _with_expressions(old, first.take(changed)),
            _with_expressions(new, second.take(changed)),
            [what[index] for index in changed],
        ),
    ]
    changes = pa.concat_tables(parts).sort_by([(name, "ascending") for name in KEY])
    counts = Counter(changes["what"].to_pylist())
    same = pc.equal(changes["what"], "relabelled").to_numpy() & _same_labels(changes)
    faces = [Counter(pc.list_flatten(changes[name]).to_pylist()) for name in ("expressions_before", "expressions")]
    expressions = {name: [counted[name] for counted in faces] for name in sorted({*faces[0], *faces[1]})}
    return Diff(
        table=table.url, before=before, after=after, relabelled_same=int(same.sum()), expressions=expressions, **counts
    ), changes


def _rows(table: LabelTable, files: Sequence[TableFile]) -> pa.Table:
    """Return the rows of files, each with the path of its file and its number in it."""
    schema = pa.schema([ROWS.field(name) for name in _COLUMNS])
    parts = [schema.empty_table().append_column("file", pa.array([], pa.string())).append_column("row", pa.array([], pa.int64()))]
    for file in files:
        rows = parquet.with_columns(parquet.read_columns(table.path(file.path), _COLUMNS), schema)
        place = pa.repeat(pa.scalar(file.path), len(rows)), pa.array(range(len(rows)), pa.int64())
        parts.append(rows.append_column("file", place[0]).append_column("row", place[1]))
    return pa.concat_tables(parts, promote_options="permissive")


def _with_expressions(table: LabelTable, rows: pa.Table) -> pa.Table:
    """Return rows with the expressions of their faces, which are read file by file."""
    found: list[Any] = [None] * len(rows)
    files, numbers = np.array(rows["file"].to_pylist(), object), rows["row"].to_numpy()
    for path in sorted(set(files)):
        places = np.flatnonzero(files == path)
        faces = parquet.read_columns(table.path(path), ["faces"])["faces"].take(pa.array(numbers[places])).to_pylist()
        for place, of_row in zip(places, faces, strict=True):
            found[place] = [face["expression"] for face in of_row]
    return rows.append_column("expressions", pa.array(found, pa.list_(pa.string())))


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


def _joined(before: pa.Table | None, after: pa.Table | None, what: Sequence[str]) -> pa.Table:
    """Return rows of `CHANGES` from the same rows of two versions; one of them may lack them."""
    rows = after if after is not None else before
    assert rows is not None
    columns = {name: rows[name] for name in (*KEY, "path")} | {"what": pa.array(what, pa.string())}
    for suffix, side in (("_before", before), ("", after)):
        for name in ("status", "expressions"):
            columns[f"{name}{suffix}"] = pa.nulls(len(rows), rows.schema.field(name).type) if side is None else side[name]
    return pa.table([columns[name] for name in CHANGES.names], CHANGES.names).cast(CHANGES)


def _same_labels(changes: pa.Table) -> Any:
    pairs = zip(
        *(changes[name].to_pylist() for name in ("status_before", "status", "expressions_before", "expressions")), strict=True
    )
    return np.fromiter((one == other and mine == its for one, other, mine, its in pairs), bool, len(changes))
