"""A recipe: everything about a training run but its data and its machine. TOML, in `fer_pipeline/recipes/` or anywhere."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import Field, ValidationError, model_validator

from fer_pipeline.core.config import Config, explain
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.framing import Framing
from fer_pipeline.models.augmentation import AugmentationConfig
from fer_pipeline.models.card import ModelCard
from fer_pipeline.models.network_config import NetworkConfig
from fer_pipeline.models.training.config import TrainingConfig

ONE_SIZE = ("plain_cnn", "regularised_cnn", "vit_", "maxvit")
"""How the names of the networks begin that take images of one size only."""


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
    pretrained_on: str | None = None
    """Name of the dataset that the pretrained weights were trained on, as a layout calls it: leaks from it cannot be found."""
    framing: Framing | None = None
    """The framing that the recipe needs; a dataset of another one is refused. By default it takes the dataset's."""
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    calibration: CalibrationConfig = Field(default_factory=CalibrationConfig)

    @model_validator(mode="after")
    def _the_network_takes_smaller_images(self) -> "Recipe":
        first, network = self.training.first_px, self.network
        if first > network.image_px:
            raise ValueError(f"training.first_px is {first}, above the network's image_px of {network.image_px}")
        if first and network.architecture.startswith(ONE_SIZE):
            raise ValueError(f"training.first_px is {first}, but '{network.architecture}' takes images of one size only")
        return self


def asked_calibration(card: ModelCard) -> CalibrationConfig:
    """Return the calibration that a model's recipe asks for; the default where its card has no recipe of ours."""
    try:
        return CalibrationConfig.model_validate(card.recipe.get("calibration", {}))
    except ValidationError:
        return CalibrationConfig()


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("fer_pipeline") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def _read_recipe(name: str, below: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the settings of a recipe, those of the recipes that it extends among them; `below` are those that extend it."""
    if name in recipe_names():
        text = (resources.files("fer_pipeline") / "recipes" / f"{name}.toml").read_text()
    elif name.endswith(".toml") and Path(name).is_file():
        text = Path(name).read_bytes().decode("utf-8", "replace")
    else:
        raise UserError(f"There is no recipe '{name}': give a .toml file or one of {', '.join(recipe_names())}.")
    try:
        facts = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"The recipe '{name}' is not valid TOML: {error}.") from error
    base = facts.pop("extends", None)
    if base is not None:
        if not isinstance(base, str) or base in below:
            raise UserError(f"The recipe '{name}' cannot extend '{base}': name another recipe, or a .toml file beside it.")
        beside = Path(name).parent / base
        extended = _read_recipe(str(beside) if beside.is_file() else base, (*below, name, base))
        extended.pop("name", None)
        facts = _merged(extended, facts)
    return facts


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's settings with others in their place, section by section."""
    tables = {
        key: base[key] | value for key, value in changes.items() if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return base | changes | tables


def load_recipe(name: str) -> Recipe:
    """Return the recipe called `name`, or the one in the TOML file at the path `name`; raise UserError for a faulty one.

    `extends = "another"` takes over all settings of another recipe that this one does not have.
    """
    try:
        return Recipe.model_validate({"name": Path(name).stem} | _read_recipe(name))
    except ValidationError as error:
        raise UserError(f"The recipe '{name}' cannot be used: {explain(error)}.") from error


def recipe_toml(recipe: Recipe) -> str:
    """Return a recipe as TOML: what `load_recipe` reads back."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude={"name"}, exclude_none=True))
