"""Processes for untrusted files: their time limits, and their end with their caller's."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
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


CALLER = """
from fer_pipeline.base.isolated import IsolatedProcess
for number in IsolatedProcess().call("tests.base.test_isolated:endless", timeout_s=60):
    print(number, flush=True)
"""


def endless() -> Iterator[int]:
    while True:
        yield os.getpid()
        time.sleep(0.01)


@pytest.mark.parametrize("asked", [signal.SIGKILL, signal.SIGINT], ids=lambda asked: asked.name)
def test_a_process_whose_caller_ends_ends_too_and_says_nothing(asked: signal.Signals, tmp_path: Path) -> None:
    with (tmp_path / "said").open("w+") as said:
        caller = subprocess.Popen(
            [sys.executable, "-c", CALLER],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=said,
            process_group=0,
            text=True,
        )
        assert caller.stdout is not None
        answering = int(caller.stdout.readline())
        if asked == signal.SIGINT:
            os.killpg(caller.pid, asked)  # as Ctrl-C does: all processes of the caller's group
        else:
            caller.send_signal(asked)
        caller.communicate(timeout=60)
        assert psutil.wait_procs([psutil.Process(answering)] if psutil.pid_exists(answering) else [], timeout=60)[1] == []
        said.seek(0)
        lines = said.read().splitlines()
    assert lines == [] if asked != signal.SIGINT else lines[-1] == "KeyboardInterrupt" and lines.count("KeyboardInterrupt") == 1


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
