"""The time limit of work in many threads, tested in processes that it may kill."""

import resource
import signal
import subprocess
import sys

import pytest

from fer_pipeline.base import memory

PROGRAM = """
import threading, time
from concurrent.futures import ThreadPoolExecutor
from fer_pipeline.base.isolated import alarm

watch = alarm(0.6)

def work(seconds):
    with watch():
        time.sleep(seconds)

with ThreadPoolExecutor(2) as pool:
    list(pool.map(work, {pieces}))
time.sleep(1)  # no work is running, so nothing is late
print("ended")
"""


@pytest.mark.parametrize(
    ("pieces", "ends"),
    [
        ([0.2] * 10, True),  # one second in total, but waiting in the queue does not count
        ([], True),
        ([3.0], False),
        ([0.2, 0.2, 3.0, 0.2, 0.2], False),
    ],
)
def test_a_piece_that_never_ends_ends_the_process_and_a_long_queue_does_not(pieces: list[float], ends: bool) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(pieces=pieces)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == ((0, "ended") if ends else (-signal.SIGALRM, ""))


def test_a_read_that_ends_does_not_lift_the_limit_that_a_worker_has_set() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)[0]
    try:
        with memory.bounded_read("x"):
            bounded = memory.bounded_memory(memory.MEMORY_BYTES)
            with bounded():
                inside = resource.getrlimit(resource.RLIMIT_AS)[0]
                with memory.bounded_read("y"):
                    pass
                assert resource.getrlimit(resource.RLIMIT_AS)[0] == inside
        assert resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    finally:
        memory.lift_memory_limit()
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == before
