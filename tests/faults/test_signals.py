"""Stopped at random moments: the right exit code, one line, nothing left behind, and the next run continues."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from fer_pipeline.models.bundle import EMBEDDED
from tests.conftest import copies
from tests.faults.test_nodes import rows
from tests.faults.test_training import history, write_dataset

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


@dataclass(frozen=True)
class Command:
    """A command that is stopped, the folder it writes, and how long it may run before a signal comes."""

    arguments: list[str]
    out: Path
    longest_s: float

    def start(self, environment: dict[str, str]) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", *self.arguments],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def result(self) -> Any:
        """Return what the command came to, without times."""
        if (self.out / "history.json").exists():
            return history(self.out), (self.out / "model.safetensors").read_bytes()
        if (self.out / "evaluation.json").exists():
            return {**json.loads((self.out / "evaluation.json").read_text()), "evaluated_at": None}
        return rows(self.out) if (self.out / "_SUCCESS").exists() else None


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> Path:
    """A folder with photos to label, a dataset and a recipe."""
    folder = tmp_path_factory.mktemp("inputs")
    copies(archive, folder / "photos", 40)
    write_dataset(folder, epochs=8)
    return folder


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A temporary folder with a path that is short enough for Ray's sockets."""
    folder = Path(f"/tmp/s{os.getpid() % 100_000}")
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def command(name: str, inputs: Path, out: Path) -> Command:
    source, data = str(inputs / "photos"), str(inputs / "data")
    of_each = {
        "label": ["fer_pipeline.cli", "label", source, "--out", str(out), "--detector", "none", "--shard-records", "4"],
        "train": ["fer_pipeline.cli", "train", str(inputs / "recipe.toml"), "--data", data, "--out", str(out)],
        "evaluate": ["fer_pipeline.cli", "evaluate", str(EMBEDDED), "--data", data, "--split", "train", "--out", str(out)],
        "flow": ["flows.label", json.dumps({"source": source, "out": str(out), "detector": "none", "shard_records": 4})],
    }
    more = ["--allow-missing-classes"] * (name == "train")
    return Command([*of_each[name], *more], out, {"label": 16, "train": 25, "evaluate": 10, "flow": 30}[name])


@pytest.mark.parametrize("name", ["label", "train", "evaluate", "flow"])
@pytest.mark.parametrize("signals", [1, pytest.param(20, marks=pytest.mark.long)])
def test_a_stopped_command_says_so_and_is_continued(
    signals: int, name: str, inputs: Path, tmp_path: Path, temporary: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "HOME": str(home), "PREFECT_HOME": str(home / "prefect")}
    plain, stopped = (command(name, inputs, tmp_path / one) for one in ("plain", "stopped"))
    plain.start(environment).communicate()
    assert plain.result()
    before = left_in(temporary, home)
    rng, seconds = random.Random(name), []
    for number in range(signals):
        asked = (signal.SIGTERM, signal.SIGINT)[(number + len(name)) % 2]
        seconds.append(stop(stopped, asked, rng.uniform(2, stopped.longest_s), environment))
        if stopped.result():
            shutil.rmtree(stopped.out)
    driver = stopped.start(environment)
    _, said = driver.communicate()
    assert driver.returncode == 0, said
    assert stopped.result() == plain.result()
    assert left_in(temporary, home) == before
    print(f"{name}: {len([one for one in seconds if one])} stopped, the slowest in {max(one or 0 for one in seconds):.1f} s")


def left_in(*folders: Path) -> set[Path]:
    """Return all that stands in some folders: what the first run leaves there, a cache or a database, no other adds to."""
    return {path for folder in folders for path in folder.rglob("*")}


def stop(stopped: Command, asked: signal.Signals, after_s: float, environment: dict[str, str]) -> float | None:
    """Stop a command at a moment and return the seconds that its end took; None where it was over before."""
    driver = stopped.start(environment)
    time.sleep(after_s)
    started = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
    if driver.poll() is not None or stopped.result():
        driver.communicate()
        return None
    began = time.monotonic()
    driver.send_signal(asked)
    _, said = driver.communicate(timeout=60)
    seconds = time.monotonic() - began
    if driver.returncode == 0:
        assert stopped.result()
        return None
    assert driver.returncode in (EXIT_CODES[asked], -asked), said
    assert "Traceback" not in said and "***" not in said, said
    if stopped.arguments[0] == "fer_pipeline.cli":
        assert said.splitlines()[-1].startswith("fer-pipeline: stopped, "), said
    _, left = psutil.wait_procs(started, timeout=60)
    assert not left
    return seconds


WAITING = """
import time
from fer_pipeline.engine.connect import ClusterConfig, connected
from fer_pipeline.engine.tasks import fan_out
def slow(item):
    time.sleep(60)
with connected(ClusterConfig(num_cpus=1)) as machines:
    print("up", flush=True)
    list(fan_out(slow, range(2), machines=machines))
"""


def test_a_job_that_waits_for_ray_ends_at_once_as_its_process_would() -> None:
    job = subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert job.stdout and job.stdout.readline() == "up\n"
    time.sleep(2)
    started = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signal.SIGTERM)
    _, said = job.communicate(timeout=60)
    assert job.returncode == -signal.SIGTERM and "SystemError" not in said, said
    assert not psutil.wait_procs(started, timeout=60)[1]
