"""The clusters, places and webhooks that a serving process may use. Its schedule file names them; parameters cannot add any.

Parameters come from Prefect's server. Anyone who reaches the server could name any file, or another Ray head, which would receive
the token. The serving process therefore pins what its file names in its environment, which its flow runs inherit. A flow that a
user starts from the shell has no pins.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fer_pipeline.base import storage
from fer_pipeline.base.config import Config, IsPlace
from fer_pipeline.base.errors import UserError

ENVIRONMENT = "FER_PIPELINE_PINS"
"""Environment variable that holds the pins of this process as JSON."""


class Pins(Config):
    """The table `allowed` of a schedule file. It adds to what the schedules name."""

    clusters: tuple[str, ...] = ()
    """Addresses of clusters that may run jobs."""
    roots: tuple[str, ...] = ()
    """Folders and URLs below which flows may read and write."""
    notify: tuple[str, ...] = ()
    """Webhook blocks that runs may call."""


def pin(pins: Pins) -> None:
    """Restrict this process and its child processes to these pins."""
    os.environ[ENVIRONMENT] = pins.model_dump_json()


def pins_of(allowed: Pins, parameters: Iterable[tuple[Any, Any, str | None]]) -> Pins:
    """Return the allowed pins plus what `parameters` name: the configuration, cluster and webhook of each schedule."""
    clusters, roots, notify = set(allowed.clusters), set(map(storage.normalize, allowed.roots)), set(allowed.notify)
    for config, cluster, block in parameters:
        clusters |= {cluster.address} if cluster.address else set()
        roots |= {storage.normalize(_folder_above_date(text)) for _, text in places(config)}
        notify |= {block} if block else set()
    return Pins(clusters=tuple(sorted(clusters)), roots=tuple(sorted(roots)), notify=tuple(sorted(notify)))


def _folder_above_date(text: str) -> str:
    """Return the folder above `{date}` or `{time}` in a path, or the whole path if it has neither."""
    before, brace, _ = text.partition("{")
    if not brace:
        return text
    folder = before.rpartition("/")[0]
    if not folder or storage.normalize(folder) in ("/", str(Path.cwd())) or folder in ("s3:", "s3:/"):
        raise UserError(f"'{text}' lets runs write anywhere: name a folder before the date, as in runs/{{date}}.")
    return folder


def places(config: BaseModel, above: str = "") -> Iterator[tuple[str, str]]:
    """Yield (option, place) for each option of a configuration that names a place, including nested configurations."""
    for name, field in type(config).model_fields.items():
        value, key = getattr(config, name), f"{above}{name}"
        mark = next((one for one in field.metadata if isinstance(one, IsPlace)), None)
        if isinstance(value, BaseModel):
            yield from places(value, f"{key}.")
        elif mark and value:
            texts = (value,) if isinstance(value, str) else value
            yield from ((key, text) for text in texts if not mark.is_name(text))


def is_pinned(kind: str, value: str | None) -> bool:
    """Return whether this process may use a value. `kind` is a field of `Pins`: `clusters` or `notify`."""
    return value is None or ENVIRONMENT not in os.environ or value in getattr(_own_pins(), kind)


def _own_pins() -> Pins:
    return Pins.model_validate(json.loads(os.environ[ENVIRONMENT]))


def require_pinned(config: BaseModel, cluster: Any = None, notify: str | None = None) -> None:
    """Raise UserError for parameters that this process may not use. Call it before anything is sent or read."""
    if ENVIRONMENT not in os.environ:
        return
    for kind, value in (("clusters", getattr(cluster, "address", None)), ("notify", notify)):
        if not is_pinned(kind, value):
            raise UserError(f"'{value}' is not among the {kind} of this process: add it to [allowed] in the schedule file.")
    roots = _own_pins().roots
    for name, place in places(config):
        if not any(storage.is_below(place, root) for root in roots):
            shown = storage.reason(ValueError(place))[:200]
            raise UserError(f"{name} '{shown}' is not below any root of this process: add one to [allowed] in the schedule file.")
