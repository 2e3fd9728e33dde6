"""The sources of a command's options, and their groups in its help. Flags override the environment, which overrides TOML."""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import urlsplit

import tomli_w
from cyclopts import App, Group, Parameter
from cyclopts.config import Env, Toml
from pydantic import BaseModel, ValidationError

from fer_pipeline.base.config import Config
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.storage import objects
from fer_pipeline.models.comparison import Rule
from fer_pipeline.models.registry import ENVIRONMENT as REGISTRY
from fer_pipeline.table.thresholds import Thresholds

PREFIX = "FER_PIPELINE_"
"""Prefix of environment variables: FER_PIPELINE_LABEL_DETECT_PX is --detect-px of label."""
WHAT, HOW, LIMITS, WHERE = (Group.create_ordered(title) for title in ("What goes in and out", "How", "Limits", "The cluster"))
IN_AND_OUT = (
    "source", "out", "dest", "include", "exclude", "fps", "image_column", "table", "recipe", "data", "model", "run", "page",
    "nights", "date", "split", "registry", "name", "version", "alias", "night", "uri", "content", "image", "layout", "votes",
)  # fmt: skip
BOUNDS = ("max_", "min_", "record_", "shard_", "num_gpus", "resident_gb", "retention_", "relabel_budget", "grace_")

Parameter(name="*", negative_iterable=())(Config)  # the fields of a configuration are options; an empty list has no flag
Parameter(name="audit", negative_iterable=())(Thresholds)  # --audit.failed
Parameter(name="rule", negative_iterable=())(Rule)


def function_of(path: str) -> Any:
    """Return the function at a path below the package, such as `jobs.ingest:run`."""
    module, _, name = path.partition(":")
    return getattr(import_module(f"fer_pipeline.{module}"), name)


def prepare(function: Any, positional: Iterable[str]) -> None:
    """Put the options of a function's configurations into groups; options in `positional` need no flag."""
    for kind in configs_of(function).values():
        for name, field in kind.model_fields.items():
            field.kw_only = name not in positional
            field.metadata = [
                *(one for one in field.metadata if not isinstance(one, Parameter)),
                Parameter(group=_group(kind, name)),
            ]


def configs_of(function: Any) -> dict[str, type[Config]]:
    """Return the configuration classes that a function takes, by parameter."""
    hints = get_type_hints(function)
    return {
        name: kind for name, kind in hints.items() if isinstance(kind, type) and issubclass(kind, Config) and name != "return"
    }


def _group(kind: type[Config], name: str) -> Group:
    if kind.__name__ == "ClusterConfig":  # importing it would import Ray
        return WHERE
    if name in IN_AND_OUT:
        return WHAT
    return LIMITS if name.startswith(BOUNDS) else HOW


def sources(file: str | None, commands: Iterable[str]) -> list[Any]:
    """Return the sources of options besides flags; raise UserError for an invalid configuration file."""
    if file is None:
        return [Env(PREFIX)]
    _require_tables(file, read_toml(file), commands)
    return [Env(PREFIX), Toml(file)]


def read_toml(file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(file).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"The configuration '{file}' cannot be read: {error}.") from error


def _require_tables(file: str, tables: Mapping[str, Any], commands: Iterable[str]) -> None:
    known = sorted({command.split()[0] for command in commands})
    for name in tables:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            meant = f"did you mean [{close[0]}]?" if close else f"tables are named after commands: {', '.join(known)}."
            raise UserError(f"The configuration '{file}' has a table or key '{name}', which is not a command: {meant}")


def shown(app: App, command: str, tokens: Iterable[str], file: str | None) -> str:
    """Return the effective configuration of a command as TOML, each value with its source."""
    _, bound, _ = app.parse_args(list(tokens), exit_on_error=False, print_error=False)
    given, in_file = list(tokens), read_toml(file) if file else {}
    for part in command.split():
        in_file = in_file.get(part, {})
    lines = [f"[{command.replace(' ', '.')}]"]
    for value in bound.arguments.values():
        if isinstance(value, BaseModel):
            lines += _lines(value, command, given, in_file, file)
    reached = sorted(set(_addresses(bound.arguments.values())))
    return "\n".join([*lines, f"# connects to: {', '.join(reached) or 'nothing but this machine'}"])


