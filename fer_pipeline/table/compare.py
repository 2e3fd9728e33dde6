"""Compares a listing with the table by a streaming join: finds the records to label, and the rows that vanished.

The table's rows of one source are kept in memory as about fifty bytes each; the listing is streamed.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fer_pipeline.archive.record import UNREADABLE, Record
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.storage import parquet
from fer_pipeline.labelling.run import Increment
from fer_pipeline.labelling.schemas import BLOCKED, FAILED, SUCCEEDED
from fer_pipeline.table.blocklist import read_blocklist
from fer_pipeline.table.delta import LabelTable, TableFile
from fer_pipeline.table.nights import night_ids
from fer_pipeline.table.reuse import PLACES
from fer_pipeline.table.rows import (
    DECODED,
    KEY,
    ROWS,
    VANISHED,
    DigestSet,
    all_true,
    decoded_differently,
    digests_of,
    digests_of_records,
    version_hashes,
)

HELD, RETRY, OUTDATED = range(3)
IDENTITY = ("model_digest", "detector_digest", "settings_digest")
"""The columns that identify how a row was computed. A row of another identity is outdated."""


@dataclass
class _Rows:
    """Columns (n,) of the table's rows that the listing covers."""

    digests: NDArray[np.uint64]
    version: NDArray[np.uint64]
    """A hash of size and etag."""
    kind: NDArray[np.uint8]
    attempt: NDArray[np.uint8]
    """Number of nights that failed to label the record, or to relabel an outdated row."""
    reusable: NDArray[np.bool_]
    """Whether equal bytes would get the same labels now."""
    container: NDArray[np.uint64]
    """A hash of uri and etag."""
    file: NDArray[np.int32]
    row: NDArray[np.int64]
    labelled_us: NDArray[np.int64]
    """When the row was computed, in microseconds since 1970."""


