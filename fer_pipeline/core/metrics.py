"""Classification metrics on plain arrays: the same figures for training, evaluation and the model card."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


def confusion_matrix(truth: Ints, predicted: Ints, classes: int) -> NDArray[np.int64]:
    """Return counts (classes, classes); rows are the truth, columns the prediction."""
    counts = np.bincount(truth.astype(np.int64) * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def per_class(confusion: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Return precision, recall and F1 (classes,) each, 0 where undefined, and the support of each class."""
    hits = np.diag(confusion).astype(np.float64)
    predicted, support = confusion.sum(0), confusion.sum(1)
    precision = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=support > 0)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(hits), where=total > 0)
    return {"precision": precision, "recall": recall, "f1": f1, "support": support.astype(np.float64)}


def expected_calibration_error(probabilities: Floats, truth: Ints, bins: int = 15) -> float:
    """Return the ECE of the top class over equal-width bins of confidence (Guo et al., 2017, eq. 3).

    `probabilities` is (n, classes), `truth` (n,).
    """
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == truth
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.abs(np.bincount(place, correct - confidence, minlength=bins))
    return float(gap.sum() / len(truth))


def summarize(probabilities: Floats, truth: Ints, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return accuracy, macro-F1, UAR (unweighted average recall), per-class figures and the confusion matrix.

    `probabilities` is (n, classes), `truth` (n,). UAR and macro-F1 average over the classes that occur in `truth`.
    """
    confusion = confusion_matrix(truth, probabilities.argmax(1), len(classes))
    figures = per_class(confusion)
    present = figures["support"] > 0
    return {
        "images": len(truth),
        "accuracy": float(np.trace(confusion) / max(1, len(truth))),
        "macro_f1": float(figures["f1"][present].mean()) if present.any() else 0.0,
        "uar": float(figures["recall"][present].mean()) if present.any() else 0.0,
        "per_class": {name: {key: float(values[index]) for key, values in figures.items()} for index, name in enumerate(classes)},
        "confusion": confusion.tolist(),
    }
