"""The figures of a model on labelled images, for `evaluation.json`, model cards and pages."""

from typing import Any

from pydantic import Field

from fer_pipeline.base.config import Config


class ClassFigures(Config):
    """Figures of one class; 0 where undefined."""

    precision: float
    recall: float
    f1: float
    support: float
    """Number of images of the class."""


class ReliabilityBin(Config):
    """The images in one bin of confidence."""

    images: int
    confidence: float
    """Their mean confidence."""
    accuracy: float


class CalibrationFigures(Config):
    """How well confidence matches accuracy."""

    ece: float
    """Expected calibration error of the top class, 15 bins (Guo et al., 2017)."""
    log_loss: float
    reliability: list[ReliabilityBin]


class CalibrationComparison(Config):
    """Calibration under several temperatures."""

    before: CalibrationFigures
    """Without temperature scaling."""
    as_shipped: CalibrationFigures
    """Under the model's own temperature."""
    cross_fitted: CalibrationFigures
    """Each half of the images under the temperature fitted on the other half, with copies in the same half."""
    temperatures_of_the_halves: tuple[float, float]


class RiskCoverage(Config):
    """The gain from abstaining: accuracy on the most confident share of the images, for growing shares."""

    aurc: float
    """Area under risk (1 - accuracy) over coverage (Geifman & El-Yaniv, 2017): the mean risk over all coverages."""
    coverage: list[float]
    accuracy: list[float]
    threshold: list[float]
    """Lowest confidence at each coverage."""


class CertainFigures(Config):
    """The labels that are not marked `uncertain`."""

    uncertain_below: float
    coverage: float
    """Their share."""
    accuracy: float | None
    """None if there are no such labels."""


class VoteFigures(Config):
    """Agreement of the predictions, and of the dataset's own labels, with the annotators' majority."""

    images: int
    left_out: int
    """Images without votes, with a tie, or with a majority for a class that the model lacks."""
    accuracy: float | None = None
    accuracy_of_the_labels: float | None = None
    agreement: float | None = None
    """Mean share of the annotators who chose the predicted class."""


class QualityBin(Config):
    """The images in one bin of the quality of the picture (`faces/quality.py`)."""

    low: float
    high: float
    """Not included, except in the last bin."""
    images: int
    accuracy: float
    confidence: float
    """Their mean confidence under the model's calibration."""
    ece: float


class Figures(Config):
    """The figures on some images. A figure that no image supports is None."""

    images: int
    accuracy: float
    macro_f1: float
    """Like `uar`, over the classes that occur in the truth."""
    uar: float
    """Unweighted average recall."""
    top2: float | None = None
    """Share of images with their class among the two most likely."""
    brier: float | None = None
    log_loss: float | None = None
    per_output_accuracy: float | None = None
    """Accuracy of each output alone at a threshold of .5. It explains claims of others, but does not measure a classifier."""
    intervals_95: dict[str, tuple[float, float]]
    """Of accuracy, macro_f1 and uar: percentile bootstrap that treats images as independent."""
    per_class: dict[str, ClassFigures]
    confusion: list[list[int]]
    """Rows are the truth, columns the prediction."""
    calibration: CalibrationComparison | None = None
    risk_coverage: RiskCoverage | None = None
    certain: CertainFigures | None = None
    votes: VoteFigures | None = None
    by_quality: tuple[QualityBin, ...] = ()
    """Empty if the quality of the pictures is not known."""


class SplitFigures(Figures):
    """Figures on a split, and how they were obtained."""

    split: str
    selected_on_this_split: bool
    """Whether these images selected the model, so that the figures flatter it."""
    views: int
    """Number of averaged views of a face."""
    precision: str


class ExportFigures(Config):
    """Measurements of an export to ONNX."""

    precision: str
    bytes: int
    parity_max_difference: float
    """Largest difference of a probability between the bundle and its fp32 export."""
    parity_images: str
    """The images of that measurement."""
    accuracy: dict[str, float] | None
    """Of the bundle, its fp32 export and, if requested, int8, on the split."""
    images: int | None
    of: str
    """Digest of the exported bundle."""


class EvaluatedModel(Config):
    """The evaluated model."""

    name: str
    digest: str
    format: str


class EvaluatedData(Config):
    """The images of an evaluation, and which of them the model may have learned."""

    layout: str
    digest: str
    split: str
    left_out_by_class: dict[str, int]
    """Number of images of each class that the model lacks."""
    framed_as_the_model: bool
    """Whether the dataset has the framing of the crops that the model learned."""
    leaks_checked: bool = False
    """Whether all images that the model learned are known and were searched for."""
    training_split: str | None
    """The split of the dataset that the model learned; None if the dataset does not contain it."""
    exact_copies_of_training_images: int
    near_copies_of_training_images: int


class Evaluation(Config):
    """The content of `evaluation.json`."""

    model: EvaluatedModel
    data: EvaluatedData
    selected_on_this_split: bool
    views: int
    precision: str
    version: str
    settings: dict[str, Any] = Field(default_factory=dict)
    """What determines the figures. A second evaluation with the same settings does nothing."""
    evaluated_at: str
    all: Figures
    without_training_images: Figures | None
    """Without copies of training images; None if there are no copies, or only copies."""
