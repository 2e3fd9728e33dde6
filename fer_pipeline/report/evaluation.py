"""The page of an evaluation: figures with intervals, figures by class, calibration, and accuracy by coverage."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from fer_pipeline.models.card import ModelCard
from fer_pipeline.models.figures import CalibrationComparison, CertainFigures, Evaluation, Figures, RiskCoverage
from fer_pipeline.report.mistakes import Confusion
from fer_pipeline.report.page import data_url, render
from fer_pipeline.report.plots import BLUE, GREY, RED, png, tidy
from fer_pipeline.report.training import confusion_png

MIN_BIN_IMAGES = 30
"""A bin with fewer images is unreliable: its point is hollow and not part of the line."""


def evaluation_page(
    evaluation: Evaluation, card: ModelCard, mistakes: Sequence[Confusion] = (), shown: Mapping[str, str] = {}
) -> str:
    """Return the self-contained page of an evaluation. `shown` holds pictures of mistakes as data URLs, by sample id."""
    views = {"all images": evaluation.all, "without copies of training images": evaluation.without_training_images}
    return render(
        "evaluation.html",
        figures=evaluation,
        card=card,
        pictures=pictures(evaluation.all, card.label_space.classes),
        mistakes=mistakes,
        shown=shown,
        views={name: view for name, view in views.items() if view},
    )


def pictures(figures: Figures, classes: tuple[str, ...]) -> dict[str, str]:
    """Return the pictures for a view's figures as data URLs, by what they show."""
    found = {"confusion matrix": confusion_png(figures.confusion, classes, f"{figures.images:,} images")}
    if figures.calibration:
        found["reliability"] = reliability_png(figures.calibration)
    if figures.risk_coverage and figures.certain:
        found["risk and coverage"] = risk_coverage_png(figures.risk_coverage, figures.certain)
    return {name: data_url(picture) for name, picture in found.items()}


def reliability_png(calibration: CalibrationComparison) -> bytes:
    """Return a PNG of accuracy over confidence, before temperature scaling and cross-fitted.

    Each bin has its 95 % interval. Bins with fewer than `MIN_BIN_IMAGES` images are hollow, and the line leaves them out.
    """
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":", label="perfectly calibrated")
    before, after = calibration.before, calibration.cross_fitted
    for one, label, color in (
        (before, "before temperature scaling", GREY),
        (after, "after, cross-fitted", BLUE),
    ):
        bins = [bar for bar in one.reliability if bar.images]
        reliable = [bar for bar in bins if bar.images >= MIN_BIN_IMAGES]
        sparse = [bar for bar in bins if bar.images < MIN_BIN_IMAGES]
        x, y = [bar.confidence for bar in reliable], [bar.accuracy for bar in reliable]
        axes.plot(x, y, "o-", color=color, linewidth=1.2, markersize=4, label=f"{label}: ECE {one.ece:.3f}")
        axes.scatter([b.confidence for b in sparse], [b.accuracy for b in sparse], s=16, facecolors="none", edgecolors=color)
        for bar in bins:
            axes.plot([bar.confidence] * 2, wilson_interval(bar.accuracy, bar.images), color=color, linewidth=0.8, alpha=0.5)
    axes.set(xlabel=f"confidence (hollow: fewer than {MIN_BIN_IMAGES} images)", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    return _finished(figure)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `count` trials (Wilson, 1927)."""
    z2 = 1.96**2
    center, half = share + z2 / (2 * count), 1.96 * np.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return float((center - half) / (1 + z2 / count)), float((center + half) / (1 + z2 / count))


def risk_coverage_png(curve: RiskCoverage, certain: CertainFigures) -> bytes:
    """Return a PNG of the accuracy of the most confident labels over their share, with the model's `uncertain` threshold."""
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve.coverage, curve.accuracy, color=BLUE)
    if certain.accuracy is not None:
        label = f"not uncertain: {certain.coverage:.0%} of the labels, {certain.accuracy:.0%} correct"
        axes.scatter([certain.coverage], [certain.accuracy], color=RED, zorder=3, label=label)
        axes.legend(frameon=False, loc="lower left")
    low = min(curve.accuracy)
    axes.set(xlabel="coverage: share of the images, most confident first", ylabel="accuracy among them")
    axes.set(xlim=(0, 1.02), ylim=(max(0.0, low - 0.1), 1.02))
    return _finished(figure, legend=False)


def _finished(figure: Figure, legend: bool = True) -> bytes:
    (axes,) = figure.axes
    tidy(axes)
    if legend:
        axes.legend(frameon=False, loc="upper left")
    return png(figure)
