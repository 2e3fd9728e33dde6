"""A recipe: everything about a training run but its data and its machine. TOML, in `fer_pipeline/recipes/` or anywhere."""

import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from fer_pipeline.core.config import Config, explain
from fer_pipeline.core.errors import UserError
from fer_pipeline.models.augmentation import AugmentationConfig
from fer_pipeline.models.card import Framing, NetworkConfig
from fer_pipeline.models.training import TrainingConfig


class CalibrationConfig(Config):
    """What is fitted on the validation split after training."""

    certain_accuracy: float = 0.8
    """Share of the labels not marked `uncertain` that shall be right; the confidence threshold follows from it."""


class Recipe(Config):
    """One training run. `train_split` is learned, `validation_split` selects the epoch and fits the calibration."""

    name: str
    description: str = ""
    label_space: str = "fer7"
    train_split: str = "train"
    validation_split: str = "validation"
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    pretrained: str | None = None
    """Weights to start from, all but the last layer: torchvision's by name (`DEFAULT`), or a file; else the seed decides them."""
    framing: Framing = Field(default_factory=Framing)
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    calibration: CalibrationConfig = Field(default_factory=CalibrationConfig)


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("fer_pipeline") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name: str) -> Recipe:
    """Return the recipe called `name`, or the one in the TOML file at the path `name`; raise UserError for a faulty one."""
    if name in recipe_names():
        text = (resources.files("fer_pipeline") / "recipes" / f"{name}.toml").read_text()
    elif name.endswith(".toml") and Path(name).is_file():
        text = Path(name).read_bytes().decode("utf-8", "replace")
    else:
        raise UserError(f"There is no recipe '{name}': give a .toml file or one of {', '.join(recipe_names())}.")
    try:
        return Recipe.model_validate({"name": Path(name).stem} | tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"The recipe '{name}' is not valid TOML: {error}.") from error
    except ValidationError as error:
        raise UserError(f"The recipe '{name}' cannot be used: {explain(error)}.") from error


def recipe_toml(recipe: Recipe) -> str:
    """Return a recipe as TOML: what `load_recipe` reads back."""
    return "\n".join(_toml(recipe.model_dump(mode="json", exclude={"name"})))


def _toml(table: dict[str, Any]) -> list[str]:
    """Return a table's values, then its sections; strings, numbers and lists are written in TOML as in JSON."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict) and value is not None]
    for key, section in table.items():
        if isinstance(section, dict):
            lines += ["", f"[{key}]", *_toml(section)]
    return [*lines, ""] if lines and lines[-1] else lines
