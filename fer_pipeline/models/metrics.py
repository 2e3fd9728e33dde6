"""Classification metrics on plain arrays: the same figures for training, evaluation and the model card.

Everywhere `probabilities` is (n, classes) and `truth` (n,) holds class indices.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_pipeline.models.figures import ClassFigures, Figures, ReliabilityBin, RiskCoverage

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

CALIBRATION_BINS = 15
"""Number of equal-width bins of confidence, for reliability and ECE."""


def softmax(logits: Floats, temperature: float = 1.0) -> NDArray[np.float32]:
    """Return probabilities (n, classes) for logits (n, classes) under a temperature."""
    shifted = (logits - logits.max(1, keepdims=True, initial=-np.inf)) / np.float32(temperature)
    exponentials = np.exp(shifted)
    probabilities: NDArray[np.float32] = exponentials / exponentials.sum(1, keepdims=True)
    return probabilities


def is_uncertain(confidence: Floats | float, uncertain_below: float) -> Any:
    """Return whether labels with these confidences (n,) are uncertain: below the threshold, or always if it is 1."""
    return (np.asarray(confidence) < uncertain_below) | (uncertain_below >= 1)


def confusion_matrix(truth: Ints, predicted: Ints, classes: int) -> NDArray[np.int64]:
    """Return counts (classes, classes). Rows are the truth, columns the prediction."""
    counts = np.bincount(truth.astype(np.int64) * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def per_class(confusion: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Return precision, recall, F1 and support of each class, and 0 for an undefined figure.

    `confusion` is (..., classes, classes), each figure (..., classes).
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    predicted, support = confusion.sum(-2), confusion.sum(-1)
    precision = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=support > 0)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(hits), where=total > 0)
    return {"precision": precision, "recall": recall, "f1": f1, "support": support.astype(np.float64)}


def overall(confusion: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Return accuracy, macro-F1 and UAR (unweighted average recall) of confusion matrices (..., classes, classes).

    Macro-F1 and UAR average over the classes that occur in the truth.
    """
    figures = per_class(confusion)
    present = figures["support"] > 0
    count = np.maximum(1, present.sum(-1))
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).sum(-1)
    return {
        "accuracy": hits / np.maximum(1, confusion.sum((-2, -1))),
        "macro_f1": (figures["f1"] * present).sum(-1) / count,
        "uar": (figures["recall"] * present).sum(-1) / count,
    }


def bootstrap_intervals(
    confusion: NDArray[np.int64], resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return percentile bootstrap intervals (Efron, 1979) of accuracy, macro-F1 and UAR.

    Drawing n images with replacement equals drawing the cells of the confusion matrix from a multinomial distribution, so the
    cost does not grow with n. Images count as independent: copies and pictures of one person make the true interval wider.
    """
    total = int(confusion.sum())
    if not total:
        return {}
    cells = np.random.default_rng(seed).multinomial(total, confusion.ravel() / total, resamples)
    tails = [(1 - level) / 2, (1 + level) / 2]
    drawn = overall(cells.reshape(resamples, *confusion.shape))
    return {name: (float(low), float(high)) for name, (low, high) in ((k, np.quantile(v, tails)) for k, v in drawn.items())}


def reliability(confidence: Floats, correct: NDArray[np.bool_], bins: int = CALIBRATION_BINS) -> list[ReliabilityBin]:
    """Return the number of images, mean confidence and accuracy of each bin of confidence that is not empty.

    `confidence` and `correct` are (n,). A bin includes its upper edge, as in Guo et al. (2017).
    """
    bin_index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(bin_index, minlength=bins)
    sums = np.bincount(bin_index, confidence, minlength=bins), np.bincount(bin_index, correct, minlength=bins)
    return [
        ReliabilityBin(images=int(counts[i]), confidence=float(sums[0][i] / counts[i]), accuracy=float(sums[1][i] / counts[i]))
        for i in np.flatnonzero(counts)
    ]


def expected_calibration_error(probabilities: Floats, truth: Ints, bins: int = CALIBRATION_BINS) -> float:
    """Return the ECE of the top class over equal-width bins of confidence (Guo et al., 2017, eq. 3)."""
    diagram = reliability(probabilities.max(1), probabilities.argmax(1) == truth, bins)
    return sum(one.images * abs(one.confidence - one.accuracy) for one in diagram) / max(1, len(truth))


def brier_score(probabilities: Floats, truth: Ints) -> float:
    """Return the squared error, summed over classes and averaged over images (Brier, 1950): 0 is best, 2 is worst."""
    wanted = np.eye(probabilities.shape[1])[truth]
    return float(((probabilities - wanted) ** 2).sum(1).mean())


def log_loss(probabilities: Floats, truth: Ints) -> float:
    """Return the mean negative log-likelihood of the true class, in nats."""
    likely = probabilities[np.arange(len(truth)), truth].astype(np.float64)
    return float(-np.log(np.maximum(likely, np.finfo(np.float64).tiny)).mean())


def top_k_accuracy(probabilities: Floats, truth: Ints, k: int = 2) -> float:
    """Return the share of images with their true class among the k most likely."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return float((best == truth[:, None]).any(1).mean())


def per_output_accuracy(probabilities: Floats, truth: Ints) -> float:
    """Return the share of the n * classes outputs on the right side of .5, each counted alone.

    Some libraries call this "accuracy". It says little: outputs that never pass .5 reach 1 - 1/classes, even untrained.
    """
    wanted = np.arange(probabilities.shape[1]) == truth[:, None]
    return float(((probabilities > 0.5) == wanted).mean())


def risk_coverage(confidence: Floats, correct: NDArray[np.bool_], points: int = 100) -> RiskCoverage:
    """Return accuracy over coverage, at up to `points` coverages."""
    order = np.argsort(-confidence, kind="stable")
    kept = np.arange(1, len(order) + 1)
    accuracy = np.cumsum(correct[order]) / kept
    shown = np.unique(np.linspace(1, len(order), min(points, len(order))).round().astype(int)) - 1
    return RiskCoverage(
        aurc=float((1 - accuracy).mean()),
        coverage=(kept[shown] / len(order)).tolist(),
        accuracy=accuracy[shown].tolist(),
        threshold=confidence[order][shown].astype(float).tolist(),
    )


def summarize(probabilities: Floats, truth: Ints, classes: tuple[str, ...]) -> Figures:
    """Return accuracy, macro-F1 and UAR with 95 % intervals, top-2, Brier score, per-class figures and the confusion matrix."""
    confusion = confusion_matrix(truth, probabilities.argmax(1), len(classes))
    figures = per_class(confusion)
    scores = {name: float(value) for name, value in overall(confusion).items()}
    if len(truth):
        scores |= {
            "top2": top_k_accuracy(probabilities, truth),
            "brier": brier_score(probabilities, truth),
            "log_loss": log_loss(probabilities, truth),
            "per_output_accuracy": per_output_accuracy(probabilities, truth),
        }
    return Figures(
        images=len(truth),
        **scores,
        intervals_95=bootstrap_intervals(confusion),
        per_class={
            name: ClassFigures(**{key: float(values[index]) for key, values in figures.items()})
            for index, name in enumerate(classes)
        },
        confusion=confusion.tolist(),
    )
