"""Render pages from templates, with pictures embedded in the page."""

import base64
import logging
from collections.abc import Callable
from importlib.resources import files

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray

from fer_pipeline.base.storage import reason
from fer_pipeline.base.text import in_markdown

log = logging.getLogger(__name__)


def render(template: str, **facts: object) -> str:
    """Return the template of `report/templates`, filled with these facts."""
    loader = jinja2.PackageLoader("fer_pipeline.report")
    environment = jinja2.Environment(loader=loader, autoescape=jinja2.select_autoescape(), trim_blocks=True, lstrip_blocks=True)
    if template.endswith(".md"):
        environment.finalize = _in_markdown
    environment.filters |= {"percent": percent, "count": "{:,}".format, "moment": moment}
    return environment.get_template(template).render(facts)


def template_text(name: str) -> str:
    """Return a file of `report/templates` as it is."""
    return (files("fer_pipeline.report") / "templates" / name).read_text(encoding="utf-8")


def drawn(title: str, draw: Callable[[], str], again: str) -> str:
    """Return the page that `draw` returns. If it fails, return a page with the reason and `again`, a sentence on how to retry.

    A failed page loses no results, because the caller writes its results first.
    """
    try:
        return draw()
    except Exception as error:
        log.warning("%s cannot be drawn: %s", title, reason(error), exc_info=True)
        return render("undrawn.html", title=title, reason=reason(error), again=again)


def _in_markdown(value: object) -> object:
    """Return a value of a model card, escaped for Markdown. A card written by hand may also hold lists and tables."""
    return value if isinstance(value, int | float | jinja2.Undefined) else in_markdown(str(value))


def percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{share:.{digits}%}"


def moment(time_ms: int) -> str:
    """Return a moment of a video as hours, minutes and seconds: 0:01:02.5."""
    minutes, seconds = divmod(time_ms / 1000, 60)
    return f"{int(minutes) // 60}:{int(minutes) % 60:02d}:{seconds:04.1f}"


def data_url(picture: bytes, kind: str = "png") -> str:
    """Return an encoded picture as a data URL."""
    return f"data:image/{kind};base64," + base64.b64encode(picture).decode()


def jpeg_url(pixels: NDArray[np.uint8], quality: int = 80) -> str:
    """Return a BGR picture as the data URL of a JPEG."""
    return data_url(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes(), "jpeg")