class Comparison:
    """Compares one listing of a source with the table."""

    def __init__(
        self,
        table: LabelTable,
        covers: Callable[[str, str | None, int | None, bool, bool], bool],
        prefix: str,
        identity: dict[str, str],
        max_attempts: int,
        relabel_budget: int | None = None,
        retry_status: Sequence[str] = (),
        detect_px: int = 640,
    ) -> None:
        """`covers`: whether the listing could yield a row below `prefix` (`Listing.covers`). `identity`: that of this run.

        At most `relabel_budget` rows of another identity are relabelled: of the listed ones, the oldest first. Failed records
        with a `retry_status` are retried, whatever the number of earlier attempts.
        """
        self.table, self.covers, self.prefix = table, covers, prefix
        self.identity, self.max_attempts, self.relabel_budget = identity, max_attempts, relabel_budget
        self.detect_px = detect_px
        self.retry_status = pa.array(retry_status, pa.string())
        self.nights = len(night_ids(table.url))
        self.files, self.blocked = table.files, read_blocklist(table.url).contents
        parts = [self._read(number, file) for number, file in enumerate(self.files)]
        columns = {name: [getattr(part, name) for part in parts] for name in _Rows.__dataclass_fields__}
        empty = _Rows(*(np.empty((0, 2) if name == "digests" else 0, kind) for name, kind in _DTYPES.items()))
        self.rows = _Rows(*(np.concatenate([getattr(empty, name), *found]) for name, found in columns.items()))
        self._find = DigestSet(self.rows.digests).find
        self.seen = np.zeros(len(self.rows.kind), bool)
        self.changed = np.zeros(len(self.rows.kind), bool)
        self.listed = self.held = self.new = self.outdated = self.retried = self.doubled = 0

    def _read(self, number: int, file: TableFile) -> _Rows:
        others = ("size_bytes", "etag", "status", "error", "attempt", "content_sha256", "labelled_at")
        columns = [*KEY, *others, *DECODED, *IDENTITY]
        found = parquet.read_columns(self.table.path(file.path), columns)
        rows = parquet.with_columns(found, pa.schema([ROWS.field(name) for name in columns]))
        below = pc.or_(pc.equal(rows["uri"], self.prefix), pc.starts_with(rows["uri"], self.prefix.rstrip("/") + "/"))
        number_in_file = np.flatnonzero(below.to_numpy())
        rows = rows.take(number_in_file)
        is_failed = pc.is_in(rows["status"], pa.array(FAILED))
        is_place = all_true([is_failed, pc.is_null(rows["member"]), pc.equal(rows["etag"], "")])
        is_container = pc.and_(is_failed, pc.fill_null(pc.match_substring(rows["error"], UNREADABLE), False))
        facts = [*(rows[name].to_pylist() for name in KEY), is_place.to_pylist(), is_container.to_pylist()]
        covered = np.fromiter(map(self.covers, *facts), bool, len(rows))
        rows, number_in_file = rows.filter(pa.array(covered)), number_in_file[covered]
        succeeded = pc.is_in(rows["status"], pa.array(SUCCEEDED)).to_numpy()
        still_blocked = pc.is_in(rows["content_sha256"], pa.array(sorted(self.blocked), pa.string()))
        labelled = succeeded | pc.and_(pc.equal(rows["status"], BLOCKED), still_blocked).to_numpy()
        is_current = all_true([pc.equal(rows[name], self.identity[name]) for name in IDENTITY]).to_numpy()
        is_current &= ~decoded_differently(rows, self.detect_px)
        failed_last = ~labelled | pc.is_valid(rows["error"]).to_numpy()
        attempt = np.where(failed_last, np.minimum(rows["attempt"].to_numpy(), 255), 0).astype(np.uint8)
        may_retry = (attempt < self.max_attempts) | pc.is_in(rows["status"], self.retry_status).to_numpy()
        keep = is_current | (labelled & ~may_retry)
        kind = np.where(~labelled & may_retry, RETRY, np.where(keep, HELD, OUTDATED)).astype(np.uint8)
        attempt[~labelled & (kind == OUTDATED)] = 0  # another model or detector starts from zero
        has_digest = succeeded & pc.is_valid(rows["content_sha256"]).to_numpy()
        etags = rows["etag"].to_pylist()
        version, container = version_hashes(rows["size_bytes"].to_pylist(), etags), version_hashes(rows["uri"].to_pylist(), etags)
        file_number = np.full(len(rows), number, np.int32)
        labelled_us = rows["labelled_at"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
        reusable = is_current & has_digest
        return _Rows(digests_of(rows), version, kind, attempt, reusable, container, file_number, number_in_file, labelled_us)

    def to_label(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield the records to label: new, changed, outdated, and failed ones to retry.

        With a budget the outdated ones come last, because the oldest are known only at the end of the listing.
        """
        oldest: list[tuple[int, int, Record]] = []
        """A heap of at most `relabel_budget` outdated records, the youngest row first, with their positions in the listing."""
        for record, row, same in self._listed(records):
            attempt = self._attempt(row, same)
            if attempt is None:
                continue
            record = replace(record, attempt=attempt) if attempt > 1 else record
            if self.relabel_budget is None or not same or self.rows.kind[row] != OUTDATED:
                yield record
                continue
            entry = (-int(self.rows.labelled_us[row]), -self.listed, record)
            if len(oldest) < self.relabel_budget:
                heapq.heappush(oldest, entry)
            else:
                heapq.heappushpop(oldest, entry)
                self.outdated -= 1
                self.held += 1
        yield from (record for _, _, record in sorted(oldest, key=lambda one: -one[1]))

    def _listed(self, records: Iterable[Record]) -> Iterator[tuple[Record, int, bool]]:
        """Yield the first listed record of each key, the index of its row (-1: none), and whether size and etag are the same."""
        rest, container, places = iter(records), "", set[tuple[str | None, int | None]]()
        while batch := list(islice(rest, 10_000)):
            found = self._find(digests_of_records(batch))
            versions = version_hashes([one.size_bytes for one in batch], [one.etag for one in batch])
            same = (found >= 0) & (self.rows.version[found] == versions) if len(self.rows.version) else found >= 0
            for record, row, is_same in zip(batch, found.tolist(), same.tolist(), strict=True):
                if record.uri != container:
                    container, places = record.uri, set()
                place = record.member, record.time_ms
                if place in places:
                    self.doubled += 1
                    continue
                places.add(place)
                self.listed += 1
                if record.error and record.etag:  # unreadable: its members, or frames, have not vanished
                    self.seen |= self.rows.container == version_hashes([record.uri], [record.etag])
                yield record, row, is_same

    def require_nothing_below(self, places: Sequence[str]) -> None:
        """Raise UserError if the table holds files below one of these places, which cannot be listed, or members of it."""
        for file in self.files:
            near = [place for place in places if (file.first_uri or "") < f"{place}0" and place <= (file.last_uri or place)]
            if not near:
                continue
            rows = parquet.read_columns(self.table.path(file.path), KEY)
            inside = pc.or_(pc.is_valid(rows["member"]), pc.is_valid(rows["time_ms"]))
            for place in near:
                held = pc.or_(pc.starts_with(rows["uri"], f"{place}/"), pc.and_(pc.equal(rows["uri"], place), inside))
                if pc.any(held).as_py():
                    raise UserError(
                        f"The table holds files of '{place}', which cannot be listed, so it is unknown whether they vanished: "
                        "make it readable, or exclude it by --exclude."
                    )

    def _attempt(self, row: int, same: bool) -> int | None:
        """Return the number of the attempt to label a record and count it; None if its row stays. `same`: the version is."""
        if row < 0:
            self.new += 1
            return 1
        self.seen[row] = True
        if not same:
            self.changed[row] = True
            return 1
        kind = self.rows.kind[row]
        if kind == HELD:
            self.held += 1
            return None
        if kind == OUTDATED:
            self.outdated += 1
        else:
            self.retried += 1
        return int(self.rows.attempt[row]) + 1

    @property
    def holds_outdated(self) -> bool:
        """Whether a row of the table is of another model, detector or settings."""
        return bool((self.rows.kind == OUTDATED).any())

    @property
    def vanished(self) -> int:
        """Number of rows of the source that were not listed. Valid at the end of the listing."""
        return int((~self.seen).sum())

    def increment(self) -> Increment:
        """Return the result of the comparison in numbers."""
        return Increment(
            table=self.table.url,
            version=self.table.version,
            nights=self.nights,
            listed=self.listed,
            held=self.held,
            new=self.new,
            changed=int(self.changed.sum()),
            outdated=self.outdated,
            retried=self.retried,
            vanished=self.vanished,
            scope=len(self.seen),
        )

    def write_vanished(self, url: str) -> None:
        """Write the keys of the rows that vanished, as a Parquet file of `VANISHED`."""
        parts = [rows.select(KEY).cast(VANISHED) for _, rows in self._rows_by_file(~self.seen)]
        parquet.write_table(url, pa.concat_tables([VANISHED.empty_table(), *parts]))

    def write_places(self, url: str) -> None:
        """Write the places of the rows whose bytes may appear again (changed or vanished rows), sorted by digest of the bytes."""
        parts = []
        for file, rows in self._rows_by_file((~self.seen | self.changed) & self.rows.reusable):
            paths = pa.repeat(pa.scalar(file.path), len(rows))
            parts.append(pa.table([rows["content_sha256"], paths, rows["row"]], schema=PLACES))
        parquet.write_table(url, pa.concat_tables([PLACES.empty_table(), *parts]).sort_by("content_sha256"))

    def _rows_by_file(self, chosen: NDArray[np.bool_]) -> Iterator[tuple[TableFile, pa.Table]]:
        """Yield the chosen rows of each file: key, digest, and `row`, the number in the file."""
        for number in np.unique(self.rows.file[chosen]).tolist():
            rows = self.rows.row[chosen & (self.rows.file == number)]
            columns = parquet.read_columns(self.table.path(self.files[number].path), [*KEY, "content_sha256"]).take(rows)
            yield self.files[number], columns.append_column("row", pa.array(rows))


_DTYPES: dict[str, Any] = {
    "digests": np.uint64,
    "version": np.uint64,
    "kind": np.uint8,
    "attempt": np.uint8,
    "reusable": bool,
    "container": np.uint64,
    "file": np.int32,
    "row": np.int64,
    "labelled_us": np.int64,
}
