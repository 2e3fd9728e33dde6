"""One base for every configuration and record: frozen, unknown keys are refused, and what becomes a path is a plain name."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fer_pipeline.core import storage
from fer_pipeline.core.errors import UserError

ID = r"[A-Za-z0-9][\w.-]*"
"""The pattern of what may become a part of a path: of runs, nights, models, versions and aliases."""
Id = Annotated[str, StringConstraints(pattern=f"^{ID}$", max_length=200)]


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it holds characters that cannot be printed")
    return text


@dataclass(frozen=True)
class IsPlace:
    """Marks an option that names a path or a URL: what a process that serves schedules may use is pinned (`flows/pins.py`)."""

    names: str = ""
    """A pattern of what stands for something that needs no place."""

    def is_name(self, text: str) -> bool:
        return bool(self.names and re.fullmatch(self.names, text))


PLACE = IsPlace()
NAME_OR_PLACE = IsPlace(r"[A-Za-z0-9][\w-]*")
"""Of a recipe, a framing, a label space or a numbering: of ours, or a TOML file."""
MODEL = IsPlace(rf"embedded|{ID}@{ID}")
"""Of a model: the embedded one, one of the registry that the environment names, or a folder."""

Name = Annotated[str, Field(max_length=200), AfterValidator(_printable)]
"""What people call a thing: one line, which stands in rows, logs and pages."""


class Config(BaseModel):
    """A frozen configuration; the same class is the command line, the Prefect parameter schema and the record.

    Numbers must be finite: a configuration may be a stranger's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


Some = TypeVar("Some", bound=Config)


def read_record(url: str, kind: type[Some], what: str) -> Some:
    """Return what the JSON file at `url` holds; raise UserError, which calls it `what`, for anything else than a `kind`."""
    try:
        return kind.model_validate_json(storage.read_small(url))
    except ValidationError as error:
        raise UserError(f"'{url}' is no {what} of this project: {explain(error)}. Mend it, or move it away.") from error


def dated_text(text: str, date: str, time: str) -> str:
    """Return a text with a date and a time in the place of `{date}` and `{time}`."""
    return text.replace("{date}", date).replace("{time}", time)


def with_date(config: Some, date: str | None = None, time: str | None = None) -> Some:
    """Return a configuration with a date and a time in the place of `{date}` and `{time}` wherever they stand in a text.

    By default they are now, in UTC, as 2026-11-20 and 0230.
    """
    now = datetime.now(UTC)
    date, time = date or f"{now:%Y-%m-%d}", time or f"{now:%H%M}"
    changes: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, str):
            changes[name] = dated_text(value, date, time)
        elif isinstance(value, Config):
            changes[name] = with_date(value, date, time)
    return config.model_copy(update=changes)


def require_same(what: str, asked: dict[str, Any], kept: dict[str, Any], option: str = "--out") -> None:
    """Raise UserError where `what`, which is there already, is of another configuration than the one asked for."""
    changed = [name for name in asked if asked[name] != kept.get(name)]
    if changed:
        raise UserError(
            f"{what} was begun with another {' and '.join(changed)}: repeat its configuration to continue it, or choose another "
            f"{option}."
        )


def explain(error: ValidationError) -> str:
    """Return the first fault of a pydantic validation error as `key: what is wrong`, for a one-line message."""
    fault = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in fault["loc"]) or "value"
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{key}'"
    if fault["type"] == "missing":
        return f"'{key}' is missing"
    return f"{key}: {fault['msg']}"
