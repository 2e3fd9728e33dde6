"""Counts the seconds that this process spends in each stage of the work on records."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

_seconds: defaultdict[str, float] = defaultdict(float)
_lock = threading.Lock()


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Add the duration of the block to the stage, also if the block raises."""
    start = time.perf_counter()
    try:
        yield
    finally:
        with _lock:
            _seconds[stage] += time.perf_counter() - start


def take() -> dict[str, float]:
    """Return the seconds by stage since the last call."""
    with _lock:
        taken = dict(_seconds)
        _seconds.clear()
    return taken
