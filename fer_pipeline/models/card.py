"""The model card: all that labelling, evaluation and export must know of a model besides its weights. No torch."""

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from fer_pipeline.core import storage
from fer_pipeline.core.config import Config, explain
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.labels import LabelSpace

CARD, WEIGHTS = "model.json", "model.safetensors"
EMBEDDED = "embedded"
"""The name of the model that comes with the package."""


class NetworkConfig(Config):
    """Which network, on which input; the network is rebuilt from it."""

    architecture: str = "residual_cnn"
    """`residual_cnn`, `plain_cnn`, `regularised_cnn`, or the name of a torchvision classifier such as `resnet50`."""
    image_px: int = 48
    """Side of the square input."""
    channels: Literal[1, 3] = 1
    """1 for grey crops, 3 for RGB."""
    equalize: bool = False
    """Make the histogram of the crop's brightness flat, in training and labelling alike."""
    width: int = 32
    """Channels of the first layer of our own networks; every stage doubles them."""
    dropout: float = 0.3
    """Dropout before the last layer of our own networks."""
    flip_averaging: bool = False
    """Classify every crop and its mirror image and average the logits (test-time augmentation), at twice the cost."""
    mean: tuple[float, ...] = (0.5,)
    """Subtracted from pixels scaled to 0..1, per channel (one value serves all)."""
    std: tuple[float, ...] = (0.25,)
    """Divides them then."""


class Framing(Config):
    """Where a face stands in the crops that the model was trained on, in units of the crop's side.

    The defaults are FER-2013 as YuNet sees it: means over 1,416 Training images.
    """

    landmarks: tuple[tuple[float, float], ...] = ((0.31, 0.38), (0.68, 0.38), (0.49, 0.60), (0.35, 0.75), (0.64, 0.75))
    """x, y of the eyes, nose and mouth corners, those on the image's left first."""
    box_scale: float = 1.12
    """Side of the crop over sqrt(width * height) of the face's box; used where a detector finds no landmarks."""


class Calibration(Config):
    """Fitted on the validation split after training."""

    temperature: float = 1.0
    """Divides the logits before the softmax (Guo et al., 2017)."""
    uncertain_below: float = 0.0
    """Labels of less confidence are marked `uncertain`."""


class ModelCard(Config):
    """`model.json` of a bundle."""

    name: str
    network: NetworkConfig
    label_space: LabelSpace
    framing: Framing = Field(default_factory=Framing)
    calibration: Calibration = Field(default_factory=Calibration)
    data: dict[str, Any] = Field(default_factory=dict)
    """Name, terms and digest of the data that the model learned from."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    """By split; each says what it was measured on and whether the model was selected on it."""
    recipe: dict[str, Any] = Field(default_factory=dict)
    intended_use: str = (
        "Labels the apparent expression of faces in pictures, not what a person feels. Inferring emotions at work or in "
        "education is unlawful in the EU (AI Act, Art. 5(1)(f))."
    )


@dataclass(frozen=True)
class BundleFiles:
    """A bundle's card and the bytes of its weights; `digest` is the sha256 over both files."""

    card: ModelCard
    weights: bytes
    digest: str


def read_bundle(url: str) -> BundleFiles:
    """Return the bundle in the folder `url`, or the embedded one; raise UserError where there is none that is whole."""
    if url == EMBEDDED:
        url = str(Path(str(resources.files("fer_pipeline"))) / "models" / "embedded")
    try:
        text, weights = storage.read_bytes(storage.join(url, CARD)), storage.read_bytes(storage.join(url, WEIGHTS))
    except storage.STORAGE_ERRORS as error:
        raise UserError(f"There is no model bundle at '{url}': it needs {CARD} and {WEIGHTS}.") from error
    try:
        card = ModelCard.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"The card {CARD} of the model at '{url}' cannot be used: {explain(error)}.") from error
    return BundleFiles(card, weights, hashlib.sha256(text + weights).hexdigest())


def card_json(card: ModelCard) -> bytes:
    """Return the card as it is written to `model.json`."""
    return (json.dumps(card.model_dump(mode="json"), indent=2) + "\n").encode()
