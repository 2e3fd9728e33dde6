"""What a listing has that the table does not hold, and what the table holds that is not listed any more: a streaming join.

The table's rows of one source are kept as numbers, some fifty bytes each; the listing passes by.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fer_pipeline.core import storage
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.manifest import Record
from fer_pipeline.core.run import Increment
from fer_pipeline.core.schemas import FAILED, FINE
from fer_pipeline.table.delta import LabelTable, TableFile
from fer_pipeline.table.nights import night_ids
from fer_pipeline.table.reuse import PLACES
from fer_pipeline.table.rows import KEY, VANISHED, DigestSet, digests_of, digests_of_records

BATCH = 10_000
HELD, RETRY, OUTDATED = range(3)
IDENTITY = ("model_digest", "detector_digest", "settings_digest")
"""What made a row, besides the bytes: a row of another identity is outdated."""
FACTS = [*KEY, "size_bytes", "etag", "status", "error", "attempt", "content_sha256", "labelled_at", *IDENTITY]


@dataclass
class _Rows:
    """Columns (n,) over the table's rows in scope."""

    digests: NDArray[np.uint64]
    version: NDArray[np.uint64]
    """A hash of size and etag."""
    kind: NDArray[np.uint8]
    attempt: NDArray[np.uint8]
    """Nights that tried a failed record, or tried in vain to make a row of another identity anew; 0: none has."""
    reusable: NDArray[np.bool_]
    """Whether equal bytes would get the same labels today."""
    container: NDArray[np.uint64]
    """A hash of uri and etag."""
    file: NDArray[np.int32]
    row: NDArray[np.int64]
    labelled_us: NDArray[np.int64]
    """When its row was computed, in microseconds."""


