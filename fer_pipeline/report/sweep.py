"""The picture of a sweep: accuracy of its trials by epoch and by setting."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fer_pipeline.report.plots import BLUE, GREY, RED, png, tidy


def sweep_png(trials: list[dict[str, Any]], names: list[str]) -> bytes:
    """Return a PNG of every trial's validation accuracy by epoch, and of its best accuracy by each setting.

    A trial has `settings` by name, `history` (accuracy by epoch) and `accuracy` (the best of them). The best trial comes first.
    """
    figure = Figure(figsize=(4.2 * (1 + len(names)), 3.6), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(names), sharey=True)
    for trial in reversed(trials):
        best = trial is trials[0]
        epochs = range(1, len(trial["history"]) + 1)
        color, width = (RED, 2.0) if best else (GREY, 0.9)
        marker = "o" if len(trial["history"]) == 1 else ""
        label = "best" if best else None
        first.plot(epochs, trial["history"], color=color, linewidth=width, marker=marker, markersize=3, label=label)
    first.set(xlabel="epoch", ylabel="validation accuracy")
    first.xaxis.set_major_locator(MaxNLocator(integer=True))
    first.legend(frameon=False)
    for axes, name in zip(others, names, strict=True):
        values = [trial["settings"][name] for trial in reversed(trials)]
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            values = [str(value) for value in values]
        elif min(values) > 0 and max(values) > 10 * min(values):
            axes.set_xscale("log")
        colors = [BLUE] * (len(trials) - 1) + [RED]
        axes.scatter(values, [trial["accuracy"] for trial in reversed(trials)], c=colors, s=24)
        axes.set(xlabel=name)
    tidy(first, *others)
    return png(figure)
