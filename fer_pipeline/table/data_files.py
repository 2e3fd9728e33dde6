"""Writes the data files of a publication: new files with the rows of a run, and copies of old files without stale rows.

A new file becomes part of the table only by the commit (`delta.LabelTable.commit`).
"""

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, get_args
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.base import storage
from fer_pipeline.base.storage import parquet
from fer_pipeline.labelling.faces_table import shards_with
from fer_pipeline.labelling.manifest import file_count, read_manifest_file, shards_in
from fer_pipeline.labelling.run import READERS, RunFolder, RunRecord
from fer_pipeline.labelling.schemas import ADDED, IMAGES, SUCCEEDED, RetriedStatus
from fer_pipeline.table.blocklist import read_blocklist, without_blocked
from fer_pipeline.table.delta import TableFile, file_of
from fer_pipeline.table.rows import KEY, VANISHED, Digests, DigestSet, concatenated, digests_of, rows_of

ROWS_PER_FILE = 131_072
VERSION_COLUMNS = ["size_bytes", "etag"]
"""The columns that identify the version of a file without reading it."""
MAX_COMPARED_URIS = 2_000_000
"""Up to this number, uris are compared as text first, which excludes most rows of a table without computing a digest."""


@dataclass(frozen=True)
class Stale:
    """The keys whose rows leave the table, unless a later run published them, or this run failed to relabel them."""

    run_id: str
    keys: DigestSet
    uris: pa.Array | None
    """The uris of these keys; None if there are too many."""
    failed_keys: DigestSet
    failed_rows: list[dict[str, Any]]
    """The rows of failed records. A row of the table with labels of the same file version is kept in place of such a row."""


@dataclass(frozen=True)
class Rewritten:
    """A file of the table and the file that replaces it."""

    file: TableFile
    touched: bool
    """Whether the file leaves the table, because rows of it are removed or changed."""
    rest: TableFile | None
    """The file with the remaining rows; None if the old file stays, or no row remains."""
    kept: Digests
    """Keys whose old rows replace those of this run: a later run published them, or this run failed to relabel them."""


def stale_keys(folder: RunFolder, record: RunRecord) -> Stale:
    """Return the keys of a run's records and of the rows that vanished."""
    uris, digests = list[pa.Array](), list[Digests]()
    for number in range(file_count(record.shards)):
        keys = pa.concat_tables(read_manifest_file(folder.manifest_prefix(record.run_id), number)).select(KEY)
        digests.append(digests_of(keys))
        uris.append(pc.unique(keys["uri"]))
    if record.increment:
        vanished = parquet.read_own(folder.vanished_path(record.run_id), VANISHED)
        digests.append(digests_of(vanished))
        uris.append(pc.unique(vanished["uri"]))
    compared = pa.concat_arrays(uris) if sum(map(len, uris)) <= MAX_COMPARED_URIS else None
    return Stale(record.run_id, DigestSet(concatenated(digests)), compared, *_failures(folder, record))


def _failures(folder: RunFolder, record: RunRecord) -> tuple[DigestSet, list[dict[str, Any]]]:
    """Return keys and rows of the records that the run failed to relabel, empty for a run that relabels nothing."""
    statuses = set(get_args(RetriedStatus))
    replaces = record.increment is None or record.increment.outdated > 0  # it relabels rows of unchanged files
    shards = shards_with(folder, statuses) if replaces and record.result and record.result.failed else []
    columns = [*KEY, *VERSION_COLUMNS, "status", "error", "attempt"]
    with ThreadPoolExecutor(READERS) as pool:
        tables = list(pool.map(lambda shard: parquet.read_own(folder.images_path(shard), IMAGES, columns), shards))
    failed = [table.filter(pc.is_in(table["status"].cast(pa.string()), pa.array(statuses))) for table in tables]
    rows = [row for table in failed for row in table.to_pylist()]
    return DigestSet(concatenated(map(digests_of, failed))), rows