class Comparison:
    """Compares one listing of a source with the table."""

    def __init__(
        self,
        table: LabelTable,
        covers: Callable[[str, str | None, int | None, bool], bool],
        prefix: str,
        identity: dict[str, str],
        max_attempts: int,
        relabel_budget: int | None = None,
        retry_status: Sequence[str] = (),
    ) -> None:
        """`covers`: whether a row below `prefix` is one that the listing could list (`Listing.covers`). `identity`: what would
        label now.

        At most `relabel_budget` rows of another identity are made anew: of those that are listed, the oldest first. Failed
        records of a `retry_status` are tried again however often that was done.
        """
        self.table, self.covers, self.prefix = table, covers, prefix
        self.identity, self.max_attempts, self.relabel_budget = identity, max_attempts, relabel_budget
        self.retry_status = pa.array(retry_status, pa.string())
        self.nights = len(night_ids(table.url))
        self.files = table.files
        parts = [self._read(number, file) for number, file in enumerate(self.files)]
        columns = {name: [getattr(part, name) for part in parts] for name in _Rows.__dataclass_fields__}
        empty = _Rows(*(np.empty((0, 2) if name == "digests" else 0, kind) for name, kind in _KINDS.items()))
        self.rows = _Rows(*(np.concatenate([getattr(empty, name), *found]) for name, found in columns.items()))
        self._find = DigestSet(self.rows.digests).find
        self.seen = np.zeros(len(self.rows.kind), bool)
        self.changed = np.zeros(len(self.rows.kind), bool)
        self.listed = self.held = self.new = self.outdated = self.retried = self.doubled = 0

    def _read(self, number: int, file: TableFile) -> _Rows:
        rows = storage.read_columns(self.table.path(file.path), FACTS)
        below = pc.or_(pc.equal(rows["uri"], self.prefix), pc.starts_with(rows["uri"], self.prefix.rstrip("/") + "/"))
        place = np.flatnonzero(below.to_numpy())
        rows = rows.take(place)
        is_place = _all([pc.is_in(rows["status"], pa.array(FAILED)), pc.is_null(rows["member"]), pc.equal(rows["etag"], "")])
        facts = [*(rows[name].to_pylist() for name in KEY), is_place.to_pylist()]
        covered = np.fromiter(map(self.covers, *facts), bool, len(rows))
        rows, place = rows.filter(pa.array(covered)), place[covered]
        ours = _all([pc.equal(rows[name], self.identity[name]) for name in IDENTITY]).to_numpy()
        looked_at = pc.is_in(rows["status"], pa.array(FINE)).to_numpy()
        in_vain = ~looked_at | pc.is_valid(rows["error"]).to_numpy()
        attempt = np.where(in_vain, np.minimum(rows["attempt"].to_numpy(), 255), 0).astype(np.uint8)
        again = (attempt < self.max_attempts) | pc.is_in(rows["status"], self.retry_status).to_numpy()
        kind = np.where(~looked_at & again, RETRY, np.where(ours | (looked_at & ~again), HELD, OUTDATED)).astype(np.uint8)
        attempt[~looked_at & (kind == OUTDATED)] = 0  # another model or detector begins anew
        fine = looked_at & pc.is_valid(rows["content_sha256"]).to_numpy()
        etags = rows["etag"].to_pylist()
        version, container = _hashes(rows["size_bytes"].to_pylist(), etags), _hashes(rows["uri"].to_pylist(), etags)
        file_number = np.full(len(rows), number, np.int32)
        labelled_us = rows["labelled_at"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
        return _Rows(digests_of(rows), version, kind, attempt, ours & fine, container, file_number, place, labelled_us)

    def to_label(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield the records that must be labelled: new, changed, failed before and to be tried again, and outdated.

        Under a budget the outdated ones come last: which of those that are listed are the oldest is known at the end.
        """
        oldest: list[tuple[int, int, Record]] = []
        """A heap of at most `relabel_budget` outdated records, the youngest row first, with their places in the listing."""
        for record, place, same in self._listed(records):
            again = self._judge(place, same)
            if again is None:
                continue
            record = replace(record, attempt=again) if again > 1 else record
            if self.relabel_budget is None or not same or self.rows.kind[place] != OUTDATED:
                yield record
                continue
            age = (-int(self.rows.labelled_us[place]), -self.listed, record)
            pushed_out = heapq.heappushpop(oldest, age) if len(oldest) >= self.relabel_budget else None
            if pushed_out is None:
                heapq.heappush(oldest, age)
            else:
                self.outdated -= 1
                self.held += 1
        yield from (record for _, _, record in sorted(oldest, key=lambda one: -one[1]))

    def _listed(self, records: Iterable[Record]) -> Iterator[tuple[Record, int, bool]]:
        """Yield the listing's records, the first of each key: with the place of its row, -1 for none, and whether that is of
        the same size and etag."""
        rest, container, members = iter(records), "", set[str | None]()
        while batch := list(islice(rest, BATCH)):
            found = self._find(digests_of_records(batch))
            versions = _hashes([one.size_bytes for one in batch], [one.etag for one in batch])
            same = (found >= 0) & (self.rows.version[found] == versions) if len(self.rows.version) else found >= 0
            for record, place, is_same in zip(batch, found.tolist(), same.tolist(), strict=True):
                if record.uri != container:
                    container, members = record.uri, set()
                if record.time_ms is None:
                    if record.member in members:
                        self.doubled += 1
                        continue
                    members.add(record.member)
                self.listed += 1
                if record.error and record.member is None and record.etag:  # what it holds is not known: it has not vanished
                    self.seen |= self.rows.container == _hashes([record.uri], [record.etag])
                yield record, place, is_same

    def require_nothing_below(self, places: Sequence[str]) -> None:
        """Raise UserError where the table holds files below one of these places, which cannot be listed, or members of it."""
        for file in self.files:
            near = [place for place in places if (file.first_uri or "") < f"{place}0" and place <= (file.last_uri or place)]
            if not near:
                continue
            rows = storage.read_columns(self.table.path(file.path), KEY)
            inside = pc.or_(pc.is_valid(rows["member"]), pc.is_valid(rows["time_ms"]))
            for place in near:
                held = pc.or_(pc.starts_with(rows["uri"], f"{place}/"), pc.and_(pc.equal(rows["uri"], place), inside))
                if pc.any(held).as_py():
                    raise UserError(
                        f"The table holds files of '{place}', which cannot be listed, so they cannot be told from vanished "
                        "ones: make it readable, or leave it out with --exclude."
                    )

    def _judge(self, place: int, same: bool) -> int | None:
        """Return which attempt labelling a record would be; None where its row is held. `same`: as the row's version."""
        if place < 0:
            self.new += 1
            return 1
        self.seen[place] = True
        if not same:
            self.changed[place] = True
            return 1
        kind = self.rows.kind[place]
        if kind == HELD:
            self.held += 1
            return None
        if kind == OUTDATED:
            self.outdated += 1
        else:
            self.retried += 1
        return int(self.rows.attempt[place]) + 1

    @property
    def vanished(self) -> int:
        """Rows of the source that were not listed, once all of the listing has passed."""
        return int((~self.seen).sum())

    def increment(self) -> Increment:
        """Return what it came to, in numbers."""
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
        found = [rows.select(KEY).cast(VANISHED) for _, rows in self._facts(~self.seen)]
        storage.write_table(url, pa.concat_tables([VANISHED.empty_table(), *found]))

    def write_places(self, url: str) -> None:
        """Write where the rows stand whose bytes may turn up again: those that changed or vanished, by digest of the bytes."""
        parts = []
        for file, rows in self._facts((~self.seen | self.changed) & self.rows.reusable):
            paths = pa.repeat(pa.scalar(file.path), len(rows))
            parts.append(pa.table([rows["content_sha256"], paths, rows["row"]], schema=PLACES))
        storage.write_table(url, pa.concat_tables([PLACES.empty_table(), *parts]).sort_by("content_sha256"))

    def _facts(self, chosen: NDArray[np.bool_]) -> Iterator[tuple[TableFile, pa.Table]]:
        """Yield, file by file, key and digest of chosen rows, and `row`, their place in the file."""
        for number in np.unique(self.rows.file[chosen]).tolist():
            rows = self.rows.row[chosen & (self.rows.file == number)]
            facts = storage.read_columns(self.table.path(self.files[number].path), [*KEY, "content_sha256"]).take(rows)
            yield self.files[number], facts.append_column("row", pa.array(rows))


_KINDS: dict[str, Any] = {
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


def _all(conditions: list[Any]) -> Any:
    whole = conditions[0]
    for one in conditions[1:]:
        whole = pc.and_(whole, one)
    return pc.fill_null(whole, False)


def _hashes(firsts: Sequence[object], etags: Sequence[str | None]) -> NDArray[np.uint64]:
    """Return a hash (n,) of each size, or uri, with its etag."""
    texts = (f"{first}\0{etag}" for first, etag in zip(firsts, etags, strict=True))
    digests = [blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(digests), np.uint64)
