"""Exact and near copies, label conflicts and blank images of a dataset, and which samples training should leave out."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from fer_pipeline.core.config import Config

Keys = NDArray[np.int64]

DUPLICATE_COLUMNS = ["sample_id", "split", "label", "sha256", "phash", "contrast"]
BLANK_BELOW = 3.0
"""Contrast, in grey levels, under which an image shows nothing."""
NEAR_BITS = 12
"""Of 256 bits of the perceptual hash, how many may differ between near copies. The pixels of all pairs found so in FER-2013
correlate by .984 or more, as those of re-encoded and rescaled copies do."""
BUCKET = 2000
"""Most images that agree in a band of the hash and are compared: beyond, the band says nothing."""

FLAGGED = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # blank, conflict, leak, near leak, copy or near copy
        pa.field("like", pa.string()),  # the sample that it is a copy of
    ]
)


class Duplicates(Config):
    """Copies in a dataset: exact ones have equal pixels, whatever their encoding; near ones almost equal perceptual hashes."""

    groups: int
    """Groups of two or more equal images."""
    images: int
    """Images in those groups."""
    conflicting_groups: int
    """Groups that carry different labels."""
    within: dict[str, int]
    """By split: images that equal an earlier one of the split."""
    across: dict[str, int]
    """By `a -> b`: images of split b that stand in split a too."""
    near_pairs: int = 0
    """Pairs of different images that are near copies."""
    near_across: dict[str, int] = Field(default_factory=dict)
    """By `a -> b`: images of split b with a near, but no exact copy in split a."""
    blank: int = 0
    """Images without contrast; they are not looked at for near copies."""


def inspect(samples: pa.Table) -> tuple[Duplicates, pa.Table]:
    """Return what a dataset's samples (`DUPLICATE_COLUMNS`) hold of copies, and the samples to flag, as rows of `FLAGGED`.

    Flagged are blank images, all of a group of copies that carry different labels, images with a copy in another split, and
    copies of an earlier image of the same split.
    """
    split = samples["split"].combine_chunks().dictionary_encode()
    names, splits, labels = split.dictionary.to_pylist(), split.indices.to_numpy(), samples["label"].to_numpy()
    blank = samples["contrast"].to_numpy() < BLANK_BELOW
    exact, near, pairs = copy_keys(samples)
    reasons: dict[int, tuple[str, int | None]] = {int(index): ("blank", None) for index in np.flatnonzero(blank)}
    groups = _groups(exact)
    conflicting = [group for group in groups if len(set(labels[group])) > 1]
    for group in conflicting:
        reasons |= {int(index): ("conflict", int(group[0])) for index in group if int(index) not in reasons}
    within, across = _count(groups, splits, names)
    near_groups = _groups(near)
    for kind, found in (("", groups), ("near ", near_groups)):
        for group in found:
            for index in map(int, group):
                elsewhere, earlier = (
                    group[splits[group] != splits[index]],
                    group[(group < index) & (splits[group] == splits[index])],
                )
                if len(elsewhere):
                    reasons.setdefault(index, (f"{kind}leak", int(elsewhere[0])))
                elif len(earlier):
                    reasons.setdefault(index, (f"{kind}copy", int(earlier[0])))
    order = sorted(reasons)
    ids = samples["sample_id"]
    flagged = pa.table(
        [
            ids.take(pa.array(order, pa.int64())),
            [names[splits[index]] for index in order],
            [reasons[index][0] for index in order],
            ids.take(pa.array([reasons[index][1] for index in order], pa.int64())),
        ],
        schema=FLAGGED,
    )
    duplicates = Duplicates(
        groups=len(groups),
        images=sum(map(len, groups)),
        conflicting_groups=len(conflicting),
        within=dict(within),
        across=dict(across),
        near_pairs=pairs,
        near_across=dict(_count(near_groups, splits, names)[1] - across),
        blank=int(blank.sum()),
    )
    return duplicates, flagged


def copy_keys(samples: pa.Table) -> tuple[Keys, Keys, int]:
    """Return a key by which exact copies are equal, one by which near copies are too, and the number of pairs of near copies.

    Blank images are not near to anything: they differ by noise alone.
    """
    blank = np.flatnonzero(samples["contrast"].to_numpy() < BLANK_BELOW)
    exact = np.asarray(pc.rank(samples["sha256"], tiebreaker="dense").to_numpy()).astype(np.int64)
    firsts = np.setdiff1d(np.unique(exact, return_index=True)[1], blank)
    pairs = near_pairs(samples["phash"].take(pa.array(firsts)))
    parent: dict[int, int] = {}
    for one, other in np.sort(exact[firsts[pairs]], axis=1):
        parent[_root(parent, int(other))] = _root(parent, int(one))
    near = exact.copy()
    for index in np.flatnonzero(np.isin(exact, list(parent))):
        near[index] = _root(parent, int(exact[index]))
    return exact, near, len(pairs)


@dataclass(frozen=True)
class Copies:
    """What a split's samples share with each other and with the samples that a model learned from."""

    groups: dict[str, int]
    """By sample id of the split: a number that exact and near copies share."""
    exact: frozenset[str]
    """Those of the split with an exact copy among the learned samples."""
    near: frozenset[str]
    """Those with a near copy, but no exact one."""

    @property
    def learned(self) -> frozenset[str]:
        """Those with an exact or near copy."""
        return self.exact | self.near


