"""A file that kills native code, through ingest and predict."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults
POISON = Path(__file__).parent / "poison"


def call(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fer_pipeline.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(POISON)})


@pytest.fixture
def poisoned(archive: Path, tmp_path: Path) -> Path:
    """Six photos of a class, one of which kills whoever decodes it."""
    folder = tmp_path / "tree" / "happy"
    folder.mkdir(parents=True)
    for photo in sorted(archive.rglob("hopper-*.jpg"))[:6]:
        shutil.copy(photo, folder)
    victim = sorted(folder.iterdir())[2]
    victim.write_bytes(victim.read_bytes() + b"crash the decoder")
    return tmp_path / "tree"


def test_an_image_that_kills_is_quarantined_by_ingest(poisoned: Path, tmp_path: Path) -> None:
    done = call("ingest", str(poisoned), "--out", str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr
    assert '"samples": 5' in done.stdout and "dies of it" in done.stdout


def test_an_image_that_kills_costs_its_own_entry_in_predict(poisoned: Path, tmp_path: Path) -> None:
    done = call("predict", str(poisoned), "--out", str(tmp_path / "out"), "--detector", "none")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"status": "ok"') == 5 and done.stdout.count('"status": "crashed"') == 1
