"""What publishing a run does to the table's files: new rows into new files, stale ones out of the files that hold them.

Files are written beside the table's; only the commit (`delta.LabelTable.commit`) makes them a part of it.
"""

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, get_args
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.core import storage
from fer_pipeline.core.faces import shards_with
from fer_pipeline.core.manifest import SHARDS_PER_FILE, read_manifest_file
from fer_pipeline.core.run import READERS, RunFolder, RunRecord
from fer_pipeline.core.schemas import FINE, IMAGES, RetriedStatus
from fer_pipeline.table.delta import TableFile, file_of
from fer_pipeline.table.rows import KEY, VANISHED, Digests, DigestSet, concatenated, digests_of, rows_of

ROW_GROUP = 8_192
"""Rows that are read at once where one of them is carried over."""
ROWS_PER_FILE = 131_072
VERSION = ["size_bytes", "etag"]
"""What tells versions of a file apart without reading it."""
MOST_URIS = 2_000_000
"""Up to so many uris are compared as texts first: most rows of a table are seen not to be meant without a digest."""


@dataclass(frozen=True)
class Failures:
    """The records of a run that could not be looked at: a row with labels of the same bytes is better than theirs."""

    keys: DigestSet
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Stale:
    """The keys whose rows leave the table, unless a later run put them there, or the run failed to make them anew."""

    run_id: str
    keys: DigestSet
    uris: pa.Array | None
    failures: Failures


@dataclass(frozen=True)
class Rewritten:
    """A file of the table, and what is left of it."""

    file: TableFile
    touched: bool
    rest: TableFile | None
    """Holds the rows that stay; None where all stay in the file, or none."""
    kept: Digests
    """Keys whose rows stay: a later run put them there, or this one failed to make them anew. Its own are not published."""


def stale_keys(folder: RunFolder, record: RunRecord) -> Stale:
    """Return the keys of a run's records and of what vanished."""
    uris, digests = list[pa.Array](), list[Digests]()
    for number in range(-(-record.shards // SHARDS_PER_FILE)):
        keys = pa.concat_tables(read_manifest_file(folder.manifest_prefix(record.run_id), number)).select(KEY)
        digests.append(digests_of(keys))
        uris.append(pc.unique(keys["uri"]))
    if record.increment:
        vanished = storage.read_ours(folder.vanished_path(record.run_id), VANISHED)
        digests.append(digests_of(vanished))
        uris.append(pc.unique(vanished["uri"]))
    known = pa.concat_arrays(uris) if sum(map(len, uris)) <= MOST_URIS else None
    return Stale(record.run_id, DigestSet(concatenated(digests)), known, _failures(folder, record))


def _failures(folder: RunFolder, record: RunRecord) -> Failures:
    statuses = set(get_args(RetriedStatus))
    replaces = record.increment is None or record.increment.outdated > 0  # a label of the same version, that is
    shards = shards_with(folder, statuses) if replaces and record.result and record.result.failed else []
    columns = [*KEY, *VERSION, "status", "error", "attempt"]
    with ThreadPoolExecutor(READERS) as pool:
        tables = list(pool.map(lambda shard: storage.read_ours(folder.images_path(shard), IMAGES, columns), shards))
    failed = [table.filter(pc.is_in(table["status"].cast(pa.string()), pa.array(statuses))) for table in tables]
    rows = [row for table in failed for row in table.to_pylist()]
    return Failures(DigestSet(concatenated(map(digests_of, failed))), rows)


def rewrite(table: str, file: TableFile, stale: Stale, later: Collection[str]) -> Rewritten:
    """Write what is left of a file without the stale rows. `later`: the runs whose rows this one does not replace.

    A row with labels that the run failed to make anew, though size and etag are the same, stays; `attempt` and `error` say so.
    """
    path = storage.join(table, file.path)
    keys = storage.read_columns(path, [*KEY, *VERSION, "status", "published_by"])
    candidates = np.arange(len(keys))
    if stale.uris is not None:
        candidates = np.flatnonzero(pc.is_in(keys["uri"], stale.uris).to_numpy())
    meant = keys.take(candidates)
    digests = digests_of(meant)
    is_later = pc.is_in(meant["published_by"], pa.array(sorted(later), pa.string())).to_numpy()
    found = stale.keys.find(digests) >= 0
    failures = {
        int(candidates[index]): stale.failures.rows[place]
        for index, place in enumerate(stale.failures.keys.find(digests).tolist())
        if place >= 0 and not is_later[index] and _has_labels(meant, index, stale.failures.rows[place])
    }
    out = np.zeros(len(keys), bool)
    out[candidates[found & ~is_later]] = True
    out[list(failures)] = False
    kept = digests[found & (is_later | np.isin(candidates, list(failures)))]
    if not out.any() and not failures:
        return Rewritten(file, False, None, kept)
    rest = _with_failures(storage.read_table(path), failures).filter(pa.array(~out))
    return Rewritten(file, True, write_file(table, stale.run_id, rest), kept)


def _has_labels(rows: pa.Table, index: int, failure: dict[str, Any]) -> bool:
    """Tell whether a row is that of a record that was looked at, and of the version that failed now."""
    row = rows.slice(index, 1).to_pylist()[0]
    return row["status"] in FINE and all(row[name] == failure[name] for name in VERSION)


def _with_failures(rows: pa.Table, failures: dict[int, dict[str, Any]]) -> pa.Table:
    """Return rows of which those at some places tell that a run failed to make them anew, and at which attempt."""
    for name, said in (("attempt", _attempt), ("error", _said)):
        values = rows[name].to_pylist()
        for place, failure in failures.items():
            values[place] = said(failure)
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), pa.array(values, rows[name].type))
    return rows


def _attempt(failure: dict[str, Any]) -> int:
    return int(failure["attempt"])


def _said(failure: dict[str, Any]) -> str:
    return f"the label of an earlier night is kept, labelling it anew failed ({failure['status']}): {failure['error']}"


def write_new(table: str, folder: RunFolder, record: RunRecord, numbers: Iterable[int], kept: Digests) -> TableFile | None:
    """Write the rows of a run's shards, by the numbers of their manifest files, but for those whose rows in the table stay."""
    shards = [
        shard
        for number in numbers
        for shard in range(number * SHARDS_PER_FILE, min(record.shards, (number + 1) * SHARDS_PER_FILE))
    ]
    with ThreadPoolExecutor(READERS) as pool:
        images = pa.concat_tables(pool.map(lambda shard: storage.read_ours(folder.images_path(shard), IMAGES), shards))
    rows = rows_of(images, record.source, record.run_id)
    if len(kept):
        rows = rows.filter(pa.array(DigestSet(kept).find(digests_of(rows)) < 0))
    return write_file(table, record.run_id, rows)


def files_of_new(record: RunRecord) -> list[list[int]]:
    """Return the manifest files whose rows go into one file of the table each."""
    numbers = list(range(-(-record.shards // SHARDS_PER_FILE)))
    together = max(1, ROWS_PER_FILE * len(numbers) // max(1, record.records))
    return [numbers[first : first + together] for first in range(0, len(numbers), together)]


def write_file(table: str, run_id: str, rows: pa.Table) -> TableFile | None:
    """Write rows as a new file that is no part of the table yet; None for none."""
    if not len(rows):
        return None
    path = f"part-{run_id}-{uuid4().hex[:12]}.parquet"
    size_bytes = storage.write_table(storage.join(table, path), rows.replace_schema_metadata(), ROW_GROUP)  # of many models
    return file_of(path, size_bytes, rows)
