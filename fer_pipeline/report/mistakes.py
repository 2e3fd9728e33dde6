"""A model's worst mistakes: for the most frequent confusions, the images with the highest confidence."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Mistake:
    """An image whose label is not the predicted one."""

    sample: str
    confidence: float


@dataclass(frozen=True)
class Confusion:
    """Images of one label for which the model predicts another class."""

    label: str
    predicted: str
    images: int
    worst: Sequence[Mistake]
    """Those with the highest confidence, in descending order."""


def confusions(
    ids: NDArray[np.object_], labels: NDArray[np.int64], probabilities: NDArray[np.float32], classes: Sequence[str]
) -> list[Confusion]:
    """Return the 8 most frequent pairs of label and wrong prediction, each with its 6 most confident mistakes.

    `ids` and `labels` have the shape (n,), `probabilities` (n, classes).
    """
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(predicted != labels)
    pairs, inverse, counts = np.unique(
        np.stack([labels[wrong], predicted[wrong]]), axis=1, return_inverse=True, return_counts=True
    )
    found = []
    for pair in np.argsort(-counts, kind="stable")[:8]:
        mine = wrong[np.ravel(inverse) == pair]
        worst = mine[np.argsort(-confidence[mine], kind="stable")][:6]
        label, other = pairs[:, pair]
        mistakes = [Mistake(str(ids[place]), float(confidence[place])) for place in worst]
        found.append(Confusion(classes[label], classes[other], int(counts[pair]), mistakes))
    return found
