"""The scaffold of every page: templates, colours, and pictures that stand in the page itself."""

import base64
import io

import jinja2
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.use("Agg")

BLUE, GREY, RED = "#2f62c9", "#8a94a6", "#c4453c"


def render(template: str, **facts: object) -> str:
    """Return one of `report/templates` with these facts."""
    loader = jinja2.PackageLoader("fer_pipeline.report")
    environment = jinja2.Environment(loader=loader, autoescape=jinja2.select_autoescape(), trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "count": "{:,}".format}
    return environment.get_template(template).render(facts)


def percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{share:.{digits}%}"


def data_url(picture: bytes, kind: str = "png") -> str:
    """Return an encoded picture as a URL that holds it."""
    return f"data:image/{kind};base64," + base64.b64encode(picture).decode()


def tidy(*axes: Axes) -> None:
    """Give axes a light grid and no frame."""
    for one in axes:
        one.grid(alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    return out.getvalue()