def find_copies(samples: pa.Table, split: str, learned_split: str | None, left_out: frozenset[str] = frozenset()) -> Copies:
    """Return the copies that a dataset's samples (`DUPLICATE_COLUMNS`) in `split` have there and among the learned ones.

    It learned `learned_split`, None for nothing of this dataset, without the samples with the ids `left_out`.
    """
    exact, near, _ = copy_keys(samples)
    chosen = pc.equal(samples["split"], split).to_numpy()
    learned = pc.equal(samples["split"], learned_split or "").to_numpy()
    learned &= ~pc.is_in(samples["sample_id"], pa.array(left_out, pa.string())).to_numpy()
    ids = np.array(samples["sample_id"].to_pylist(), object)
    equal, alike = np.isin(exact, exact[learned]), np.isin(near, near[learned])
    return Copies(
        groups=dict(zip(ids[chosen], near[chosen].tolist(), strict=True)),
        exact=frozenset(ids[chosen & equal]),
        near=frozenset(ids[chosen & alike & ~equal]),
    )


def split_digest(samples: pa.Table, split: str) -> str:
    """Return the sha256 over the sorted digests of a split's images: the same for the same images, however they were ingested."""
    digests = samples["sha256"].filter(pc.equal(samples["split"], split)).to_pylist()
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def join_keys(keys: Keys, names: list[str | None]) -> Keys:
    """Return keys that are equal where `keys` or `names` are, directly or by way of other samples; None is no name."""
    parent: dict[int, int] = {}
    first: dict[str, int] = {}
    for key, name in zip(keys.tolist(), names, strict=True):
        if name is not None:
            parent[_root(parent, key)] = _root(parent, first.setdefault(name, key))
    return np.array([_root(parent, key) for key in keys.tolist()], np.int64)


def _root(parent: dict[int, int], key: int) -> int:
    while parent.get(key, key) != key:
        key = parent[key]
    return key


def _groups(keys: NDArray[Any]) -> list[NDArray[np.intp]]:
    """Return the positions, ascending, of each key that stands more than once."""
    order = np.argsort(keys, kind="stable")
    cuts = np.flatnonzero(np.diff(keys[order])) + 1
    return [group for group in np.split(order, cuts) if len(group) > 1]


def _count(groups: list[NDArray[np.intp]], splits: NDArray[np.integer], names: list[str]) -> tuple[Counter[str], Counter[str]]:
    """Return how many images of each split stand in it before, and how many of split b stand in split a too, by `a -> b`."""
    within: Counter[str] = Counter()
    across: Counter[str] = Counter()
    for group in groups:
        per_split = Counter(names[split] for split in splits[group])
        within.update({split: number - 1 for split, number in per_split.items()})
        across.update({f"{one} -> {other}": per_split[other] for one, other in permutations(sorted(per_split), 2)})
    return within, across


def near_pairs(hashes: pa.ChunkedArray) -> NDArray[np.intp]:
    """Return pairs (n, 2) of positions, ascending, whose 256-bit hashes differ in at most `NEAR_BITS` bits.

    By the pigeonhole principle such a pair agrees in one of `NEAR_BITS + 1` bands, so only those that do are compared.
    """
    packed = _packed(hashes.to_pylist())
    found = [np.zeros((0, 2), np.intp)]
    for keys in _bands(packed):
        for group in _groups(keys):
            if len(group) > BUCKET:
                continue
            apart = np.bitwise_count(packed[group][:, None] ^ packed[group][None]).sum(2)
            one, other = np.nonzero(np.triu(apart <= NEAR_BITS, 1))
            found.append(np.stack([group[one], group[other]], 1))
    return np.unique(np.concatenate(found), axis=0)


def near_to(hashes: pa.ChunkedArray, others: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Tell of 256-bit hashes (n,), null for none, whether any of some others differs in at most `NEAR_BITS` bits."""
    values = hashes.to_pylist()
    has = np.array([value is not None for value in values], bool)
    ours, theirs = _packed([value for value in values if value is not None]), _packed(others.to_pylist())
    near = np.zeros(len(ours), bool)
    for keys, their_keys in zip(_bands(ours), _bands(theirs), strict=True):
        order = np.argsort(their_keys, kind="stable")
        first, last = (np.searchsorted(their_keys[order], keys, side) for side in ("left", "right"))
        for index in np.flatnonzero(~near & (last > first)):
            apart = np.bitwise_count(theirs[order[first[index] : last[index]]] ^ ours[index]).sum(1)
            near[index] = (apart <= NEAR_BITS).any()
    found = np.zeros(len(values), bool)
    found[has] = near
    return found


def _packed(hashes: list[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32)


def _bands(packed: NDArray[np.uint8]) -> Iterator[NDArray[np.int64]]:
    """Yield, for each of `NEAR_BITS + 1` stretches of the bits of hashes (n, 32), its value in each hash (n,)."""
    bits = np.unpackbits(packed, axis=1)
    width = 256 // (NEAR_BITS + 1)
    weights = 1 << np.arange(width)
    for band in range(NEAR_BITS + 1):
        yield bits[:, band * width : (band + 1) * width] @ weights
