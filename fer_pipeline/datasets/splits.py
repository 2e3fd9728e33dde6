"""Hold out a share of a split, stratified by class. The samples of a group stay together."""

import numpy as np
from numpy.typing import NDArray


def hold_out(labels: NDArray[np.integer], groups: NDArray[np.integer], share: float, seed: int) -> NDArray[np.bool_]:
    """Return the samples to hold out (n,): about `share` of every class, and all or none of a group.

    The seed decides the order of the groups, whatever their size. A group is held out if that brings the classes closer to
    their shares. Copies are therefore no more frequent among the held-out samples than among the rest, and with groups of one
    image every class gets its share to within one image.
    """
    names, group = np.unique(groups, return_inverse=True)
    classes = int(labels.max(initial=-1)) + 1
    counts = np.zeros((len(names), classes))
    np.add.at(counts, (group, labels), 1)
    wanted = share * counts.sum(0)
    weight = 1 / np.maximum(wanted, 1e-9)
    order = np.random.default_rng(seed).permutation(len(names))
    held, got = np.zeros(len(names), bool), np.zeros(classes)
    for index in order:
        missing = wanted - got
        held[index] = (weight * ((missing - counts[index]) ** 2 - missing**2)).sum() < 0
        if held[index]:
            got += counts[index]
    return held[group]
