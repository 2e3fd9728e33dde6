"""Pictures of a training: loss and accuracy curves, and the confusion matrix."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fer_pipeline.report.plots import BLUE, GREY, RED, png, tidy


def curves_png(history: list[dict[str, Any]], selected: int) -> bytes:
    """Return a PNG of loss and accuracy by epoch; `selected` is the epoch of the kept weights."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [epoch["epoch"] for epoch in history]
    for axes, kind in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [epoch[f"train_{kind}"] for epoch in history], label="training (augmented)", color=GREY)
        axes.plot(epochs, [epoch[f"validation_{kind}"] for epoch in history], label="validation", color=BLUE)
        axes.axvline(selected, color=RED, linewidth=0.8, linestyle=":", label=f"selected: epoch {selected}")
        axes.set(xlabel="epoch", ylabel=kind)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        tidy(axes)
        axes.legend(frameon=False)
    return png(figure)


def confusion_png(confusion: list[list[int]], classes: tuple[str, ...], title: str) -> bytes:
    """Return a PNG of the confusion matrix with counts, shaded by the share of each labelled class."""
    counts = np.array(confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(number), ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="labelled", title=title)
    return png(figure)
