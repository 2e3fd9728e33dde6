"""The rows of the published table, and digests of their keys."""

from collections.abc import Iterable, Sequence
from functools import reduce
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fer_pipeline.archive.record import Record
from fer_pipeline.base.errors import UserError
from fer_pipeline.faces.decoding_version import DECODING, is_outdated
from fer_pipeline.labelling.corrections import REVIEWED
from fer_pipeline.labelling.schemas import FACE_PLACES, FACES, IMAGES, MANIFEST, SUCCEEDED
from fer_pipeline.models.card import ModelCard
from fer_pipeline.models.framing import LANDMARK_COLUMNS

SCHEMA_VERSION = 1
KEY = ["uri", "member", "time_ms"]
"""The columns that identify a row. Each key is in the table once."""


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return a type without dictionaries and fixed-size lists, which Delta Lake does not support."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_struct(kind):
        return pa.struct([one.with_type(_plain(one.type)) for one in kind])
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain(kind.value_type))
    return kind


ROWS = pa.schema(
    [field.with_type(_plain(field.type)) for field in IMAGES if field.name not in ("record_id", "shard", "colours")]
    + [
        pa.field("source", pa.string(), nullable=False),  # the listed source
        pa.field("published_by", pa.string(), nullable=False),  # the run that published the row; `run_id` computed it
    ]
)

VANISHED = pa.schema([ROWS.field(name).with_nullable(True) for name in KEY])
"""The keys of the rows that publishing a run removes from the table."""


_COLUMNS = {name for schema in (MANIFEST, FACE_PLACES, IMAGES, FACES, ROWS) for name in schema.names} | {
    "input",
    *LANDMARK_COLUMNS,
    *REVIEWED,
}


def is_taken(name: str) -> bool:
    """Return whether tables or exports have a column of this name, in letters of any case."""
    return name.lower() in _COLUMNS or name.lower().startswith("p_")


def require_free_columns(card: ModelCard, keep: Sequence[str] = ()) -> None:
    """Raise UserError if a further output, or a column to keep, has the name of another column."""
    taken = set[str]()
    of_card = [(one.column, f"The model '{card.name}' has a further output '{one.column}'", "its card") for one in card.further]
    for name, what, where in [*of_card, *((name, f"--keep {name}", "the list") for name in keep)]:
        if is_taken(name) or name.lower() in taken:
            raise UserError(f"{what}: tables or exports have a column of that name: give it another name in {where}.")
        taken.add(name.lower())


Digests = NDArray[np.uint64]
"""(n, 2) uint64: a 128-bit hash of each key."""


def rows_of(images: pa.Table, source: str, run_id: str) -> pa.Table:
    """Return rows of `schemas.IMAGES` as rows of the table, ordered by key."""
    for name, value in (("source", source), ("published_by", run_id)):
        images = images.append_column(name, pa.repeat(pa.scalar(value), len(images)))
    return images.select(ROWS.names).cast(ROWS).sort_by([(name, "ascending") for name in KEY])


def key_digests(uris: Sequence[str], members: Sequence[str | None], times_ms: Sequence[int | None]) -> Digests:
    """Return the digests (n, 2) of keys. Two different keys collide in one of 10^24 tables of ten million rows."""
    texts = (f"{uri}\0{member}\0{time_ms}" for uri, member, time_ms in zip(uris, members, times_ms, strict=True))
    data = b"".join([blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts])
    return np.frombuffer(data, np.uint64).reshape(-1, 2)


def digests_of(table: pa.Table) -> Digests:
    """Return the digests of the keys of rows."""
    uris, members, times_ms = (table[name].to_pylist() for name in KEY)
    return key_digests(uris, members, times_ms)


def digests_of_records(records: Sequence[Record]) -> Digests:
    """Return the digests of the keys of records."""
    return key_digests([one.uri for one in records], [one.member for one in records], [one.time_ms for one in records])


DECODED = ("width", "height", "decoding")
"""The columns that tell, with key and status, whether a later version of decoding changes a row."""


def decoded_differently(rows: pa.Table, detect_px: int) -> NDArray[np.bool_]:
    """Return which rows (n,) an earlier version of decoding made that may have decoded them differently."""
    chosen = np.flatnonzero(pc.less(pc.fill_null(rows["decoding"], 1), DECODING).to_numpy())
    names = ("uri", "member", "time_ms", "status", "width", "height")
    facts = zip(*(rows[name].take(chosen).to_pylist() for name in names), strict=True)
    found = np.zeros(len(rows), bool)
    found[chosen] = [
        is_outdated(member or uri, time_ms is not None, status in SUCCEEDED, (width, height), detect_px)
        for uri, member, time_ms, status, width, height in facts
    ]
    return found


def all_true(conditions: Sequence[Any]) -> Any:
    """Return where all conditions, Arrow arrays (n,), are true; null is not."""
    return pc.fill_null(reduce(pc.and_, conditions), False)


def version_hashes(firsts: Sequence[object], etags: Sequence[str | None]) -> NDArray[np.uint64]:
    """Return a hash (n,) of each pair of a size, or uri, and an etag."""
    texts = (f"{first}\0{etag}" for first, etag in zip(firsts, etags, strict=True))
    digests = [blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(digests), np.uint64)


class DigestSet:
    """A set of digests for lookups of many at once. It takes 24 bytes per digest."""

    def __init__(self, digests: Digests) -> None:
        self._order = np.argsort(digests[:, 0], kind="stable")
        self._high, self._low = digests[self._order, 0], digests[self._order, 1]

    def __len__(self) -> int:
        return len(self._high)

    def find(self, digests: Digests) -> NDArray[np.int64]:
        """Return the index (n,) of each digest among those of this set, in their original order; -1 if it is not in the set."""
        if not len(self._high):
            return np.full(len(digests), -1, np.int64)
        index = np.minimum(np.searchsorted(self._high, digests[:, 0]), len(self._high) - 1)
        same = (self._high[index] == digests[:, 0]) & (self._low[index] == digests[:, 1])
        return np.where(same, self._order[index], -1)


def concatenated(parts: Iterable[Digests]) -> Digests:
    """Return the concatenated digests; (0, 2) if there are none."""
    return np.concatenate([np.empty((0, 2), np.uint64), *parts])
