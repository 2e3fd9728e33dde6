"""Colours, axes and PNG output of all plots."""

import io

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.use("Agg")
matplotlib.rcParams["text.parse_math"] = False  # names of classes may contain any text

BLUE, GREY, RED = "#2f62c9", "#8a94a6", "#c4453c"


def tidy(*axes: Axes) -> None:
    """Add a light grid to axes and remove the top and right spines."""
    for one in axes:
        one.grid(alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    return out.getvalue()
