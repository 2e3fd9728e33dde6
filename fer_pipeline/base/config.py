"""The base class of all configurations and records: frozen, without unknown keys; a value used in a path is a plain name."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError

ID = r"[A-Za-z0-9][\w.-]*"
"""Pattern of an id that may be part of a path: of a run, night, model, version or alias."""
Id = Annotated[str, StringConstraints(pattern=f"^{ID}$", max_length=200)]


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it contains characters that cannot be printed")
    return text


@dataclass(frozen=True)
class IsPlace:
    """Marks an option that takes a path or URL. A process that serves schedules accepts pinned ones only (`flows/pins.py`)."""

    names: str = ""
    """Pattern of values that are names, not places."""

    def is_name(self, text: str) -> bool:
        return bool(self.names and re.fullmatch(self.names, text))


PLACE = IsPlace()
NAME_OR_PLACE = IsPlace(r"[A-Za-z0-9][\w-]*")
"""A recipe, framing, label space or numbering: the name of a built-in one, or a TOML file."""
MODEL = IsPlace(rf"embedded|{ID}@{ID}")
"""A model: the embedded one, one of the registry that the environment names, or a folder."""

Name = Annotated[str, Field(max_length=200), AfterValidator(_printable)]
"""A display name for rows, logs and pages: one printable line."""


class Config(BaseModel):
    """A frozen configuration. One class defines the command line, the Prefect parameter schema and the record.

    Numbers must be finite, because a configuration may be untrusted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


Some = TypeVar("Some", bound=Config)


def read_record(url: str, kind: type[Some], what: str) -> Some:
    """Return the content of the JSON file at `url`. Raise UserError if it is not a valid `kind`; the message calls it `what`."""
    try:
        return kind.model_validate_json(storage.read_small(url))
    except ValidationError as error:
        raise UserError(f"'{url}' is not a valid {what}: {explain(error)}. Fix the file or move it away.") from error


def dated_text(text: str, date: str, time: str) -> str:
    """Return the text with `{date}` and `{time}` replaced."""
    return text.replace("{date}", date).replace("{time}", time)


def with_date(config: Some, date: str | None = None, time: str | None = None) -> Some:
    """Return the configuration with `{date}` and `{time}` replaced in all of its texts.

    The default is the current time in UTC, such as 2026-11-20 and 0230.
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
    """Raise UserError if the existing `what` was made with a configuration (`kept`) that differs from the requested one."""
    changed = [name for name in asked if asked[name] != kept.get(name)]
    if changed:
        raise UserError(
            f"{what} was begun with another {' and '.join(changed)}: use the same configuration to continue it, or choose "
            f"another {option}."
        )


def explain(error: ValidationError, option: Callable[[str], str] | None = None) -> str:
    """Return one error of a pydantic validation as `key: what is wrong`, for a one-line message: an unknown key, or the first.

    `option` names a key as the user writes it.
    """
    faults = error.errors(include_url=False)
    fault = next((one for one in faults if one["type"] == "extra_forbidden"), faults[0])
    key = ".".join(str(part) for part in fault["loc"]) or "value"
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{key}'"
    if fault["type"] == "missing":
        return "{} is missing".format(option(key) if option else f"'{key}'")
    return f"{option(key) if option else key}: {fault['msg'].removeprefix('Value error, ')}"
