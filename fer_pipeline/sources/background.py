"""An iterator that is worked on in another thread while it waits to be read, a bounded number of items ahead."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from itertools import islice
from queue import Full, Queue
from typing import Generic, TypeVar

Item = TypeVar("Item")

BATCH, BATCHES_AHEAD = 500, 8
LOOK_S = 0.2
"""How often a full iterator looks whether it is still wanted."""


class Background(Generic[Item]):
    """What `make()` yields, from a thread of `pool`; an exception is raised where it would have been."""

    def __init__(self, pool: Executor, make: Callable[[], Iterator[Item]]) -> None:
        self._items: Queue[tuple[Item, ...] | BaseException | None] = Queue(BATCHES_AHEAD)
        self._unwanted = threading.Event()
        pool.submit(self._work, make)

    def _work(self, make: Callable[[], Iterator[Item]]) -> None:
        if self._unwanted.is_set():
            return
        try:
            items = make()
            while batch := tuple(islice(items, BATCH)):
                if not self._put(batch):
                    return
            self._put(None)
        except BaseException as error:  # noqa: BLE001 (raised in the thread that reads)
            self._put(error)

    def _put(self, batch: tuple[Item, ...] | BaseException | None) -> bool:
        while not self._unwanted.is_set():
            try:
                self._items.put(batch, timeout=LOOK_S)
            except Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[Item]:
        while (batch := self._items.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            yield from batch

    def stop(self) -> None:
        """Have the thread end; nothing is read any more."""
        self._unwanted.set()
