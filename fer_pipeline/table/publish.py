"""What publishing a run does to the table's files: new rows into new files, stale ones out of the files that hold them.

Files are written beside the table's; only the commit (`delta.LabelTable.commit`) makes them a part of it.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.core import storage
from fer_pipeline.core.manifest import SHARDS_PER_FILE, read_manifest_file
from fer_pipeline.core.run import READERS, RunFolder, RunRecord
from fer_pipeline.table.delta import TableFile, file_of
from fer_pipeline.table.rows import KEY, Digests, DigestSet, concatenated, digests_of, rows_of

ROW_GROUP = 8_192
"""Rows that are read at once where one of them is carried over."""
ROWS_PER_FILE = 131_072
MOST_URIS = 2_000_000
"""Up to so many uris are compared as texts first: most rows of a table are seen not to be meant without a digest."""


@dataclass(frozen=True)
class Stale:
    """The keys whose rows leave the table, unless a later run put them there."""

    run_id: str
    keys: DigestSet
    uris: pa.Array | None


@dataclass(frozen=True)
class Rewritten:
    """A file of the table, and what is left of it."""

    file: TableFile
    touched: bool
    rest: TableFile | None
    """Holds the rows that stay; None where all stay in the file, or none."""
    newer: Digests
    """Keys that a later run has put there: its rows stay, and those of this run are not published."""


def stale_keys(folder: RunFolder, record: RunRecord) -> Stale:
    """Return the keys of a run's records and of what vanished."""
    uris, digests = list[pa.Array](), list[Digests]()
    for number in range(-(-record.shards // SHARDS_PER_FILE)):
        keys = pa.concat_tables(read_manifest_file(folder.manifest_prefix(record.run_id), number)).select(KEY)
        digests.append(digests_of(keys))
        uris.append(pc.unique(keys["uri"]))
    if record.increment:
        vanished = storage.read_table(folder.vanished_path(record.run_id))
        digests.append(digests_of(vanished))
        uris.append(pc.unique(vanished["uri"]))
    known = pa.concat_arrays(uris) if sum(map(len, uris)) <= MOST_URIS else None
    return Stale(record.run_id, DigestSet(concatenated(digests)), known)


def rewrite(table: str, file: TableFile, stale: Stale) -> Rewritten:
    """Write what is left of a file without the stale rows."""
    path = storage.join(table, file.path)
    keys = storage.read_columns(path, [*KEY, "published_by"])
    candidates = np.arange(len(keys))
    if stale.uris is not None:
        candidates = np.flatnonzero(pc.is_in(keys["uri"], stale.uris).to_numpy())
    meant = keys.take(candidates)
    digests = digests_of(meant)
    later = pc.greater(meant["published_by"], stale.run_id).to_numpy()
    found = stale.keys.find(digests) >= 0
    out = np.zeros(len(keys), bool)
    out[candidates[found & ~later]] = True
    newer = digests[found & later]
    if not out.any():
        return Rewritten(file, False, None, newer)
    rest = storage.read_table(path).filter(pa.array(~out))
    return Rewritten(file, True, write_file(table, stale.run_id, rest), newer)


def write_new(table: str, folder: RunFolder, record: RunRecord, numbers: Iterable[int], newer: Digests) -> TableFile | None:
    """Write the rows of a run's shards, by the numbers of their manifest files, but for those that a later run has."""
    shards = [
        shard
        for number in numbers
        for shard in range(number * SHARDS_PER_FILE, min(record.shards, (number + 1) * SHARDS_PER_FILE))
    ]
    with ThreadPoolExecutor(READERS) as pool:
        images = pa.concat_tables(pool.map(lambda shard: storage.read_table(folder.images_path(shard)), shards))
    rows = rows_of(images, record.source, record.run_id)
    if len(newer):
        rows = rows.filter(pa.array(DigestSet(newer).find(digests_of(rows)) < 0))
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
