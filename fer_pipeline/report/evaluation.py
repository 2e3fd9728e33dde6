"""The page of an evaluation: figures with their intervals, per class, calibration, and what abstaining buys."""

from matplotlib.figure import Figure

from fer_pipeline.core.figures import CalibrationComparison, CertainFigures, Evaluation, Figures, RiskCoverage
from fer_pipeline.models.card import ModelCard
from fer_pipeline.report.page import BLUE, GREY, RED, data_url, png, render, tidy
from fer_pipeline.report.training import confusion_png


def evaluation_page(evaluation: Evaluation, card: ModelCard) -> str:
    """Return the page of what stands in `evaluation.json`, self-contained."""
    views = {"all images": evaluation.all, "without copies of training images": evaluation.without_training_images}
    return render(
        "evaluation.html",
        figures=evaluation,
        card=card,
        pictures=pictures(evaluation.all, card.label_space.classes),
        views={name: view for name, view in views.items() if view},
    )


def pictures(figures: Figures, classes: tuple[str, ...]) -> dict[str, str]:
    """Return the pictures that a view's figures allow, as data URLs, by what they show."""
    found = {"confusion matrix": confusion_png(figures.confusion, classes, f"{figures.images:,} images")}
    if figures.calibration:
        found["reliability"] = reliability_png(figures.calibration)
    if figures.risk_coverage and figures.certain:
        found["risk and coverage"] = risk_coverage_png(figures.risk_coverage, figures.certain)
    return {name: data_url(picture) for name, picture in found.items()}


def reliability_png(calibration: CalibrationComparison) -> bytes:
    """Return accuracy over confidence, before temperature scaling and cross-fitted; the area of a dot goes by its images."""
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":", label="as confident as right")
    before, after = calibration.before, calibration.cross_fitted
    for one, label, color in (
        (before, "before temperature scaling", GREY),
        (after, "after, each half scaled by the other", BLUE),
    ):
        bins = one.reliability
        total = sum(bar.images for bar in bins)
        x, y = [bar.confidence for bar in bins], [bar.accuracy for bar in bins]
        axes.plot(x, y, color=color, linewidth=1.2, label=f"{label}: ECE {one.ece:.3f}")
        axes.scatter(x, y, s=[600 * bar.images / total for bar in bins], color=color, alpha=0.45, linewidths=0)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    return _finished(figure)


def risk_coverage_png(curve: RiskCoverage, certain: CertainFigures) -> bytes:
    """Return accuracy among the most confident images over their share, and where the model's `uncertain` begins."""
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve.coverage, curve.accuracy, color=BLUE)
    if certain.accuracy is not None:
        label = f"not uncertain: {certain.coverage:.0%} of the labels, {certain.accuracy:.0%} right"
        axes.scatter([certain.coverage], [certain.accuracy], color=RED, zorder=3, label=label)
        axes.legend(frameon=False, loc="lower left")
    low = min(curve.accuracy)
    axes.set(xlabel="share of the images that are labelled, the most confident first", ylabel="accuracy among them")
    axes.set(xlim=(0, 1.02), ylim=(max(0.0, low - 0.1), 1.02))
    return _finished(figure, legend=False)


def _finished(figure: Figure, legend: bool = True) -> bytes:
    (axes,) = figure.axes
    tidy(axes)
    if legend:
        axes.legend(frameon=False, loc="upper left")
    return png(figure)
