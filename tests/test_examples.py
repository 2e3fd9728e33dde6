"""`examples/` runs as it says."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_pipeline.models.bundle import read_bundle

pytestmark = pytest.mark.examples
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name: str, *arguments: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_an_archive_is_labelled_from_python(archive: Path, tmp_path: Path) -> None:
    out = run("label_archive.py", archive, tmp_path / "run")
    assert out.startswith("36 images, ") and "2 failed" in out
    assert (tmp_path / "run" / "report.html").exists()


def test_a_model_is_trained_from_python(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(120):
        path = tmp_path / "images" / ("happy", "sad")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.normal(200 if number % 2 else 60, 20, (48, 48)).clip(0, 255).astype(np.uint8))
    out = run("train_model.py", tmp_path / "images", tmp_path)
    assert "120 samples" in out and "validation accuracy" in out
    assert read_bundle(str(tmp_path / "model")).card.name == "short"
