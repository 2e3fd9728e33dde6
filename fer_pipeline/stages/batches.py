"""Batches on a device whose memory may not hold them."""

import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Batches:
    """Calls a function with so many items at once; with half as many from the time on when the device cannot hold them."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, function: Callable[[Any], Result], items: Any) -> Iterator[Result]:
        """Yield what the function returns for each batch of a sequence's or an array's items, in their order."""
        start = 0
        while start < len(items):
            batch = items[start : start + self.size]
            try:
                result = function(batch)
            except RuntimeError as error:
                if type(error).__name__ != "OutOfMemoryError" or len(batch) == 1:  # torch's, which is not imported for its sake
                    raise
                self.size = max(1, len(batch) // 2)
                log.warning("The device cannot hold %d at once: %d are taken from now on", len(batch), self.size)
                continue
            yield result
            start += len(batch)
