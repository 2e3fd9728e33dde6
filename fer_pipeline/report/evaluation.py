"""The page of an evaluation: figures with their intervals, per class, calibration, and what abstaining buys."""

import base64
from typing import Any

import jinja2
from matplotlib.figure import Figure

from fer_pipeline.models.card import ModelCard
from fer_pipeline.report.training import confusion_png, png

BLUE, GREY, RED = "#2f62c9", "#8a94a6", "#c4453c"


def evaluation_page(figures: dict[str, Any], card: ModelCard) -> str:
    """Return the page of what stands in `evaluation.json`, self-contained."""
    views = {"all images": figures["all"], "without copies of training images": figures["without_training_images"]}
    return (
        environment()
        .get_template("evaluation.html")
        .render(
            figures=figures,
            card=card,
            pictures=pictures(figures["all"], card.label_space.classes),
            views={name: view for name, view in views.items() if view},
        )
    )


def environment() -> jinja2.Environment:
    """Return what renders the templates of the pages of models."""
    loader = jinja2.PackageLoader("fer_pipeline.report")
    found = jinja2.Environment(loader=loader, autoescape=jinja2.select_autoescape(), trim_blocks=True, lstrip_blocks=True)
    found.filters |= {"percent": percent, "count": "{:,}".format}
    return found


def percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{share:.{digits}%}"


def pictures(figures: dict[str, Any], classes: tuple[str, ...]) -> dict[str, str]:
    """Return the pictures that a view's figures allow, as data URLs, by what they show."""
    found = {"confusion matrix": confusion_png(figures["confusion"], classes, f"{figures['images']:,} images")}
    if figures.get("calibration"):
        found["reliability"] = reliability_png(figures["calibration"])
    if "risk_coverage" in figures:
        found["risk and coverage"] = risk_coverage_png(figures["risk_coverage"], figures["certain"])
    return {name: data_url(picture) for name, picture in found.items()}


def data_url(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def reliability_png(calibration: dict[str, Any]) -> bytes:
    """Return accuracy over confidence, before temperature scaling and cross-fitted; the area of a dot goes by its images."""
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":", label="as confident as right")
    ways = (("before", "before temperature scaling", GREY), ("cross_fitted", "after, each half scaled by the other", BLUE))
    for key, label, color in ways:
        bins = calibration[key]["reliability"]
        total = sum(bar["images"] for bar in bins)
        x, y = [bar["confidence"] for bar in bins], [bar["accuracy"] for bar in bins]
        axes.plot(x, y, color=color, linewidth=1.2, label=f"{label}: ECE {calibration[key]['ece']:.3f}")
        axes.scatter(x, y, s=[600 * bar["images"] / total for bar in bins], color=color, alpha=0.45, linewidths=0)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    return _finished(figure)


def risk_coverage_png(curve: dict[str, Any], certain: dict[str, Any]) -> bytes:
    """Return accuracy among the most confident images over their share, and where the model's `uncertain` begins."""
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve["coverage"], curve["accuracy"], color=BLUE)
    if certain["accuracy"] is not None:
        label = f"not uncertain: {certain['coverage']:.0%} of the labels, {certain['accuracy']:.0%} right"
        axes.scatter([certain["coverage"]], [certain["accuracy"]], color=RED, zorder=3, label=label)
        axes.legend(frameon=False, loc="lower left")
    low = min(curve["accuracy"])
    axes.set(xlabel="share of the images that are labelled, the most confident first", ylabel="accuracy among them")
    axes.set(xlim=(0, 1.02), ylim=(max(0.0, low - 0.1), 1.02))
    return _finished(figure, legend=False)


def _finished(figure: Figure, legend: bool = True) -> bytes:
    (axes,) = figure.axes
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(frameon=False, loc="upper left")
    return png(figure)
