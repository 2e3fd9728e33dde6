"""Fixtures: real photos that come with packages, optional real data beside the checkout, and Ray where a test asks for it."""

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest

import fer_pipeline as fer
from fer_pipeline.archive import listing
from fer_pipeline.archive.record import Record
from fer_pipeline.base.isolated import IsolatedProcess
from fer_pipeline.base.stopping import exit_without_shutdown
from fer_pipeline.cli import sample_archive
from fer_pipeline.cli.sample_archive import SampleArchiveConfig
from fer_pipeline.engine.connect import ClusterConfig, connected
from fer_pipeline.faces.detectors import resolve_detector
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.jobs import ingest, publish
from fer_pipeline.jobs.ingest import IngestConfig
from fer_pipeline.jobs.publish import PublishConfig
from fer_pipeline.labelling.labeller import Labeller, LabelSettings
from fer_pipeline.models.bundle import EMBEDDED, read_bundle

# Ray Train takes one report of an epoch each time it looks at its workers, every two seconds by default.
os.environ |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_metrics_report_interval_ms": "1000"}

SHARED = Path(__file__).resolve().parents[2] / "shared"


def until(condition: Callable[[], Any], what: str | Callable[[], str] = "it", limit_s: float = 300.0) -> float:
    """Wait until the condition holds and return the seconds that it took. Give a limit only where it is what is promised."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > limit_s:
            raise AssertionError(f"{what if isinstance(what, str) else what()} did not happen within {limit_s:g} s")
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End the tests as commands end: threads of Arrow can crash a Python that shuts down under them."""
    session = config.pluginmanager.get_plugin("session")
    if session is not None:
        exit_without_shutdown(int(session.exitstatus), after_exit_functions=True)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """An empty cache of its own for the session, its child processes included."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def memory_limit() -> Iterator[None]:
    """No test leaves a memory limit behind: what later tests start would inherit it."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    yield
    assert resource.getrlimit(resource.RLIMIT_AS) == before


class KeptProcess(IsolatedProcess):
    """An isolated process that goes on for the next listing of another test, where it is idle: starting one takes a second."""

    idle: ClassVar[list["subprocess.Popen[bytes]"]] = []

    def _ask(self, function: str, arguments: tuple[object, ...]) -> bool:
        if self._child is None and self.idle:
            self._child, self._buffer, self._idle = self.idle.pop(), b"", True
        return super()._ask(function, arguments)

    def close(self) -> None:
        if self._child is not None and self._idle and self._child.poll() is None:
            self.idle.append(self._child)
            self._child = None
        else:
            super().close()


@pytest.fixture(scope="session", autouse=True)
def kept_processes() -> Iterator[None]:
    """Listings of different tests share the processes that open strangers' files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "IsolatedProcess", KeptProcess)
        yield
    for child in KeptProcess.idle:
        child.kill()
        child.communicate()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data beside the checkout; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the real data in ../shared")
    return SHARED


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample archive: 36 images, 2 of them broken, in folders, a tar and a zip."""
    folder = tmp_path_factory.mktemp("sample") / "archive"
    sample_archive.run(SampleArchiveConfig(dest=str(folder), people=False))
    return folder


@pytest.fixture(scope="session")
def hopper(archive: Path) -> Pixels:
    """A portrait, BGR, its long side 640 px."""
    found = next(archive.rglob("hopper-640.jpg"))
    return np.asarray(cv2.imread(str(found)), np.uint8)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of two cores on this machine, shared by the tests that ask for it."""
    with connected(ClusterConfig(num_cpus=2)):
        yield


@pytest.fixture(scope="session")
def labeller() -> Labeller:
    """A labeller that takes whole images as faces."""
    settings = LabelSettings(640, 0.5, 10**8, 10**9, "int8", 0.5)
    return Labeller(resolve_detector("none", None), read_bundle(EMBEDDED), settings)


def file_record(path: Path) -> Record:
    """Return the record of a plain file."""
    return Record(str(path), size_bytes=path.stat().st_size)


def copies(archive: Path, folder: Path, count: int) -> Path:
    """Copy an archive so many times below a folder and return the folder."""
    for number in range(count):
        shutil.copytree(archive, folder / f"{number:02d}")
    return folder


RECIPE = """
[network]
width = 4
[augmentation]
rotation_deg = 5.0
[training]
epochs = 8
batch_size = 32
learning_rate = 0.02
precision = "fp32"
"""


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """Two classes told apart by the direction of stripes: 192 images to learn, 64 to validate."""
    folder, rng = tmp_path_factory.mktemp("dataset"), np.random.default_rng(0)
    wave = 128 + 60 * np.sign(np.sin(np.arange(48) * 0.8))
    for number in range(256):
        name = ("happy", "sad")[number % 2]
        picture = np.tile(wave, (48, 1)) if name == "happy" else np.tile(wave[:, None], (1, 48))
        path = folder / "tree" / ("train" if number < 192 else "validation") / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.clip(picture + rng.normal(0, 30, (48, 48)), 0, 255).astype(np.uint8))
    for number, copy in ((0, "train/happy/2.png"), (1, "validation/sad/193.png")):
        shutil.copy(folder / "tree" / "train" / ("happy", "sad")[number] / f"{number}.png", folder / "tree" / copy)
    ingest.run(IngestConfig(source=str(folder / "tree"), out=str(folder / "out")))
    return folder / "out"


@pytest.fixture(scope="session")
def labelled(archive: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> fer.Run:
    """A labelled run of the sample archive, by the Python interface."""
    return fer.label(archive, tmp_path_factory.mktemp("labelled") / "run", detector="mtcnn", shard_records=8)


@pytest.fixture(scope="session")
def published(labelled: fer.Run, tmp_path_factory: pytest.TempPathFactory) -> fer.Table:
    """The table to which that run is published."""
    url = str(tmp_path_factory.mktemp("published") / "table")
    publish.run(PublishConfig(run=labelled.url, table=url))
    return fer.Table(url, source=labelled.source)
