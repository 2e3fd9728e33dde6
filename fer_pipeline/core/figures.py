"""The figures of a model on labelled images: what `evaluation.json`, model cards and pages hold."""

from typing import Any

from pydantic import Field

from fer_pipeline.core.config import Config

Interval = tuple[float, float]


class ClassFigures(Config):
    """Figures of one class; 0 where undefined."""

    precision: float
    recall: float
    f1: float
    support: float
    """Images of the class."""


class ReliabilityBin(Config):
    """The images whose confidence falls into one bin."""

    images: int
    confidence: float
    """Their mean confidence."""
    accuracy: float


class CalibrationFigures(Config):
    """How well probabilities say how often they are right."""

    ece: float
    """Of the top class, 15 bins (Guo et al., 2017)."""
    log_loss: float
    reliability: list[ReliabilityBin]


class CalibrationComparison(Config):
    """Calibration under several temperatures."""

    before: CalibrationFigures
    """Without temperature scaling."""
    as_shipped: CalibrationFigures
    """Under the model's own temperature."""
    cross_fitted: CalibrationFigures
    """Each half of the images under the temperature fitted on the other, copies in one half."""
    temperatures_of_the_halves: tuple[float, float]


class RiskCoverage(Config):
    """What abstaining buys: accuracy among the most confident share of the images, for growing shares."""

    aurc: float
    """Area under risk (1 - accuracy) over coverage (Geifman & El-Yaniv, 2017): the mean risk over all coverages."""
    coverage: list[float]
    accuracy: list[float]
    threshold: list[float]
    """Least confidence at each coverage."""


class CertainFigures(Config):
    """The labels that are not marked `uncertain`."""

    uncertain_below: float
    coverage: float
    """Their share."""
    accuracy: float | None
    """None where there are none."""


class VoteFigures(Config):
    """Predictions, and the dataset's own labels, against the majority of the annotators."""

    images: int
    left_out: int
    """Images without votes, with a tie, or whose majority is no class of the model."""
    accuracy: float | None = None
    accuracy_of_the_labels: float | None = None
    agreement: float | None = None
    """Mean share of the annotators who chose the predicted class."""


class Figures(Config):
    """The figures on some images. What no image supports is None."""

    images: int
    accuracy: float
    macro_f1: float
    """Like `uar`, over the classes that occur in the truth."""
    uar: float
    """Unweighted average recall."""
    top2: float | None = None
    """Share of images whose class is one of the two most likely."""
    brier: float | None = None
    log_loss: float | None = None
    per_output_accuracy: float | None = None
    """Each output judged by itself at .5; explains claims of others, and measures no classifier."""
    intervals_95: dict[str, Interval]
    """Of accuracy, macro_f1 and uar: percentile bootstrap, images taken as independent."""
    per_class: dict[str, ClassFigures]
    confusion: list[list[int]]
    """Rows are the truth, columns the prediction."""
    calibration: CalibrationComparison | None = None
    risk_coverage: RiskCoverage | None = None
    certain: CertainFigures | None = None
    votes: VoteFigures | None = None


class SplitFigures(Figures):
    """Figures on a split, and how they were obtained."""

    split: str
    selected_on_this_split: bool
    """Whether the model was selected on these very images, so that the figures flatter it."""
    views: int
    """Views of a face that are averaged."""
    precision: str


class ExportFigures(Config):
    """What an export to ONNX came to."""

    precision: str
    bytes: int
    parity_max_difference: float
    """Largest difference of a probability between the bundle and its fp32 export."""
    parity_images: str
    """What that was measured on."""
    accuracy: dict[str, float] | None
    """Of the bundle, its fp32 export and, if asked for, int8, on the split."""
    images: int | None
    of: str
    """Digest of the bundle that was exported."""


class EvaluatedModel(Config):
    """Which model was evaluated."""

    name: str
    digest: str
    format: str


class EvaluatedData(Config):
    """What it was evaluated on, and which of it the model may know."""

    layout: str
    digest: str
    split: str
    left_out_by_class: dict[str, int]
    """Images of classes that the model does not have."""
    framed_as_the_model: bool
    """Whether the dataset's faces are framed as the crops that the model learned from."""
    leaks_checked: bool = False
    """Whether all that the model learned is known, and was looked for."""
    training_split: str | None
    """The dataset's split that the model learned from; None where the dataset does not hold it."""
    exact_copies_of_training_images: int
    near_copies_of_training_images: int


class Evaluation(Config):
    """`evaluation.json`."""

    model: EvaluatedModel
    data: EvaluatedData
    selected_on_this_split: bool
    views: int
    precision: str
    version: str
    settings: dict[str, Any] = Field(default_factory=dict)
    """What decided the figures: an evaluation of the same is done when it is asked for again."""
    evaluated_at: str
    all: Figures
    without_training_images: Figures | None
    """Without copies of training images; None where there are none, or nothing else."""
