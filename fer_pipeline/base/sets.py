"""Sets that are joined, and positions grouped by a key."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Sets:
    """Disjoint sets of whole numbers, at first each number alone. The smallest number of a set stands for it."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def of(self, number: int) -> int:
        """Return the number that stands for the set of a number."""
        root = number
        while (parent := self._parent.get(root, root)) != root:
            root = parent
        while number != root:
            self._parent[number], number = root, self._parent[number]
        return root

    def join(self, one: int, other: int) -> None:
        """Join the sets of two numbers."""
        first, second = sorted((self.of(one), self.of(other)))
        self._parent[second] = first


def groups_of(keys: NDArray[Any]) -> list[NDArray[np.intp]]:
    """Return the positions, in ascending order, of each key that occurs more than once."""
    order = np.argsort(keys, kind="stable")
    cuts = np.flatnonzero(np.diff(keys[order])) + 1
    return [group for group in np.split(order, cuts) if len(group) > 1]
