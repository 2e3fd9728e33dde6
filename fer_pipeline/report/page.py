"""The scaffold of every page: templates, and pictures that stand in the page itself."""

import base64
import logging
from collections.abc import Callable

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray

from fer_pipeline.core.storage import reason
from fer_pipeline.core.text import in_markdown

log = logging.getLogger(__name__)


def render(template: str, **facts: object) -> str:
    """Return one of `report/templates` with these facts."""
    loader = jinja2.PackageLoader("fer_pipeline.report")
    environment = jinja2.Environment(loader=loader, autoescape=jinja2.select_autoescape(), trim_blocks=True, lstrip_blocks=True)
    if template.endswith(".md"):
        environment.finalize = _in_markdown
    environment.filters |= {"percent": percent, "count": "{:,}".format, "moment": moment}
    return environment.get_template(template).render(facts)


def drawn(title: str, draw: Callable[[], str], again: str) -> str:
    """Return a page; where it cannot be drawn, one that says why, and `again`, a sentence on how to have it drawn.

    What is done stays done: the caller writes its results first.
    """
    try:
        return draw()
    except Exception as error:
        log.warning("%s cannot be drawn: %s", title, reason(error), exc_info=True)
        return render("undrawn.html", title=title, reason=reason(error), again=again)


def _in_markdown(value: object) -> object:
    """Return a value of a model card so that Markdown shows it as it is; a card written by hand holds lists and tables, too."""
    return value if isinstance(value, int | float | jinja2.Undefined) else in_markdown(str(value))


def percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{share:.{digits}%}"


def moment(time_ms: int) -> str:
    """Return a moment of a video as hours, minutes and seconds: 0:01:02.5."""
    minutes, seconds = divmod(time_ms / 1000, 60)
    return f"{int(minutes) // 60}:{int(minutes) % 60:02d}:{seconds:04.1f}"


def data_url(picture: bytes, kind: str = "png") -> str:
    """Return an encoded picture as a URL that holds it."""
    return f"data:image/{kind};base64," + base64.b64encode(picture).decode()


def jpeg_url(pixels: NDArray[np.uint8]) -> str:
    """Return a BGR picture as a URL that holds it as a JPEG."""
    return data_url(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes(), "jpeg")
