"""Where the seconds of this process go: each stage of a record adds its own."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

_seconds: defaultdict[str, float] = defaultdict(float)
_writing = threading.Lock()


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Count the time of a block to a stage, also where it raises."""
    began = time.perf_counter()
    try:
        yield
    finally:
        with _writing:
            _seconds[stage] += time.perf_counter() - began


def take() -> dict[str, float]:
    """Return the seconds by stage since the last call."""
    with _writing:
        taken = dict(_seconds)
        _seconds.clear()
    return taken
