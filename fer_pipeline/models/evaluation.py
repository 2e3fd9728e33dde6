"""Evaluation of a model's predictions on labelled images."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fer_pipeline.models.calibration import calibrate, cross_fitted
from fer_pipeline.models.card import Calibration
from fer_pipeline.models.figures import (
    CalibrationComparison,
    CalibrationFigures,
    CertainFigures,
    Figures,
    QualityBin,
    SplitFigures,
    VoteFigures,
)
from fer_pipeline.models.label_space import LabelSpace, mapping
from fer_pipeline.models.metrics import (
    expected_calibration_error,
    is_uncertain,
    log_loss,
    reliability,
    risk_coverage,
    softmax,
    summarize,
)

QUALITY_BINS = (0.0, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class Predictions:
    """The outputs of a network on n labelled images."""

    ids: NDArray[np.object_]
    """(n,) sample ids."""
    logits: NDArray[np.float32]
    """(n, classes), before temperature scaling."""
    labels: NDArray[np.int64]
    """(n,)"""
    votes: NDArray[np.float32]
    """(n, vote classes): shares of annotators' votes, all zero if an image has none."""
    quality: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    """(n,), of the pictures; (0,) if it is not known."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: NDArray[np.bool_]) -> "Predictions":
        quality = self.quality[chosen] if len(self.quality) else self.quality
        return Predictions(self.ids[chosen], self.logits[chosen], self.labels[chosen], self.votes[chosen], quality)

    def without(self, ids: Collection[str]) -> "Predictions":
        """Return the predictions, except those of the images with these ids."""
        return self[np.array([sample not in ids for sample in self.ids], bool)]


def joined(batches: Sequence[Predictions]) -> Predictions:
    """Return several batches of predictions as one. `batches` must not be empty."""
    names = [one.name for one in fields(Predictions)]
    return Predictions(**{name: np.concatenate([getattr(batch, name) for batch in batches]) for name in names})


def evaluate(
    predictions: Predictions,
    space: LabelSpace,
    calibration: Calibration,
    vote_classes: tuple[str, ...] = (),
    groups: Mapping[str, int] | None = None,
) -> Figures:
    """Return the figures of the predictions under the model's calibration.

    `groups` maps each sample id to a group number; copies of one image have the same number (`duplicates.Copies`). Without it,
    every image is its own group. Calibration is not scored for fewer than 50 images.
    """
    labels, probabilities = predictions.labels, softmax(predictions.logits, calibration.temperature)
    figures = summarize(probabilities, labels, space.classes)
    if not len(predictions):
        return figures
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    certain = ~is_uncertain(confidence, calibration.uncertain_below)
    votes = None
    if vote_classes and predictions.votes.any():
        votes = _against_votes(probabilities.argmax(1), labels, predictions.votes, vote_classes, space)
    return figures.model_copy(
        update={
            "calibration": _calibration(predictions, probabilities, groups),
            "risk_coverage": risk_coverage(confidence, correct, points=25),
            "certain": CertainFigures(
                uncertain_below=calibration.uncertain_below,
                coverage=float(certain.mean()),
                accuracy=float(correct[certain].mean()) if certain.any() else None,
            ),
            "votes": votes,
            "by_quality": _by_quality(predictions.quality, probabilities, labels) if len(predictions.quality) else (),
        }
    )


def _by_quality(
    quality: NDArray[np.float32], probabilities: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[QualityBin, ...]:
    """Return the figures of each bin of quality that holds images."""
    found = []
    for low, high in pairwise(QUALITY_BINS):
        chosen = (quality >= low) & ((quality < high) | (high == 1.0))
        some, truth = probabilities[chosen], labels[chosen]
        if len(truth):
            accuracy, confidence = float((some.argmax(1) == truth).mean()), float(some.max(1).mean())
            ece = expected_calibration_error(some, truth)
            found.append(QualityBin(low=low, high=high, images=len(truth), accuracy=accuracy, confidence=confidence, ece=ece))
    return tuple(found)


@dataclass(frozen=True)
class Judged:
    """Calibration on the split on which the model was selected, and figures there with and without copies of learned images."""

    calibration: Calibration
    validation: SplitFigures
    without_training_images: SplitFigures | None
    """None if every image is a copy of a learned one."""


def judge(
    predictions: Predictions,
    learned: Collection[str],
    groups: Mapping[str, int],
    space: LabelSpace,
    certain_accuracy: float,
    vote_classes: tuple[str, ...],
    **how: Any,
) -> Judged:
    """Calibrate a model on the split on which it was selected. `how` gives the other fields of `SplitFigures`.

    `learned` are the ids of images that are copies of learned ones; images with the same number in `groups` are copies. Copies of
    learned images are not used for the fit, because the model is too confident on them. They are used if there are no others.
    """
    fresh = predictions.without(learned)
    fitted = fresh if len(fresh) else predictions
    logits, labels = torch.from_numpy(fitted.logits), torch.from_numpy(fitted.labels)
    calibration = calibrate(logits, labels, certain_accuracy)

    def figures(some: Predictions) -> SplitFigures:
        found = evaluate(some, space, calibration, vote_classes, groups)
        return SplitFigures(**dict(found), selected_on_this_split=True, **how)

    return Judged(calibration, figures(predictions), figures(fresh) if len(fresh) else None)


def _calibration(
    predictions: Predictions, shipped: NDArray[np.float32], groups: Mapping[str, int] | None
) -> CalibrationComparison | None:
    labels = predictions.labels
    group = np.array([groups[sample] for sample in predictions.ids], np.int64) if groups else np.arange(len(labels))
    if len(labels) < 50 or len(np.unique(group)) < 2:  # too few images to judge calibration
        return None
    logits, truth = torch.from_numpy(predictions.logits), torch.from_numpy(labels)
    fitted, temperatures = cross_fitted(logits, truth, group)
    before, as_shipped, after = (
        CalibrationFigures(
            ece=expected_calibration_error(probabilities, labels),
            log_loss=log_loss(probabilities, labels),
            reliability=reliability(probabilities.max(1), probabilities.argmax(1) == labels),
        )
        for probabilities in (softmax(predictions.logits, 1.0), shipped, fitted.numpy())
    )
    return CalibrationComparison(
        before=before, as_shipped=as_shipped, cross_fitted=after, temperatures_of_the_halves=temperatures
    )


def _against_votes(
    predicted: NDArray[np.int64],
    labels: NDArray[np.int64],
    votes: NDArray[np.float32],
    vote_classes: tuple[str, ...],
    space: LabelSpace,
) -> VoteFigures:
    """Compare predictions, and the dataset's own labels, with the annotators' majority."""
    classes = mapping(vote_classes, space)
    shares = np.zeros((len(labels), len(space.classes)), np.float32)
    for column, index in enumerate(classes):
        if index is not None:
            shares[:, index] += votes[:, column]
    majority = np.array([-1 if index is None else index for index in classes])[votes.argmax(1)]
    tied = (votes == votes.max(1, keepdims=True)).sum(1) > 1
    clear = ~tied & (majority >= 0)
    if not clear.any():
        return VoteFigures(images=0, left_out=len(labels))
    return VoteFigures(
        images=int(clear.sum()),
        left_out=int((~clear).sum()),
        accuracy=float((predicted == majority)[clear].mean()),
        accuracy_of_the_labels=float((labels == majority)[clear].mean()),
        agreement=float(shares[np.arange(len(labels)), predicted][clear].mean()),
    )
