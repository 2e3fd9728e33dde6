"""Trainings that several test files use."""

from pathlib import Path

import pytest

from fer_pipeline.jobs.train import job as train
from fer_pipeline.jobs.train.config import TrainConfig, TrainResult
from tests.conftest import RECIPE


@pytest.fixture(scope="session")
def results(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, TrainResult]:
    """The same recipe trained with one worker and with two."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "stripes.toml").write_text(RECIPE)
    return {
        workers: train.run(
            TrainConfig(
                recipe=str(folder / "stripes.toml"),
                data=str(dataset),
                out=str(folder / f"m{workers}"),
                num_workers=workers,
                allow_missing_classes=True,
            )
        )
        for workers in (1, 2)
    }
