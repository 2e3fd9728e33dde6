"""The model card `model.json`: all that labelling, evaluation and export must know of a model besides its weights. No torch."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

import fer_pipeline
from fer_pipeline.core.config import Config, Name
from fer_pipeline.core.figures import ExportFigures, SplitFigures
from fer_pipeline.core.framing import Framing
from fer_pipeline.core.labels import LabelSpace
from fer_pipeline.models.network_config import NetworkConfig

SCHEMA_VERSION = 2
"""Of `model.json`: 2 since its framing says whether faces are cut by landmarks or by box."""


class Calibration(Config):
    """Fitted on the validation split after training."""

    temperature: float = Field(1.0, gt=0, le=1000)
    """Divides the logits before the softmax (Guo et al., 2017)."""
    uncertain_below: float = Field(0.0, ge=0, le=1)
    """Labels of less confidence are marked `uncertain`."""
    prior: tuple[float, ...] = ()
    """Shares of the classes that the probabilities go by (`core/prior.py`); empty where that is not known."""


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
    """Suspects of the training split that were not learned, neither by a model that it began as or learned from."""
    validation_split: str | None = None
    validation_digest: str | None = None
    """Likewise of the split that selected the model and fitted its calibration."""
    learned_sha256: str | None = None
    """Of `learned.parquet`: the digests of all images that the model, what it began as and its teachers learned."""
    external: tuple[str, ...] = ()
    """Datasets that weights of other makers were trained on, as recipes say; their images are not among the digests."""
    unknown: tuple[str, ...] = ()
    """Models that this one began as or learned from, of which it is not known what they learned."""


def _ours(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Let figures of another form than ours count as none: a card written by hand may hold anything."""
    try:
        return validate(value)
    except ValidationError:
        return None


Measured = Annotated[SplitFigures | None, WrapValidator(_ours)]


class ModelMetrics(Config):
    """Figures of the model, where this project measured them."""

    model_config = ConfigDict(extra="ignore")

    validation: Measured = None
    validation_without_training_images: Measured = None
    """On those images of the split that are no copies of training images."""
    selected_epoch: Annotated[int | None, WrapValidator(_ours)] = None
    epochs: Annotated[int | None, WrapValidator(_ours)] = None
    export: Annotated[ExportFigures | None, WrapValidator(_ours)] = None


class Int8Form(Config):
    """`model.int8.onnx`: the same network with weights and activations in 8 bits, which labelling on CPUs takes."""

    sha256: str
    """Of the file."""
    calibration: Calibration
    """Of its own: fitted on the answers of this form."""
    validation: Measured = None
    validation_without_training_images: Measured = None
    accuracy_fp32: float | None = None
    """Of the network as it was, on the same split."""
    same_label: float | None = None
    """Share of the split's images that both forms label alike."""
    settings: dict[str, Any] | None = None
    """What it was made of, and how: asked for again, it is done."""


class ModelCard(Config):
    """`model.json` of a bundle."""

    schema_version: int = SCHEMA_VERSION
    """1, or none, is read too: its framing is one by landmarks, as labelling cut then."""
    version: str = fer_pipeline.__version__
    """Of the software that wrote it."""
    name: Name
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
    metrics: ModelMetrics = Field(default_factory=ModelMetrics)
    int8: Int8Form | None = None
    recipe: dict[str, Any] = Field(default_factory=dict)
    intended_use: str = (
        "Labels the apparent expression of faces in pictures, not what a person feels. Inferring emotions at work or in "
        "education is unlawful in the EU (AI Act, Art. 5(1)(f))."
    )
    training: dict[str, Any] | None = None
    """What decided the weights, as digests and settings: a training of the same is done when it is asked for again."""
    limits: tuple[str, ...] = ()
    """What the model is known to do badly, or was never tried on: sentences for its card."""
