"""Exact and near copies, label conflicts and blank images: the samples that training should leave out."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from fer_pipeline.base.config import Config
from fer_pipeline.base.sets import Sets, groups_of
from fer_pipeline.faces.phash import near_pairs

Keys = NDArray[np.int64]

DUPLICATE_COLUMNS = ["sample_id", "split", "label", "sha256", "phash", "contrast"]
BLANK_CONTRAST = 3.0
"""An image with less contrast, in grey levels, is blank."""
FLAGGED = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # blank, conflict, leak, near leak, copy or near copy
        pa.field("like", pa.string()),  # the sample of which it is a copy
    ]
)


class Duplicates(Config):
    """Copies in a dataset. Exact copies have equal pixels in any encoding; near copies have almost equal perceptual hashes."""

    groups: int
    """Number of groups of two or more equal images."""
    images: int
    """Number of images in those groups."""
    conflicting_groups: int
    """Number of groups with different labels."""
    within: dict[str, int]
    """By split: number of images that equal an earlier image of the split."""
    across: dict[str, int]
    """By `a -> b`: number of images of split b that are also in split a."""
    near_pairs: int = 0
    """Number of pairs of different images that are near copies."""
    near_across: dict[str, int] = Field(default_factory=dict)
    """By `a -> b`: number of images of split b with a near copy, but no exact copy, in split a."""
    blank: int = 0
    """Number of blank images. They count as near copies of no image."""


def inspect(samples: pa.Table) -> tuple[Duplicates, pa.Table]:
    """Return the duplicates among a dataset's samples (`DUPLICATE_COLUMNS`), and the flagged samples as rows of `FLAGGED`.

    A sample is flagged if it is blank, if a copy of it has another label, if it has a copy in another split, or if it is a
    copy of an earlier image of its split.
    """
    split = samples["split"].combine_chunks().dictionary_encode()
    names, splits, labels = split.dictionary.to_pylist(), split.indices.to_numpy(), samples["label"].to_numpy()
    blank = samples["contrast"].to_numpy() < BLANK_CONTRAST
    exact, near, pairs = copy_keys(samples)
    reasons: dict[int, tuple[str, int | None]] = {int(index): ("blank", None) for index in np.flatnonzero(blank)}
    groups = groups_of(exact)
    conflicting = [group for group in groups if len(set(labels[group])) > 1]
    for group in conflicting:
        reasons |= {int(index): ("conflict", int(group[0])) for index in group if int(index) not in reasons}
    within, across = _count(groups, splits, names)
    near_groups = groups_of(near)
    for kind, found in (("", groups), ("near ", near_groups)):
        for group in found:
            for index in map(int, group):
                same_split = splits[group] == splits[index]
                elsewhere, earlier = group[~same_split], group[(group < index) & same_split]
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
    """Return keys that exact copies share, keys that near copies share too, and the number of pairs of near copies.

    A blank image is a near copy of no image, because blank images differ only by noise.
    """
    blank = np.flatnonzero(samples["contrast"].to_numpy() < BLANK_CONTRAST)
    exact = np.asarray(pc.rank(samples["sha256"], tiebreaker="dense").to_numpy()).astype(np.int64)
    firsts = np.setdiff1d(np.unique(exact, return_index=True)[1], blank)
    pairs = near_pairs(samples["phash"].take(pa.array(firsts)))
    alike = Sets()
    for one, other in exact[firsts[pairs]].tolist():
        alike.join(one, other)
    near = exact.copy()
    for index in np.flatnonzero(np.isin(exact, exact[firsts[pairs]])):
        near[index] = alike.of(int(exact[index]))
    return exact, near, len(pairs)


@dataclass(frozen=True)
class Copies:
    """Copies among a split's samples, and among them and the samples that a model learned from."""

    groups: dict[str, int]
    """A number for each sample id of the split; exact and near copies share it."""
    exact: frozenset[str]
    """Ids of samples of the split with an exact copy among the learned samples."""
    near: frozenset[str]
    """Ids of samples of the split with a near copy, but no exact copy, among them."""

    @property
    def learned(self) -> frozenset[str]:
        """Ids of samples of the split with an exact or near copy among them."""
        return self.exact | self.near


def find_copies(samples: pa.Table, split: str, learned_split: str | None, left_out: frozenset[str] = frozenset()) -> Copies:
    """Return the copies of the samples (`DUPLICATE_COLUMNS`) in `split`, among each other and among the learned samples.

    The learned samples are those of `learned_split` (None: none of this dataset) without the ids `left_out`.
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
    """Return the sha256 of the sorted digests of a split's images. The same images give the same digest in any ingest."""
    digests = samples["sha256"].filter(pc.equal(samples["split"], split)).to_pylist()
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def join_keys(keys: Keys, names: list[str | None]) -> Keys:
    """Return keys that samples share if they share a key or a name, directly or indirectly. A name of None is ignored."""
    together = Sets()
    first: dict[str, int] = {}
    for key, name in zip(keys.tolist(), names, strict=True):
        if name is not None:
            together.join(key, first.setdefault(name, key))
    return np.array([together.of(key) for key in keys.tolist()], np.int64)


def _count(groups: list[NDArray[np.intp]], splits: NDArray[np.integer], names: list[str]) -> tuple[Counter[str], Counter[str]]:
    """Return `Duplicates.within` and `Duplicates.across` of groups of copies."""
    within: Counter[str] = Counter()
    across: Counter[str] = Counter()
    for group in groups:
        per_split = Counter(names[split] for split in splits[group])
        within.update({split: number - 1 for split, number in per_split.items()})
        across.update({f"{one} -> {other}": per_split[other] for one, other in permutations(sorted(per_split), 2)})
    return within, across
