"""Copies and near copies among labelled images: equal bytes, other sizes, other encodings, mirrored ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fer_pipeline.base.sets import Sets, groups_of
from fer_pipeline.faces.phash import NEAR_BITS, hashes_of, mirrored, near_groups, packed_hashes

COPIES = pa.schema(
    [
        pa.field("group", pa.int32(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("path", pa.string()),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("size_bytes", pa.int64()),
        pa.field("like", pa.string()),
    ]
)
"""An image that has copies: the number of its group, the largest group first; what it is beside the largest image of the group,
whose path is `like`: `original` (itself), `exact`, `resized`, `same size` (encoded again, edited a little, or the next of a
burst), `mirrored`, or `near` (a copy of another copy only)."""
PLACE = ("path", "uri", "member")
NEEDED = (*PLACE, "width", "height", "size_bytes", "content_sha256", "phash", "time_ms")
FEWEST_BITS = 64
"""A hash has half of its 256 bits set. A picture without contrast has few; it is a near copy of nothing."""


def like(images: pa.Table, content_sha256: str, phash: bytes) -> pa.Table:
    """Return the rows of images that are copies of a picture, with `kind`: `exact`, `near` or `mirrored`."""
    hashes = hashes_of(images["phash"]).to_pylist()
    theirs = packed_hashes([one or bytes(32) for one in hashes])
    mine = packed_hashes([phash])
    tells = np.bitwise_count(theirs).sum(1) >= FEWEST_BITS
    equal = pc.fill_null(pc.equal(images["content_sha256"], content_sha256), False).to_numpy(zero_copy_only=False)
    near, mirror = (tells & (np.bitwise_count(theirs ^ one).sum(1) <= NEAR_BITS) for one in (mine, mirrored(mine)))
    kinds = np.select([equal, near, mirror], ["exact", "near", "mirrored"], "")
    found = np.flatnonzero(kinds != "")
    return images.take(pa.array(found)).append_column("kind", pa.array(kinds[found].tolist(), pa.string()))


def copies_among(images: pa.Table, further: Sequence[str] = ()) -> pa.Table:
    """Return rows of `COPIES`, and `further` columns, for images, which have the columns `NEEDED`. Frames of videos are none.

    Near copies differ in at most `NEAR_BITS` bits of their perceptual hashes, those of mirrored pictures after a mirroring.
    """
    images = images.filter(pc.and_(pc.is_null(images["time_ms"]), pc.is_valid(images["content_sha256"])))
    images = images.sort_by([(name, "ascending") for name in PLACE])
    images = images.set_column(images.column_names.index("phash"), "phash", hashes_of(images["phash"]))
    same, digests = Sets(), images["content_sha256"].combine_chunks().dictionary_encode().indices.to_numpy()
    for group in groups_of(digests):
        for other in group[1:].tolist():
            same.join(int(group[0]), other)
    places, hashes = _told_apart(images["phash"].to_pylist())
    distinct, number = np.unique(hashes, axis=0, return_inverse=True) if len(hashes) else (hashes, np.empty(0, np.intp))
    firsts: dict[int, int] = {}
    for place, one in zip(places, number.ravel().tolist(), strict=True):
        same.join(place, firsts.setdefault(one, place))
    for near in near_groups(np.concatenate([distinct, mirrored(distinct)])):
        for other in near[1:].tolist():
            same.join(firsts[int(near[0]) % len(distinct)], firsts[other % len(distinct)])
    keys = np.array([same.of(index) for index in range(len(images))], np.int64)
    groups = sorted(groups_of(keys), key=lambda group: (-len(group), int(group[0])))
    return _rows(images, groups, digests, further)


def _told_apart(hashes: list[bytes | None]) -> tuple[list[int], NDArray[np.uint8]]:
    """Return the positions of the hashes that tell pictures apart, and these hashes (n, 32)."""
    places = [place for place, value in enumerate(hashes) if value]
    packed = packed_hashes([value for value in hashes if value])
    told = np.bitwise_count(packed).sum(1) >= FEWEST_BITS
    return np.array(places, np.intp)[told].tolist(), packed[told]


def _rows(images: pa.Table, groups: list[NDArray[np.intp]], digests: NDArray[np.int32], further: Sequence[str]) -> pa.Table:
    schema, rows = pa.schema([*COPIES, *(images.schema.field(name) for name in further)]), []
    for number, group in enumerate(groups):
        found = images.take(pa.array(group)).to_pylist()
        best = max(range(len(found)), key=lambda index: ((found[index]["width"] or 0) * (found[index]["height"] or 0), -index))
        for index, row in enumerate(found):
            equal = bool(digests[group[index]] == digests[group[best]])
            kind = "original" if index == best else "exact" if equal else _kind(row, found[best])
            rows.append(row | {"group": number, "kind": kind, "like": found[best]["path"]})
    return pa.Table.from_pylist(rows, schema=schema)


def _kind(row: dict[str, Any], like: dict[str, Any]) -> str:
    if not (row["phash"] and like["phash"]):
        return "near"
    ours, theirs = (packed_hashes([one["phash"]]) for one in (row, like))
    if np.bitwise_count(ours ^ theirs).sum() <= NEAR_BITS:
        return "same size" if (row["width"], row["height"]) == (like["width"], like["height"]) else "resized"
    return "mirrored" if np.bitwise_count(mirrored(ours) ^ theirs).sum() <= NEAR_BITS else "near"
