"""How much memory this process may take: for work on strangers' files, and for reading what somebody else may have written."""

import os
import resource
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


class _Reads:
    """The reads that go on in this process, which share one limit."""

    def __init__(self) -> None:
        self._lock, self._count, self._limited = threading.Lock(), 0, False

    def begin(self) -> None:
        with self._lock:
            self._count += 1
            soft, _ = resource.getrlimit(resource.RLIMIT_AS)
            if soft == resource.RLIM_INFINITY:  # else this process is limited already, and by less
                limit_memory(MEMORY_BYTES + THREAD_BYTES * (os.cpu_count() or 1))
                self._limited = True

    def end(self) -> None:
        with self._lock:
            self._count -= 1
            if self._limited and not self._count:
                lift_memory_limit()
                self._limited = False


_reads = _Reads()


@contextmanager
def bounded_read(what: str) -> Iterator[None]:
    """Read under a limit of memory; raise MemoryError, which names `what` is read, where that does not suffice."""
    _reads.begin()
    try:
        yield
    except MemoryError as error:
        raise MemoryError(f"'{what}' takes more memory than it may to be read: {' '.join(str(error).split())[:200]}") from error
    finally:
        _reads.end()
