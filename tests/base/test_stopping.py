"""How a command ends: with its own exit code, whatever threads of libraries still run."""

import subprocess
import sys

import pytest

ENDING = """
import atexit, sys, threading, time
from fer_pipeline.base.stopping import run_as_process

class TornDown:
    def __del__(self):
        print("torn down")

kept = TornDown()
atexit.register(lambda: print("exit function"))

def command():
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    {ends}

run_as_process(command)
"""


@pytest.mark.parametrize(
    ("ends", "exit_code", "said"),
    [
        ("pass", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('no')", 1, "no"),
        ("raise ValueError('a bug')", 1, "ValueError: a bug"),
    ],
)
def test_a_process_ends_with_the_commands_exit_code_before_python_shuts_down(ends: str, exit_code: int, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", ENDING.format(ends=ends)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (exit_code, "thread\nexit function\n")
    assert done.stderr.strip().endswith(said)
