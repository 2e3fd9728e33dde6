"""The model card `model.json`: everything that labelling, evaluation and export need besides the weights. No torch."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

import fer_pipeline
from fer_pipeline.base.config import Config, Name
from fer_pipeline.models.figures import ExportFigures, SplitFigures
from fer_pipeline.models.framing import Framing
from fer_pipeline.models.label_space import LabelSpace
from fer_pipeline.models.network_config import NetworkConfig

SCHEMA_VERSION = 2
"""Of `model.json`. Since version 2 its framing says whether faces are cut by landmarks or by box."""


class Calibration(Config):
    """The calibration, fitted on the validation split after training."""

    temperature: float = Field(1.0, gt=0, le=1000)
    """Divides the logits before the softmax (Guo et al., 2017)."""
    uncertain_below: float = Field(0.0, ge=0, le=1)
    """Labels with a lower confidence are marked `uncertain`."""
    prior: tuple[float, ...] = ()
    """Class shares that the probabilities imply (`models/prior.py`); empty if unknown."""


class TrainingData(Config):
    """The dataset that a model learned from, as far as it is known."""

    layout: str = "not known"
    terms: str = "not known"
    digest: str | None = None
    """Digest of the dataset, over all its samples."""
    train_split: str | None = None
    train_digest: str | None = None
    """sha256 over the digests of the split's images, which identifies it in any dataset (`duplicates.split_digest`)."""
    train_images: int | None = None
    left_out: int = 0
    """Flagged samples of the training split that neither this model nor its initial model and teachers learned."""
    validation_split: str | None = None
    validation_digest: str | None = None
    """The same digest for the split that selected the model and fitted its calibration."""
    learned_sha256: str | None = None
    """sha256 of `learned.parquet`, the digests of all images that the model, its initial model and its teachers learned."""
    external: tuple[str, ...] = ()
    """Datasets on which third-party weights were trained, as recipes say. Their images are not among the digests."""
    unknown: tuple[str, ...] = ()
    """Initial models and teachers whose training images are unknown."""


def _none_if_invalid(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Return None for figures in another form than ours, because a card written by hand may contain anything."""
    try:
        return validate(value)
    except ValidationError:
        return None


Measured = Annotated[SplitFigures | None, WrapValidator(_none_if_invalid)]


class ModelMetrics(Config):
    """Figures of the model, if this project measured them."""

    model_config = ConfigDict(extra="ignore")

    validation: Measured = None
    validation_without_training_images: Measured = None
    """On the images of the split that are not copies of training images."""
    selected_epoch: Annotated[int | None, WrapValidator(_none_if_invalid)] = None
    epochs: Annotated[int | None, WrapValidator(_none_if_invalid)] = None
    export: Annotated[ExportFigures | None, WrapValidator(_none_if_invalid)] = None


class Int8Form(Config):
    """`model.int8.onnx`: the same network with 8-bit weights and activations, for labelling on CPUs."""

    sha256: str
    """sha256 of the file."""
    calibration: Calibration
    """Its own calibration, fitted on the outputs of this form."""
    validation: Measured = None
    validation_without_training_images: Measured = None
    accuracy_fp32: float | None = None
    """Accuracy of the fp32 network on the same split."""
    same_label: float | None = None
    """Share of the split's images that get the same label from both forms."""
    settings: dict[str, Any] | None = None
    """Its inputs and settings. A second request for the same form does nothing."""


OUTPUT_NAME = "^[a-z][a-z0-9_]{0,62}$"
OutputName = Annotated[str, Field(pattern=OUTPUT_NAME)]
MOST_OUTPUTS = 256


class FurtherOutput(Config):
    """A number that an ONNX network tells of each face besides the classes, such as valence."""

    column: OutputName
    """The name of its column."""
    output: str | None = None
    """The output of the network that holds it, by name; by default the first, behind or before the classes."""
    index: int = Field(0, ge=0)
    """Its place in that output, (n, values)."""
    low: float | None = None
    high: float | None = None
    """Its range; what lies outside is clipped."""

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low is {self.low:g}, and must be below high, {self.high:g}")
        return self


def _distinct(outputs: tuple[FurtherOutput, ...]) -> tuple[FurtherOutput, ...]:
    if len({one.column for one in outputs}) < len(outputs):
        raise ValueError("two further outputs have one name of a column")
    return outputs


class ModelCard(Config):
    """`model.json` of a bundle."""

    schema_version: int = SCHEMA_VERSION
    """A card with version 1 or without one is readable. Its framing is by landmarks, as labelling cut faces then."""
    version: str = fer_pipeline.__version__
    """Version of the software that wrote the card."""
    name: Name
    format: Literal["safetensors", "onnx"] = "safetensors"
    """`safetensors`: weights of the network that `network` describes. `onnx`: a network of any origin in `model.onnx`; `network`
    describes only its input, which is uint8 pixels, or floats normalised by `mean` and `std`."""
    outputs: Literal["logits", "probabilities"] = "logits"
    """The meaning of the classes in an ONNX network's first output, (n, values)."""
    classes_at: int = Field(0, ge=0)
    """Where the classes begin in that output."""
    further: Annotated[tuple[FurtherOutput, ...], AfterValidator(_distinct)] = Field((), max_length=MOST_OUTPUTS)
    """What else an ONNX network tells of each face."""
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
    """Digests and settings that determine the weights. A second training with the same ones does nothing."""
    limits: tuple[str, ...] = ()
    """Known weaknesses and untested uses of the model, as sentences for its card."""

    @model_validator(mode="after")
    def _only_of_onnx(self) -> Self:
        if self.format != "onnx" and (self.further or self.classes_at):
            raise ValueError("further and classes_at describe the outputs of a network of format onnx")
        return self
