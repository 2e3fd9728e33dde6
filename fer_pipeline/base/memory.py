"""Limits the memory of this process while it works on untrusted files, or reads files that somebody else may have written."""

import os
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

MAX_PIXELS = 100_000_000
"""Pixels of the largest image that is decoded, unless the user sets another limit."""
MAX_FILE_BYTES = 256 * 1024**2
"""Size of the largest file that labelling reads, unless the user sets another limit."""
MEMORY_BYTES = 2 * 1024**3
"""Memory that the work on one file may use, in addition to what the process uses before."""
THREAD_BYTES = 192 * 1024**2
"""Address space of each thread that a library starts at its first read: the stack and the reserve of the allocator."""


def taken_bytes() -> int:
    """Return the size of this process's address space; 0 if the system does not report it."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0


def limit_memory(allowance_bytes: int, taken: int | None = None) -> None:
    """Limit the address space of this process to `taken` (default: its current size) plus `allowance_bytes`.

    Allocations above it raise MemoryError. The kernel can limit address space (`RLIMIT_AS`), but not resident memory.
    """
    base = taken_bytes() if taken is None else taken
    if base:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = base + allowance_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def lift_memory_limit() -> None:
    """Undo `limit_memory`, for data that a process loads once and that is trusted."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def bounded_memory(allowance_bytes: int) -> Callable[[], AbstractContextManager[None]]:
    """Return a context manager that allows this process `allowance_bytes` more than it uses now, and three times as much outside.

    Records are decoded inside. Their results are processed outside, where untrusted input still decides the size.
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
    """Reading an untrusted file needs more memory than the limit."""


class _Reads:
    """The bounded reads that are running in this process. They share one limit."""

    def __init__(self) -> None:
        self._lock, self._count, self._limit = threading.Lock(), 0, 0

    def begin(self) -> None:
        """Limit this process unless it is limited already or uses a GPU: CUDA reserves much address space."""
        with self._lock:
            self._count += 1
            torch = sys.modules.get("torch")
            on_gpu = torch is not None and torch.cuda.is_initialized()
            if not on_gpu and resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
                limit_memory(MEMORY_BYTES + THREAD_BYTES * (os.cpu_count() or 1))
                self._limit = resource.getrlimit(resource.RLIMIT_AS)[0]

    def end(self) -> None:
        """Lift the limit after the last read, unless a worker has set its own limit in the meantime."""
        with self._lock:
            self._count -= 1
            if not self._count and resource.getrlimit(resource.RLIMIT_AS)[0] == self._limit:
                lift_memory_limit()


_reads = _Reads()


@contextmanager
def bounded_read(what: str) -> Iterator[None]:
    """Limit the memory of the reads in this context. Raise ReadTooLargeError, which names `what` is read, if they need more."""
    _reads.begin()
    try:
        yield
    except ReadTooLargeError:
        raise
    except MemoryError as error:
        reason = " ".join(str(error).split())[:200]
        raise ReadTooLargeError(f"'{what}' needs more memory to be read than the limit: {reason}") from error
    finally:
        _reads.end()