def rewrite(table: str, file: TableFile, stale: Stale, later: Collection[str]) -> Rewritten:
    """Write a file of the table again without its stale rows. `later` are the runs whose rows this run does not replace.

    If the run failed to relabel a labelled row of the same size and etag, the row stays; its `attempt` and `error` say so.
    """
    path = storage.join(table, file.path)
    keys = parquet.read_columns(path, [*KEY, *VERSION_COLUMNS, "status", "published_by"])
    candidates = np.arange(len(keys))
    if stale.uris is not None:
        candidates = np.flatnonzero(pc.is_in(keys["uri"], stale.uris).to_numpy())
    rows = keys.take(candidates)
    digests = digests_of(rows)
    is_later = pc.is_in(rows["published_by"], pa.array(sorted(later), pa.string())).to_numpy()
    found = stale.keys.find(digests) >= 0
    failures = {
        int(candidates[index]): stale.failed_rows[failure]
        for index, failure in enumerate(stale.failed_keys.find(digests).tolist())
        if failure >= 0 and not is_later[index] and _is_labelled_version(rows, index, stale.failed_rows[failure])
    }
    removed = np.zeros(len(keys), bool)
    removed[candidates[found & ~is_later]] = True
    removed[list(failures)] = False
    kept = digests[found & (is_later | np.isin(candidates, list(failures)))]
    if not removed.any() and not failures:
        return Rewritten(file, False, None, kept)
    rest = _with_failures(parquet.read_table(path), failures).filter(pa.array(~removed))
    return Rewritten(file, True, write_file(table, stale.run_id, rest), kept)


def _is_labelled_version(rows: pa.Table, index: int, failure: dict[str, Any]) -> bool:
    """Return whether a row has labels and is of the file version that failed now."""
    row = rows.slice(index, 1).to_pylist()[0]
    return row["status"] in SUCCEEDED and all(row[name] == failure[name] for name in VERSION_COLUMNS)


def _with_failures(rows: pa.Table, failures: dict[int, dict[str, Any]]) -> pa.Table:
    """Return rows with `attempt` and `error` set for those that a run failed to relabel. `failures`: by the index of the row."""
    attempts, errors = rows["attempt"].to_pylist(), rows["error"].to_pylist()
    for index, failure in failures.items():
        attempts[index] = int(failure["attempt"])
        reason = f"relabelling failed ({failure['status']}): {failure['error']}"
        errors[index] = f"the label of an earlier night is kept, because {reason}"
    for name, values in (("attempt", attempts), ("error", errors)):
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), pa.array(values, rows[name].type))
    return rows


def write_new(table: str, folder: RunFolder, record: RunRecord, numbers: Iterable[int], kept: Digests) -> TableFile | None:
    """Write the rows of the shards in these manifest files into one file, without the keys whose old rows are `kept`."""
    shards = [shard for number in numbers for shard in shards_in(number, record.shards)]
    with ThreadPoolExecutor(READERS) as pool:
        images = pa.concat_tables(
            pool.map(lambda shard: parquet.read_own(folder.images_path(shard), IMAGES, added=ADDED), shards)
        )
    rows = rows_of(without_blocked(images, read_blocklist(table)), record.source, record.run_id)
    if len(kept):
        rows = rows.filter(pa.array(DigestSet(kept).find(digests_of(rows)) < 0))
    return write_file(table, record.run_id, rows)


def manifest_groups(record: RunRecord) -> list[list[int]]:
    """Return the numbers of the manifest files in groups. The rows of each group go into one file of the table."""
    numbers = list(range(file_count(record.shards)))
    size = max(1, ROWS_PER_FILE * len(numbers) // max(1, record.records))
    return [numbers[first : first + size] for first in range(0, len(numbers), size)]


def write_file(table: str, written_by: str, rows: pa.Table) -> TableFile | None:
    """Write rows as a new file, which is not part of the table yet, and return it; None if there are no rows."""
    if not len(rows):
        return None
    path = f"part-{written_by}-{uuid4().hex[:12]}.parquet"
    # A file may hold rows of several models, so it has no metadata. Carrying over one row reads one row group.
    size_bytes = parquet.write_table(storage.join(table, path), rows.replace_schema_metadata(), row_group_size=8_192)
    return file_of(path, size_bytes, rows)
