"""Batches that shrink when the device runs out of memory."""

import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Batches:
    """Calls a function with batches of `size` items, and halves the size for good when the device runs out of memory."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, function: Callable[[Any], Result], items: Any) -> Iterator[Result]:
        """Yield the function's result for each batch of a sequence or an array, in order."""
        start = 0
        while start < len(items):
            batch = items[start : start + self.size]
            try:
                result = function(batch)
            except RuntimeError as error:
                if type(error).__name__ != "OutOfMemoryError" or len(batch) == 1:  # torch's error, named to avoid the import
                    raise
                self.size = max(1, len(batch) // 2)
                log.warning("The device cannot hold a batch of %d: the batch size is now %d", len(batch), self.size)
                continue
            yield result
            start += len(batch)
