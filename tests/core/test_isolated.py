"""The alarm over the work of many threads; in processes that may die of it."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import threading, time
from concurrent.futures import ThreadPoolExecutor
from fer_pipeline.core.isolated import alarm

watch = alarm(0.6)

def work(seconds):
    with watch():
        time.sleep(seconds)

with ThreadPoolExecutor(2) as pool:
    list(pool.map(work, {pieces}))
time.sleep(1)  # nothing is at work: nothing is late
print("ended")
"""


@pytest.mark.parametrize(
    ("pieces", "ends"),
    [
        ([0.2] * 10, True),  # a second in all, and waiting for one's turn is no work
        ([], True),
        ([3.0], False),
        ([0.2, 0.2, 3.0, 0.2, 0.2], False),
    ],
)
def test_a_piece_that_never_ends_ends_the_process_and_a_long_queue_does_not(pieces: list[float], ends: bool) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(pieces=pieces)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == ((0, "ended") if ends else (-signal.SIGALRM, ""))