def _addresses(arguments: Iterable[Any]) -> Iterator[str]:
    """Yield the addresses to which a command with these arguments connects; a plug-in or a recipe may add others."""
    given = [dict(one) if isinstance(one, BaseModel) else {"": one} for one in arguments]
    facts = {name: value for one in given for name, value in one.items()}
    urls = json.dumps([*given, os.environ.get(REGISTRY)], default=BaseModel.model_dump)
    yield from objects.addresses(set(re.findall(r'"(s3|gs|az)a?://', urls)))
    if address := facts.get("address") or ("address" in facts and os.environ.get("RAY_ADDRESS")):
        yield str(address)
    if "detector" in facts:
        from fer_pipeline.faces.detectors import fetched_from

        if url := fetched_from(str(facts["detector"]), facts.get("detector_weights")):
            yield f"https://{urlsplit(url).hostname}"
    if "recipe" in facts:
        yield "https://download.pytorch.org (if the recipe names weights of torchvision)"


def variable_of(error: ValidationError, command: str | None, given: Iterable[str]) -> str:
    """Return `$VARIABLE, ` if the invalid value comes from an environment variable; else an empty string."""
    place = error.errors(include_url=False)[0]["loc"]
    name = str(place[0]) if place else ""
    variable = f"{_prefix(command or '')}{name.upper()}"
    return f"${variable}, " if variable in os.environ and not _is_flagged(name, given) else ""


def option_of(positional: Iterable[str], key: str) -> str:
    """Return an option as it is written on the command line."""
    return key.upper() if key in positional else f"--{key.replace('_', '-')}"


def _flags_of(app: App, command: str) -> list[str]:
    """Return all options of a command, as they are written on the command line."""
    place = app
    for part in command.split():
        place = place[part]
    return _named(place)


def _named(app: App) -> list[str]:
    return [name for argument in app.assemble_argument_collection() for name in argument.names if name.startswith("--")]


def unknown_variables(app: App, command: str) -> Iterator[str]:
    """Yield a sentence for each environment variable that is named after a command, but is none of its options."""
    prefix = _prefix(command)
    known = [prefix + re.sub(r"\W", "_", flag.removeprefix("--")).upper() for flag in _flags_of(app, command)]
    for name in sorted(os.environ):
        if name.startswith(prefix) and name not in known:
            close = difflib.get_close_matches(name, known, 1)
            yield f"${name} is no option of {command}, so it changes nothing{f': did you mean ${close[0]}?' if close else '.'}"


def misspelt(app: App, command: str, given: Iterable[str]) -> str | None:
    """Return the sentence for the first option of a command line that the command does not have; None if it has all of them."""
    known = [*_flags_of(app, command), *_named(app.meta), "--help"]
    flags = [token.partition("=")[0] for token in given if token.startswith("--") and len(token) > 2]
    unknown = next((flag for flag in flags if flag not in known), None)
    close = difflib.get_close_matches(unknown or "", known, 1)
    return unknown and f"Unknown option: {unknown}.{f' Did you mean {close[0]}?' if close else ''}"


def _prefix(command: str) -> str:
    return f"{PREFIX}{command.upper().replace(' ', '_')}_"


def _is_flagged(name: str, given: Iterable[str]) -> bool:
    """Tell whether the tokens of a command line set an option."""
    flag = name.replace("_", "-")
    return any(token.split("=")[0] in (f"--{flag}", f"--no-{flag}") or token.startswith(f"--{flag}.") for token in given)


def _lines(config: BaseModel, command: str, given: list[str], in_file: Mapping[str, Any], file: str | None) -> Iterable[str]:
    variables = _prefix(command)
    for name, value in config.model_dump(mode="json").items():
        flag = name.replace("_", "-")
        default = type(config).model_fields[name].default
        if _is_flagged(name, given):
            origin = "flag"
        elif variables + name.upper() in os.environ:
            origin = f"${variables}{name.upper()}"
        elif {name, flag} & set(in_file):
            origin = str(file)
        else:
            origin = "default" if getattr(config, name) == default else "argument"
        if value is None:
            yield f"# {flag} is not set"
        else:
            yield f"{_toml(flag, value)}  # {origin}"


def _toml(key: str, value: Any) -> str:
    """Return a setting as one line of TOML, a table in braces."""
    if not isinstance(value, Mapping):
        return tomli_w.dumps({key: value}).strip()
    return f"{key} = {{ {', '.join(_toml(name, one) for name, one in value.items() if one is not None)} }}"
