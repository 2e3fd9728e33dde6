"""A training loses its driver or a worker, and ends as one that was left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

from fer_pipeline.jobs.ingest import IngestConfig
from fer_pipeline.jobs.ingest import run as ingest

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

EPOCHS = 30
RECIPE = f"""
[network]
width = 4
[training]
epochs = {EPOCHS}
batch_size = 32
learning_rate = 0.02
precision = "fp32"
mixup = 0.2
ema_decay = 0.9
"""
History = list[dict[str, Any]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, History]:
    """A folder with a recipe and a dataset, and the history of a training that was left alone."""
    folder = tmp_path_factory.mktemp("training")
    write_dataset(folder)
    assert drive(folder, "undisturbed").wait() == 0
    return folder, history(folder / "undisturbed")


def write_dataset(folder: Path, epochs: int = EPOCHS) -> None:
    """Write a dataset of 320 striped images, `data`, and `recipe.toml`."""
    rng = np.random.default_rng(0)
    for number in range(320):
        picture = np.tile(128 + 30 * np.sign(np.sin(np.arange(48) * 0.8)), (48, 1))
        picture = picture if number % 2 else picture.T
        path = folder / "tree" / ("train" if number < 256 else "validation") / ("sad", "happy")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.clip(picture + rng.normal(0, 60, (48, 48)), 0, 255).astype(np.uint8))
    ingest(IngestConfig(source=str(folder / "tree"), out=str(folder / "data")))
    (folder / "recipe.toml").write_text(RECIPE.replace(f"epochs = {EPOCHS}", f"epochs = {epochs}"))


def drive(folder: Path, name: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "fer_pipeline.cli", "train", str(folder / "recipe.toml"), "--data", str(folder / "data")]
    command += ["--out", str(folder / name), "--num-workers", "2", "--allow-missing-classes"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def history(out: Path) -> History:
    found: History = json.loads((out / "history.json").read_text())
    return [{key: value for key, value in epoch.items() if key != "images_per_s"} for epoch in found]


def wait_for_epochs(checkpoints: Path, count: int, driver: "subprocess.Popen[bytes]") -> None:
    """Return when so many epochs are done."""
    while driver.poll() is None:
        for live in checkpoints.glob("*/progress.json"):
            if len(json.loads(live.read_text())["history"]) >= count:
                return
        time.sleep(0.02)
    pytest.fail("the training ended before it could be disturbed: make it longer")


@pytest.mark.long
def test_a_killed_driver_goes_on_where_it_was(trained: tuple[Path, History]) -> None:
    folder, undisturbed = trained
    for epochs in (3, 12):
        driver = drive(folder, "driver")
        wait_for_epochs(folder / "driver.checkpoints", epochs, driver)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    assert drive(folder, "driver").wait() == 0
    assert history(folder / "driver") == undisturbed
    assert (folder / "driver" / "model.safetensors").read_bytes() == (folder / "undisturbed" / "model.safetensors").read_bytes()


@pytest.mark.long
def test_a_killed_worker_is_replaced_and_goes_on_where_it_was(trained: tuple[Path, History]) -> None:
    folder, undisturbed = trained
    driver = drive(folder, "worker")
    wait_for_epochs(folder / "worker.checkpoints", 5, driver)
    workers = [
        child for child in psutil.Process(driver.pid).children(recursive=True) if "RayTrainWorker" in " ".join(child.cmdline())
    ]
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    assert driver.wait() == 0
    assert history(folder / "worker") == undisturbed
    assert (folder / "worker" / "model.safetensors").read_bytes() == (folder / "undisturbed" / "model.safetensors").read_bytes()
