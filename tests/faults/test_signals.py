"""Stopped at random moments: the right exit code, one line, nothing left behind, and the next run continues."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fer_pipeline.jobs.label import job as label
from tests.conftest import copies
from tests.faults.test_nodes import config, rows

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
WITHIN_S = 10


def limit_s() -> float:
    """Return the time that an end may take, longer where other work keeps the cores."""
    return WITHIN_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.mark.parametrize("signals", [4, pytest.param(20, marks=pytest.mark.long)])
def test_a_stopped_run_says_so_and_is_continued(signals: int, archive: Path, tmp_path: Path) -> None:
    source, plain, out = copies(archive, tmp_path / "source", 80), tmp_path / "plain", tmp_path / "run"
    command = [sys.executable, "-m", "fer_pipeline.cli", "label", str(source), "--out", str(out), "--detector", "none"]
    rng = random.Random(0)
    for number in range(signals):
        asked = (signal.SIGTERM, signal.SIGINT)[number % 2]
        driver = subprocess.Popen([*command, "--shard-records", "4"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while not driver.stderr.readline().startswith("Detector"):  # type: ignore[union-attr]
            assert driver.poll() is None
        time.sleep(rng.uniform(0, 8))
        started = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(asked)
        began = time.monotonic()
        _, said = driver.communicate(timeout=60)
        if (out / "_SUCCESS").exists():
            assert number, "the run ended before it was stopped once: make it longer"
            break
        assert driver.returncode == EXIT_CODES[asked], said
        assert time.monotonic() - began < limit_s()
        assert said.splitlines()[-1].startswith("fer-pipeline: stopped, ") and "Traceback" not in said
        assert "***" not in said or "records in" not in said, "only while Ray starts does it print a stack of its own"
        _, left = psutil.wait_procs(started, timeout=limit_s())
        assert not left
    assert subprocess.run([*command, "--shard-records", "4"], capture_output=True).returncode == 0
    label.run(config(source, plain))
    assert rows(out) == rows(plain)


WAITING = """
import time
from fer_pipeline.jobs.cluster import ClusterConfig, connected
from fer_pipeline.jobs.shared import fan_out
def slow(item):
    time.sleep(60)
with connected(ClusterConfig(num_cpus=1)):
    print("up", flush=True)
    list(fan_out(slow, range(2)))
"""


def test_a_job_that_waits_for_ray_ends_at_once_as_its_process_would() -> None:
    job = subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert job.stdout and job.stdout.readline() == "up\n"
    time.sleep(2)
    started, began = psutil.Process(job.pid).children(recursive=True), time.monotonic()
    job.send_signal(signal.SIGTERM)
    _, said = job.communicate(timeout=60)
    assert job.returncode == -signal.SIGTERM and "SystemError" not in said, said
    assert time.monotonic() - began < limit_s() and not psutil.wait_procs(started, timeout=limit_s())[1]
