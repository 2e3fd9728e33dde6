"""The model card: all that labelling, evaluation and export must know of a model besides its weights. No torch."""

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from fer_pipeline.core import storage
from fer_pipeline.core.config import Config, explain
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.labels import LabelSpace
from fer_pipeline.models import registry

CARD, WEIGHTS, ONNX = "model.json", "model.safetensors", "model.onnx"
CARD_MARKDOWN, CARD_PAGE, HISTORY, CURVES, CONFUSION = (
    "MODEL_CARD.md",
    "model_card.html",
    "history.json",
    "curves.png",
    "confusion.png",
)
FILES = (CARD, WEIGHTS, ONNX, CARD_MARKDOWN, CARD_PAGE, HISTORY, CURVES, CONFUSION)
"""All files that a bundle may have."""
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

    @model_validator(mode="after")
    def _mean_and_std_fit_the_channels(self) -> "NetworkConfig":
        if {len(self.mean), len(self.std)} - {1, self.channels} or min(self.std) <= 0:
            raise ValueError(f"mean and std need one value or one for each of the {self.channels} channels, std above 0")
        return self


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


class TrainingData(Config):
    """The dataset that a model learned from, as far as it is known."""

    layout: str = "not known"
    terms: str = "not known"
    digest: str | None = None
    """The dataset's, of all its samples."""
    train_split: str | None = None
    train_digest: str | None = None
    """sha256 over the digests of the split's images: tells it in any other dataset (`duplicates.split_digest`)."""
    train_images: int | None = None
    left_out: int = 0
    """Suspects of the training split that were not learned."""
    validation_split: str | None = None
    validation_digest: str | None = None
    """Likewise of the split that selected the model and fitted its calibration."""


class ModelCard(Config):
    """`model.json` of a bundle."""

    name: str
    format: Literal["safetensors", "onnx"] = "safetensors"
    """`safetensors`: weights of the network that `network` describes. `onnx`: a network of any origin in `model.onnx`, of which
    `network` describes the input alone. It takes uint8 pixels, or floats that `mean` and `std` have normalised."""
    outputs: Literal["logits", "probabilities"] = "logits"
    """What an ONNX network's first output is."""
    network: NetworkConfig
    label_space: LabelSpace
    framing: Framing = Field(default_factory=Framing)
    calibration: Calibration = Field(default_factory=Calibration)
    data: TrainingData = Field(default_factory=TrainingData)
    metrics: dict[str, Any] = Field(default_factory=dict)
    """By split; each says what it was measured on and whether the model was selected on it."""
    recipe: dict[str, Any] = Field(default_factory=dict)
    intended_use: str = (
        "Labels the apparent expression of faces in pictures, not what a person feels. Inferring emotions at work or in "
        "education is unlawful in the EU (AI Act, Art. 5(1)(f))."
    )
    limits: tuple[str, ...] = ()
    """What the model is known to do badly, or was never tried on: sentences for its card."""

    @property
    def weights_file(self) -> str:
        return ONNX if self.format == "onnx" else WEIGHTS


@dataclass(frozen=True)
class BundleFiles:
    """A bundle's card and the bytes of its weights; `digest` is the sha256 over both files."""

    card: ModelCard
    weights: bytes
    digest: str


def read_bundle(url: str) -> BundleFiles:
    """Return the bundle in the folder `url`, the embedded one, or the one that [REGISTRY/]NAME@ALIAS names.

    Raise UserError where there is none that is whole.
    """
    bundle = _open(url)
    try:
        text = bundle.read(CARD)
        card = ModelCard.model_validate_json(text)
        weights = bundle.read(card.weights_file)
    except storage.STORAGE_ERRORS as error:
        raise UserError(f"There is no model bundle at '{url}': it needs {CARD}, and {WEIGHTS} or {ONNX}.") from error
    except ValidationError as error:
        raise UserError(f"The card {CARD} of the model at '{url}' cannot be used: {explain(error)}.") from error
    return BundleFiles(card, weights, hashlib.sha256(text + weights).hexdigest())


def bundle_of(card: ModelCard, weights: bytes) -> BundleFiles:
    """Return a bundle that stands in no folder yet."""
    return BundleFiles(card, weights, hashlib.sha256(card_json(card) + weights).hexdigest())


def read_files(url: str) -> dict[str, bytes]:
    """Return a bundle's files by name, those beside card and weights too: pictures, history, pages."""
    bundle = _open(url)
    return {name: bundle.read(name) for name in bundle.names() if name in FILES}


def _open(url: str) -> "Folder | registry.Pushed":
    if url == EMBEDDED:
        return Folder(str(Path(str(resources.files("fer_pipeline"))) / "models" / EMBEDDED))
    folder = Folder(storage.normalize(url))
    if registry.is_reference(url) and not storage.exists(storage.join(folder.url, CARD)):
        return registry.find(url)
    return folder


@dataclass(frozen=True)
class Folder:
    """A bundle's files in a folder of their own."""

    url: str

    def names(self) -> list[str]:
        return storage.list_names(self.url)

    def read(self, name: str) -> bytes:
        return storage.read_bytes(storage.join(self.url, name))


def card_json(card: ModelCard) -> bytes:
    """Return the card as it is written to `model.json`."""
    return (json.dumps(card.model_dump(mode="json"), indent=2) + "\n").encode()
