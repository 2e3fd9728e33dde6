"""The recipes of the reference systems and the large ones: each is what it claims, and learns from a few images."""

import cv2
import numpy as np
import pytest
import torch

from fer_pipeline.datasets.dataset import read_dataset
from fer_pipeline.jobs import ingest
from fer_pipeline.jobs.ingest import IngestConfig
from fer_pipeline.jobs.train.config import TrainConfig
from fer_pipeline.jobs.train.plan import make_plan
from fer_pipeline.jobs.train.rank import make_trainer
from fer_pipeline.models.recipe import load_recipe, recipe_names
from fer_pipeline.models.training.trainer import Epoch

LARGE = ["resnet50-224", "convnext-tiny-224"]
REFERENCES = [name for name in recipe_names() if name.startswith("reference-")]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> str:
    folder, rng = tmp_path_factory.mktemp("few"), np.random.default_rng(0)
    for number in range(6):
        path = folder / "tree" / ("train" if number < 4 else "validation") / ("happy", "sad")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (48, 48), np.uint8))
    ingest.run(IngestConfig(source=str(folder / "tree"), out=str(folder / "out")))
    return str(folder / "out")


def test_there_is_a_recipe_for_each_reference_system() -> None:
    assert set(REFERENCES) >= {
        "reference-transfer-cnn",
        "reference-resnet50-affectnet",
        "reference-regularised-cnn",
        "reference-plain-cnn",
    }


@pytest.mark.parametrize(
    ("name", "epochs", "batch", "rate", "pretrained"),
    [
        ("reference-transfer-cnn", 10, 64, 1e-4, "DEFAULT"),
        ("reference-resnet50-affectnet", 15, 64, 1e-4, "DEFAULT"),
        ("reference-regularised-cnn", 40, 64, 1e-3, None),
        ("reference-plain-cnn", 50, 32, 1e-3, None),
    ],
)
def test_a_recipe_trains_as_the_paper_says(name: str, epochs: int, batch: int, rate: float, pretrained: str | None) -> None:
    recipe = load_recipe(name)
    assert (recipe.training.epochs, recipe.training.batch_size, recipe.training.learning_rate) == (epochs, batch, rate)
    assert recipe.training.optimizer == "adam" and recipe.pretrained == pretrained


@pytest.mark.parametrize("name", [*REFERENCES, *LARGE])
def test_a_recipe_learns_from_a_handful_of_images(name: str, few: str) -> None:
    config = TrainConfig(recipe=name, data=few, out="", from_scratch=True, allow_missing_classes=True)
    recipe = load_recipe(name)
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"epochs": 2})})
    plan = make_plan(config, recipe, read_dataset(few), few, None)
    assert plan.recipe.pretrained is None
    trainer, epochs = make_trainer(plan, torch.device("cpu")), list[Epoch]()
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    trainer.fit([plan.validation.load().to("cpu")], epochs.append)
    assert len(epochs) == 2 and all(np.isfinite(epoch.train_loss) for epoch in epochs)
    assert any(not torch.equal(before[key], value) for key, value in trainer.network.state_dict().items())
