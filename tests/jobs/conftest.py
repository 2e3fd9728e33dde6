"""A small dataset that can be learnt in seconds, for the tests that train."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_pipeline.jobs import ingest
from fer_pipeline.jobs.ingest import IngestConfig

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
