"""What a process that serves schedules may use: clusters, places and webhooks. Its own file says so, and no parameter.

Parameters come from Prefect's server. Whoever reaches that could name another head, which would be sent the token, and any file.
The file is pinned in the environment of the process that serves, which runs of flows inherit. A flow that is started by hand is
its user's own, and has no pins.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fer_pipeline.core import storage
from fer_pipeline.core.config import Config, IsPlace
from fer_pipeline.core.errors import UserError

ENVIRONMENT = "FER_PIPELINE_PINS"
"""Environment variable: the pins of this process, as JSON."""


class Pins(Config):
    """The table `allowed` of a file of schedules. What the schedules themselves name is allowed without it."""

    clusters: tuple[str, ...] = ()
    """Addresses of clusters to which jobs may be given."""
    roots: tuple[str, ...] = ()
    """Folders and URLs below which flows may read and write."""
    notify: tuple[str, ...] = ()
    """Webhook blocks that may be told of ends."""


def pin(pins: Pins) -> None:
    """Pin what this process, and each that it starts, may use."""
    os.environ[ENVIRONMENT] = pins.model_dump_json()


def pins_of(allowed: Pins, parameters: Iterable[tuple[Any, Any, str | None]]) -> Pins:
    """Return what is allowed, and what schedules name: the configuration, cluster and webhook of each."""
    clusters, roots, notify = set(allowed.clusters), set(map(storage.normalize, allowed.roots)), set(allowed.notify)
    for config, cluster, block in parameters:
        clusters |= {cluster.address} if cluster.address else set()
        roots |= {storage.normalize(_before_the_date(text)) for _, text in places(config)}
        notify |= {block} if block else set()
    return Pins(clusters=tuple(sorted(clusters)), roots=tuple(sorted(roots)), notify=tuple(sorted(notify)))


def _before_the_date(text: str) -> str:
    """Return the folder of a path that has `{date}` or `{time}` in it; any other path as it is."""
    before, brace, _ = text.partition("{")
    if not brace:
        return text
    folder = before.rpartition("/")[0]
    if not folder or storage.normalize(folder) in ("/", str(Path.cwd())) or folder in ("s3:", "s3:/"):
        raise UserError(f"'{text}' would have runs write anywhere: name a folder before the date, as in runs/{{date}}.")
    return folder


def places(config: BaseModel, above: str = "") -> Iterator[tuple[str, str]]:
    """Yield the options of a configuration, and of those within it, that name a place, with the place."""
    for name, field in type(config).model_fields.items():
        value, key = getattr(config, name), f"{above}{name}"
        mark = next((one for one in field.metadata if isinstance(one, IsPlace)), None)
        if isinstance(value, BaseModel):
            yield from places(value, f"{key}.")
        elif mark and value:
            texts = (value,) if isinstance(value, str) else value
            yield from ((key, text) for text in texts if not mark.is_name(text))


def is_pinned(kind: str, value: str | None) -> bool:
    """Tell whether this process may use a value of a kind of pin (`clusters`, `notify`)."""
    return value is None or ENVIRONMENT not in os.environ or value in getattr(_own(), kind)


def _own() -> Pins:
    return Pins.model_validate(json.loads(os.environ[ENVIRONMENT]))


def require_pinned(config: BaseModel, cluster: Any = None, notify: str | None = None) -> None:
    """Raise UserError for parameters that this process may not use, before anything is sent or read."""
    if ENVIRONMENT not in os.environ:
        return
    for kind, value in (("clusters", getattr(cluster, "address", None)), ("notify", notify)):
        if not is_pinned(kind, value):
            raise UserError(f"'{value}' is not among the {kind} of this process: allow it in its file of schedules ([allowed]).")
    roots = _own().roots
    for name, place in places(config):
        if not any(storage.is_below(place, root) for root in roots):
            shown = storage.reason(ValueError(place))[:200]
            raise UserError(
                f"{name} '{shown}' is below none of the roots of this process: allow it in its file of schedules ([allowed])."
            )
