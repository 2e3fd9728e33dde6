"""Read ahead: work on the next items begins while the caller is busy with this one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Begun = TypeVar("Begun")


def read_ahead(
    items: Iterable[Item],
    begin: Callable[[Item], Begun],
    most: int,
    weigh: Callable[[Item], float] = lambda item: 0.0,
    most_weight: float = float("inf"),
) -> Iterator[tuple[Item, Begun]]:
    """Yield each item, in order, with what `begin` returned for it, such as a future.

    Begin at most `most` items ahead of the caller, which together weigh at most `most_weight`; one item may weigh more.
    """
    waiting: deque[tuple[Item, Begun, float]] = deque()
    weight = 0.0
    for item in items:
        own = weigh(item)
        while waiting and (len(waiting) > most or weight + own > most_weight):
            first, begun, less = waiting.popleft()
            weight -= less
            yield first, begun
        waiting.append((item, begin(item), own))
        weight += own
    while waiting:
        first, begun, _ = waiting.popleft()
        yield first, begun
