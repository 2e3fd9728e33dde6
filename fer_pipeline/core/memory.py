"""How much memory this process may take: for work on strangers' files, and for reading what somebody else may have written."""

import os
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

MEMORY_BYTES = 2 * 1024**3
"""Memory that work on one file may take, beside what the process has when it begins."""
THREAD_BYTES = 192 * 1024**2
"""Address space of a thread that a library starts when it first reads: its stack, and what its allocator reserves."""


def taken_bytes() -> int:
    """Return the address space that this process has taken; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0


def limit_memory(allowance_bytes: int, taken: int | None = None) -> None:
    """Let this process take so much more address space than `taken`, by default now; beyond, allocations raise MemoryError.

    Address space, and not resident memory, is what the kernel can limit (`RLIMIT_AS`).
    """
    base = taken_bytes() if taken is None else taken
    if base:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = base + allowance_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def lift_memory_limit() -> None:
    """Take back `limit_memory`: what a process loads once is not a stranger's."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def bounded_memory(allowance_bytes: int) -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which this process may take so much more than it has now, and three times as much outside of it.

    Inside is the work on records; outside is what the project does with their results, which strangers bound too.
    """
    taken = taken_bytes()

    @contextmanager
    def bounded() -> Iterator[None]:
        limit_memory(allowance_bytes, taken)
        try:
            yield
        finally:
            limit_memory(3 * allowance_bytes, taken)

    return bounded


class ReadTooLargeError(MemoryError):
    """Reading what somebody else may have written takes more memory than it may."""


class _Reads:
    """The bounded reads that go on in this process, which share one limit."""

    def __init__(self) -> None:
        self._lock, self._count, self._limit = threading.Lock(), 0, 0

    def begin(self) -> None:
        """Limit this process, unless it is limited already; one that computes on a GPU is not: CUDA reserves what it likes."""
        with self._lock:
            self._count += 1
            torch = sys.modules.get("torch")
            on_gpu = torch is not None and torch.cuda.is_initialized()
            if not on_gpu and resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
                limit_memory(MEMORY_BYTES + THREAD_BYTES * (os.cpu_count() or 1))
                self._limit = resource.getrlimit(resource.RLIMIT_AS)[0]

    def end(self) -> None:
        """Lift the limit with the last read, where it is still that of reading: a worker may have set its own meanwhile."""
        with self._lock:
            self._count -= 1
            if not self._count and resource.getrlimit(resource.RLIMIT_AS)[0] == self._limit:
                lift_memory_limit()


_reads = _Reads()


@contextmanager
def bounded_read(what: str) -> Iterator[None]:
    """Read under a limit of memory; raise ReadTooLargeError, which names `what` is read, where that does not suffice."""
    _reads.begin()
    try:
        yield
    except ReadTooLargeError:
        raise
    except MemoryError as error:
        said = " ".join(str(error).split())[:200]
        raise ReadTooLargeError(f"'{what}' takes more memory than it may to be read: {said}") from error
    finally:
        _reads.end()
