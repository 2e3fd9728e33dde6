"""Run a flow from the shell: read its configuration from JSON or a TOML file and exit with the code of the command line."""

import json
import sys
import tomllib
from pathlib import Path
from typing import Any, NoReturn

import httpx
from prefect.flows import Flow
from prefect.settings import PREFECT_API_URL
from pydantic import ValidationError

from fer_pipeline.base.config import Config, explain
from fer_pipeline.base.errors import JobError, UserError
from fer_pipeline.base.stopping import exit_without_shutdown, handle_stop_signals, run_as_process, stop_message, stopped_code
from fer_pipeline.engine.connect import ClusterConfig


def main(flow: Flow[Any, Any], kind: type[Config]) -> NoReturn:
    """Run a flow as this process. Its only argument is the configuration `kind`: a JSON object, or the path of a TOML file.

    The table `cluster` says where it runs, and `notify` names a webhook block. Exit with the codes of the command line.
    """
    run_as_process(lambda: _run(flow, kind))


def _run(flow: Flow[Any, Any], kind: type[Config]) -> None:
    handle_stop_signals()
    try:
        parameters = parameters_of(sys.argv[1:], kind)
        flow(**parameters)
    except (httpx.ConnectError, RuntimeError) as error:
        if not isinstance(error, httpx.ConnectError) and "Failed to reach API" not in str(error):
            raise
        where = PREFECT_API_URL.value() or "PREFECT_API_URL"
        print(f"{flow.name}: the Prefect server at {where} cannot be reached: start it or set PREFECT_API_URL.", file=sys.stderr)  # noqa: T201
        sys.exit(UserError.exit_code)
    except KeyboardInterrupt as stopped:
        print(f"{flow.name}: {stop_message(stopped)}", file=sys.stderr, flush=True)  # noqa: T201
        exit_without_shutdown(stopped_code(), after_exit_functions=True)
    except JobError as error:
        print(f"{flow.name}: {error}", file=sys.stderr)  # noqa: T201 (the final message of the command)
        sys.exit(error.exit_code)


def parameters_of(arguments: list[str], kind: type[Config]) -> dict[str, Any]:
    """Return the parameters of a flow. Raise UserError if the argument is missing or invalid."""
    if len(arguments) != 1:
        raise UserError("Give one argument: the configuration as a JSON object, or the path of a TOML file.")
    facts = read_facts(arguments[0])
    others = {name: facts.pop(name) for name in ("cluster", "notify") if name in facts}
    try:
        parameters: dict[str, Any] = {"config": kind.model_validate(facts)}
        if "cluster" in others:
            parameters["cluster"] = ClusterConfig.model_validate(others["cluster"])
    except ValidationError as error:
        raise UserError(f"The configuration cannot be used: {explain(error)}.") from error
    return parameters | {name: value for name, value in others.items() if name == "notify"}


def read_facts(argument: str) -> dict[str, Any]:
    """Return the content of a JSON object or of a TOML file."""
    try:
        if argument.endswith(".toml"):
            return tomllib.loads(Path(argument).read_text())
        found = json.loads(argument)
    except (OSError, ValueError) as error:
        what = "the file cannot be read" if isinstance(error, OSError) else "it is not valid"
        raise UserError(f"'{argument[:80]}' is neither a TOML file nor a JSON object: {what} ({error}).") from error
    if not isinstance(found, dict):
        raise UserError(f"'{argument[:80]}' is not a JSON object.")
    return found
