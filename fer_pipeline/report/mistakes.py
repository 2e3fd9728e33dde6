"""A model's worst mistakes: for the pairs of classes that it confuses most, the images of which it was surest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PAIRS, PER_PAIR = 8, 6


@dataclass(frozen=True)
class Mistake:
    """An image with another label than the one predicted."""

    sample: str
    confidence: float


@dataclass(frozen=True)
class Confusion:
    """Images of one label that were taken for another class."""

    label: str
    predicted: str
    images: int
    worst: Sequence[Mistake]
    """Those of which the model was surest, in that order."""


def confusions(
    ids: NDArray[np.object_], labels: NDArray[np.int64], probabilities: NDArray[np.float32], classes: Sequence[str]
) -> list[Confusion]:
    """Return the most frequent pairs of label and wrong prediction.

    `ids` and `labels` (n,), `probabilities` (n, classes).
    """
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(predicted != labels)
    pairs, inverse, counts = np.unique(
        np.stack([labels[wrong], predicted[wrong]]), axis=1, return_inverse=True, return_counts=True
    )
    found = []
    for pair in np.argsort(-counts, kind="stable")[:PAIRS]:
        mine = wrong[np.ravel(inverse) == pair]
        worst = mine[np.argsort(-confidence[mine], kind="stable")][:PER_PAIR]
        label, other = pairs[:, pair]
        mistakes = [Mistake(str(ids[place]), float(confidence[place])) for place in worst]
        found.append(Confusion(classes[label], classes[other], int(counts[pair]), mistakes))
    return found


Pictures = Mapping[str, str]
"""Data URLs by sample id."""
