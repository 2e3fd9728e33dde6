"""A recipe: all settings of a training except its data and machine. It is a TOML file in `fer_pipeline/recipes/` or elsewhere."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import Field, ValidationError, model_validator

from fer_pipeline.base.config import Config, explain
from fer_pipeline.base.errors import UserError
from fer_pipeline.models.augmentation import AugmentationConfig
from fer_pipeline.models.card import ModelCard
from fer_pipeline.models.framing import Framing
from fer_pipeline.models.network_config import NetworkConfig
from fer_pipeline.models.training.config import TrainingConfig


class CalibrationConfig(Config):
    """Settings for fitting the calibration on the validation split after training."""

    certain_accuracy: float = 0.8
    """Share of right labels required among those not marked `uncertain`. It determines the confidence threshold."""


class Recipe(Config):
    """One training. It learns `train_split`; `validation_split` selects the epoch and fits the calibration."""

    name: str
    description: str = ""
    label_space: str = "fer7"
    train_split: str = "train"
    validation_split: str = "validation"
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    pretrained: str | None = None
    """Weights to start from, except the last layer: a torchvision name (`DEFAULT`) or a file. By default they are random."""
    pretrained_on: str | None = None
    """Dataset that the pretrained weights learned, by its name in a layout. Leaks from it cannot be found."""
    framing: Framing | None = None
    """Framing that the recipe requires; a dataset with another one is rejected. By default the dataset's framing applies."""
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    calibration: CalibrationConfig = Field(default_factory=CalibrationConfig)

    @model_validator(mode="after")
    def _require_network_for_first_px(self) -> "Recipe":
        first, network = self.training.first_px, self.network
        if first > network.image_px:
            raise ValueError(f"training.first_px is {first}, above the network's image_px of {network.image_px}")
        if first and network.architecture.startswith(("plain_cnn", "regularised_cnn", "vit_", "maxvit")):
            raise ValueError(f"training.first_px is {first}, but '{network.architecture}' takes images of one size only")
        return self


def asked_calibration(card: ModelCard) -> CalibrationConfig:
    """Return the calibration settings of a model's recipe, or the defaults if its card has no valid recipe."""
    try:
        return CalibrationConfig.model_validate(card.recipe.get("calibration", {}))
    except ValidationError:
        return CalibrationConfig()


def recipe_names() -> list[str]:
    """Return the names of the recipes in the package."""
    folder = resources.files("fer_pipeline") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def _read_recipe(name: str, extended_by: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the settings of a recipe, including those that it inherits. `extended_by` are the recipes that extend it."""
    if name in recipe_names():
        text = (resources.files("fer_pipeline") / "recipes" / f"{name}.toml").read_text()
    elif name.endswith(".toml") and Path(name).is_file():
        text = Path(name).read_bytes().decode("utf-8", "replace")
    else:
        raise UserError(f"There is no recipe '{name}': use a .toml file or one of {', '.join(recipe_names())}.")
    try:
        facts = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"The recipe '{name}' is not valid TOML: {error}.") from error
    base = facts.pop("extends", None)
    if base is not None:
        if not isinstance(base, str) or base in extended_by:
            raise UserError(f"The recipe '{name}' cannot extend '{base}': name another recipe, or a .toml file beside it.")
        beside = Path(name).parent / base
        extended = _read_recipe(str(beside) if beside.is_file() else base, (*extended_by, name, base))
        extended.pop("name", None)
        facts = _merged(extended, facts)
    return facts


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the settings `base` overridden by `changes`, section by section."""
    tables = {
        key: base[key] | value for key, value in changes.items() if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return base | changes | tables


def load_recipe(name: str) -> Recipe:
    """Return the recipe called `name`, or the one in the TOML file at the path `name`; raise UserError if it is invalid.

    `extends = "another"` inherits all settings of another recipe that this one does not set.
    """
    try:
        return Recipe.model_validate({"name": Path(name).stem} | _read_recipe(name))
    except ValidationError as error:
        raise UserError(f"The recipe '{name}' cannot be used: {explain(error)}.") from error


def recipe_toml(recipe: Recipe) -> str:
    """Return a recipe as TOML that `load_recipe` can read."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude={"name"}, exclude_none=True))
