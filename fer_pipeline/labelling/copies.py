"""Copies and near copies among labelled images: equal bytes, other sizes, other encodings, mirrored ones."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fer_pipeline.faces.phash import NEAR_BITS, groups_of, mirrored, near_pairs, packed_hashes, root_of

COPIES = pa.schema(
    [
        pa.field("group", pa.int32(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("path", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("size_bytes", pa.int64()),
        pa.field("like", pa.string()),
    ]
)
"""An image that has copies: the number of its group, the largest group first; what it is beside the image `like`, the largest of
the group: `original` (itself), `exact`, `re-encoded`, `resized`, `mirrored`, or `near` (a copy of another copy only)."""
OF_IMAGE = ("path", "width", "height", "size_bytes", "content_sha256", "phash", "time_ms")
FEWEST_BITS = 64
"""A hash has half of its 256 bits set. A picture without contrast has few; it is a near copy of nothing."""


def copies_among(images: pa.Table) -> pa.Table:
    """Return rows of `COPIES` for images, which have the columns `OF_IMAGE`. Frames of videos are none.

    Near copies differ in at most `NEAR_BITS` bits of their perceptual hashes, those of mirrored pictures after a mirroring.
    """
    images = images.filter(pc.is_null(images["time_ms"]))
    images = images.filter(pc.is_valid(images["content_sha256"])).sort_by("path")
    parent: dict[int, int] = {}

    def join(one: int, other: int) -> None:
        parent[root_of(parent, max(one, other))] = root_of(parent, min(one, other))

    digests = images["content_sha256"].combine_chunks().dictionary_encode().indices.to_numpy()
    for group in groups_of(digests):
        for other in group[1:].tolist():
            parent[other] = int(group[0])
    places, hashes = _distinct_hashes(images["phash"], np.unique(digests, return_index=True)[1])
    count = len(places)
    both = np.concatenate([hashes, mirrored(hashes)])
    pairs = near_pairs(pa.chunked_array([[one.tobytes() for one in both]], pa.binary()))
    for one, other in pairs[pairs[:, 0] < count].tolist():
        if one != other - count:  # not a symmetrical picture beside itself
            join(int(places[one]), int(places[other % count]))
    keys = np.array([root_of(parent, index) for index in range(len(images))])
    groups = sorted(groups_of(keys), key=lambda group: (-len(group), int(group[0])))
    return _rows(images, groups, digests)


def _distinct_hashes(column: pa.ChunkedArray, firsts: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
    """Return which of the images have a hash that tells pictures apart, and these hashes (n, 32)."""
    values = column.take(pa.array(firsts)).to_pylist()
    places = [place for place, value in zip(firsts.tolist(), values, strict=True) if value]
    packed = packed_hashes([bytes.fromhex(value) for value in values if value])
    told = np.bitwise_count(packed).sum(1) >= FEWEST_BITS
    return np.array(places, np.intp)[told], packed[told]


def _rows(images: pa.Table, groups: list[NDArray[np.intp]], digests: NDArray[np.int32]) -> pa.Table:
    rows = []
    for number, group in enumerate(groups):
        found = images.take(pa.array(group)).to_pylist()
        best = max(range(len(found)), key=lambda index: ((found[index]["width"] or 0) * (found[index]["height"] or 0), -index))
        for index, row in enumerate(found):
            equal = bool(digests[group[index]] == digests[group[best]])
            kind = "original" if index == best else "exact" if equal else _kind(row, found[best])
            rows.append({"group": number, "kind": kind, "like": found[best]["path"]} | {name: row[name] for name in OF_IMAGE[:4]})
    return pa.Table.from_pylist(rows, schema=COPIES)


def _kind(row: dict[str, object], like: dict[str, object]) -> str:
    ours, theirs = (packed_hashes([bytes.fromhex(str(one["phash"]))]) if one["phash"] else None for one in (row, like))
    if ours is None or theirs is None:
        return "near"
    if np.bitwise_count(ours ^ theirs).sum() <= NEAR_BITS:
        return "re-encoded" if (row["width"], row["height"]) == (like["width"], like["height"]) else "resized"
    return "mirrored" if np.bitwise_count(mirrored(ours) ^ theirs).sum() <= NEAR_BITS else "near"
