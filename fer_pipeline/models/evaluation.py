"""Evaluation: what a model's predictions on labelled images are worth, in figures that a model card and a page can hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fer_pipeline.core.duplicates import Copies
from fer_pipeline.core.labels import LabelSpace, mapping
from fer_pipeline.core.metrics import expected_calibration_error, log_loss, reliability, risk_coverage, summarize
from fer_pipeline.models.calibration import cross_fitted, scaled
from fer_pipeline.models.card import Calibration

FEWEST = 50
"""Images under which calibration is not scored: neither half would say anything."""


@dataclass(frozen=True)
class Predictions:
    """Logits of labelled images; n of them."""

    logits: NDArray[np.float32]
    """(n, classes), before any temperature."""
    labels: NDArray[np.int64]
    """(n,)"""
    groups: NDArray[np.int64]
    """(n,), equal for exact and near copies."""
    learned: NDArray[np.bool_]
    """(n,), whether an exact or near copy of the image stands in the training split."""
    votes: NDArray[np.float32]
    """(n, vote classes): shares of annotators' votes, all zero where there are none."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: NDArray[np.bool_]) -> "Predictions":
        return Predictions(*(values[chosen] for values in vars(self).values()))


def predictions_of(
    ids: list[str],
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    votes: NDArray[np.float32],
    copies: Copies,
) -> Predictions:
    """Return the predictions for some samples of the split that `copies` is about."""
    learned = copies.exact | copies.near
    groups = np.array([copies.groups[sample] for sample in ids], np.int64)
    return Predictions(logits, labels, groups, np.array([sample in learned for sample in ids], bool), votes)


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Return parts of a split as one; at least one part."""
    return Predictions(*(np.concatenate(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))


def evaluate(
    predictions: Predictions, space: LabelSpace, calibration: Calibration, vote_classes: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the figures of `summarize` under the model's calibration, and what calibration, abstaining and votes add.

    `calibration` holds the ECE (15 bins) and log loss before temperature scaling, as the model ships, and cross-fitted: each
    half of the images under the temperature of the other, copies in one half. It is None for fewer than 50 images.
    """
    labels, probabilities = predictions.labels, scaled(predictions.logits, calibration.temperature)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    certain = confidence >= calibration.uncertain_below
    figures = summarize(probabilities, labels, space.classes)
    if not len(predictions):
        return figures
    figures["calibration"] = _calibration(predictions, probabilities)
    figures["risk_coverage"] = risk_coverage(confidence, correct, points=25)
    figures["certain"] = {
        "uncertain_below": calibration.uncertain_below,
        "coverage": float(certain.mean()),
        "accuracy": float(correct[certain].mean()) if certain.any() else None,
    }
    if vote_classes and predictions.votes.any():
        figures["votes"] = _against_votes(probabilities.argmax(1), labels, predictions.votes, vote_classes, space)
    return figures


def _calibration(predictions: Predictions, shipped: NDArray[np.float32]) -> dict[str, Any] | None:
    labels = predictions.labels
    if len(labels) < FEWEST or len(np.unique(predictions.groups)) < 2:
        return None
    logits, truth = torch.from_numpy(predictions.logits), torch.from_numpy(labels)
    fitted, temperatures = cross_fitted(logits, truth, predictions.groups)
    ways = {"before": scaled(predictions.logits, 1.0), "as_shipped": shipped, "cross_fitted": fitted.numpy()}
    scored: dict[str, Any] = {
        name: {
            "ece": expected_calibration_error(probabilities, labels),
            "log_loss": log_loss(probabilities, labels),
            "reliability": reliability(probabilities.max(1), probabilities.argmax(1) == labels),
        }
        for name, probabilities in ways.items()
    }
    return scored | {"temperatures_of_the_halves": temperatures}


def _against_votes(
    predicted: NDArray[np.int64],
    labels: NDArray[np.int64],
    votes: NDArray[np.float32],
    vote_classes: tuple[str, ...],
    space: LabelSpace,
) -> dict[str, Any]:
    """Compare predictions, and the dataset's own labels, with what most annotators said.

    Left out are images without votes, those whose most votes are shared by two classes, and those whose majority is no class of
    the model. `agreement` is the mean share of the annotators who chose the predicted class.
    """
    classes = mapping(vote_classes, space)
    shares = np.zeros((len(labels), len(space.classes)), np.float32)
    for column, index in enumerate(classes):
        if index is not None:
            shares[:, index] += votes[:, column]
    majority = np.array([-1 if index is None else index for index in classes])[votes.argmax(1)]
    tied = (votes == votes.max(1, keepdims=True)).sum(1) > 1
    clear = ~tied & (majority >= 0)
    if not clear.any():
        return {"images": 0, "left_out": len(labels)}
    return {
        "images": int(clear.sum()),
        "left_out": int((~clear).sum()),
        "accuracy": float((predicted == majority)[clear].mean()),
        "accuracy_of_the_labels": float((labels == majority)[clear].mean()),
        "agreement": float(shares[np.arange(len(labels)), predicted][clear].mean()),
    }
