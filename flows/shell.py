"""A flow from the shell: its configuration as JSON or in a TOML file, its end as an exit code."""

import atexit
import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
from prefect.flows import Flow
from prefect.settings import PREFECT_API_URL
from pydantic import ValidationError

from fer_pipeline.core.config import Config, explain
from fer_pipeline.core.errors import JobError, UserError
from fer_pipeline.core.stopping import end_in_order, said_of, stopped_code
from fer_pipeline.jobs.cluster import ClusterConfig


def main(flow: Flow[Any, Any], kind: type[Config]) -> None:
    """Run a flow on the one argument of this process: a JSON object, or the path of a TOML file, of the configuration `kind`.

    A table `cluster` says where it runs, `notify` who hears of it. Exit as the command line does.
    """
    end_in_order()
    try:
        parameters = parameters_of(sys.argv[1:], kind)
        flow(**parameters)
    except (httpx.ConnectError, RuntimeError) as error:
        if not isinstance(error, httpx.ConnectError) and "Failed to reach API" not in str(error):
            raise
        where = PREFECT_API_URL.value() or "PREFECT_API_URL"
        print(f"{flow.name}: the Prefect server at {where} cannot be reached: start it, or name another.", file=sys.stderr)  # noqa: T201
        sys.exit(UserError.exit_code)
    except KeyboardInterrupt as stopped:
        print(f"{flow.name}: {said_of(stopped)}", file=sys.stderr, flush=True)  # noqa: T201
        atexit._run_exitfuncs()  # Prefect's temporary server ends with it
        os._exit(stopped_code())  # threads of Ray may live on, and crash while Python ends
    except JobError as error:
        print(f"{flow.name}: {error}", file=sys.stderr)  # noqa: T201 (a command's last sentence)
        sys.exit(error.exit_code)


def parameters_of(arguments: list[str], kind: type[Config]) -> dict[str, Any]:
    """Return a flow's parameters; raise UserError in one sentence for what they cannot be."""
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
    """Return what a JSON object, or a TOML file, says."""
    try:
        if argument.endswith(".toml"):
            return tomllib.loads(Path(argument).read_text())
        found = json.loads(argument)
    except (OSError, ValueError) as error:
        what = "the file cannot be read" if isinstance(error, OSError) else "it is not valid"
        raise UserError(f"'{argument[:80]}' is neither a TOML file nor a JSON object: {what} ({error}).") from error
    if not isinstance(found, dict):
        raise UserError(f"'{argument[:80]}' is no JSON object.")
    return found
