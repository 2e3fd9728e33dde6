"""Serve all schedules from one process: `python -m flows.deploy schedules.toml`.

    [nightly.photos]                      # the flow and the name of the deployment
    cron = "0 2 * * *"
    timezone = "Europe/Berlin"            # UTC by default
    config = { source = "s3://bucket/photos", table = "s3://bucket/labels" }
    cluster = { address = "http://head:8265" }
    notify = "on-call"

    [allowed]                             # what manual runs may use in addition to what the schedules name
    clusters = []
    roots = ["s3://bucket/scratch"]

Only one run of a deployment runs at a time: if a night is still running when the next is due, the next is cancelled. A run is
marked as crashed if it stays `Pending` for five minutes or if its process is silent for two minutes.
"""

import asyncio
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast, get_type_hints

os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")  # before Prefect is imported; shows that a run is alive

import tomli_w
from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.flows import Flow
from prefect.runner import Runner
from prefect.schedules import Cron
from pydantic import Field, ValidationError

from fer_pipeline.base.config import Config, explain
from fer_pipeline.base.errors import JobError, UserError
from fer_pipeline.engine.connect import ClusterConfig
from fer_pipeline.engine.submission import is_head
from flows.evaluate import evaluate_model
from flows.ingest import ingest_dataset
from flows.label import label_archive
from flows.nightly import nightly
from flows.orphans import watch
from flows.pins import Pins, pin, pins_of
from flows.retrain import retrain
from flows.shell import read_facts
from flows.train import train_model

FLOWS: dict[str, Flow[..., Any]] = {
    "nightly": nightly,
    "retrain": retrain,
    "label": label_archive,
    "ingest": ingest_dataset,
    "train": train_model,
    "evaluate": evaluate_model,
}
ONE_AT_A_TIME = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW, grace_period_seconds=600)
SILENT_S = 120
POLLED_S = 30.0
"""A deployment that was polled within this time is served now; Prefect's runners poll every ten seconds."""
SHOW_CONFIG = "--show-config"
ALLOWED = "allowed"
"""The table of a schedule file that lists pins instead of schedules."""


class ScheduleConfig(Config):
    """One schedule of a flow."""

    cron: str
    """When it runs, in crontab syntax."""
    timezone: str = "UTC"
    """Time zone of `cron`."""
    config: dict[str, Any]
    """The flow's configuration."""
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    """Where the jobs run."""
    notify: str | None = None
    """Webhook block that is called when a run ends badly."""


def deployments_of(facts: dict[str, Any]) -> list[RunnerDeployment]:
    """Return a deployment for each schedule. Raise UserError if one is invalid."""
    found = []
    for name, schedules in facts.items():
        if name == ALLOWED:
            continue
        if name not in FLOWS or not isinstance(schedules, dict):
            raise UserError(f"'{name}' is not a flow: name one of {', '.join(FLOWS)}, then the schedule, as in [nightly.photos].")
        for title, schedule in schedules.items():
            found.append(_deployment(name, title, schedule))
    if not found:
        raise UserError("There is no schedule: write one, such as [nightly.photos] with cron and config.")
    return found


def _deployment(name: str, title: str, facts: Any) -> RunnerDeployment:
    flow = FLOWS[name]
    try:
        schedule = ScheduleConfig.model_validate(facts)
        get_type_hints(flow.fn)["config"].model_validate(schedule.config)  # the flow's own validation logs a page of errors
        deployed = flow.to_deployment(
            name=title,
            schedule=Cron(schedule.cron, timezone=schedule.timezone),
            parameters={
                "config": schedule.config,
                "cluster": schedule.cluster.model_dump(mode="json"),
                "notify": schedule.notify,
            },
            concurrency_limit=ONE_AT_A_TIME,
            tags=["fer-pipeline"],
        )
    except ValidationError as error:
        raise UserError(f"[{name}.{title}] cannot be used: {explain(error)}.") from error
    except (ValueError, PrefectException) as error:
        raise UserError(f"[{name}.{title}] cannot be used: {' '.join(str(error).split())[:300]}") from error
    return cast("RunnerDeployment", deployed)


def _flow_of(deployment: RunnerDeployment) -> Flow[..., Any]:
    return next(flow for flow in FLOWS.values() if flow.name == deployment.flow_name)


def heads_of(deployments: Iterable[RunnerDeployment]) -> list[str]:
    """Return the URLs of the Ray heads to which these deployments submit jobs."""
    addresses = [deployment.parameters["cluster"]["address"] for deployment in deployments]
    return [address for address in addresses if is_head(address)]


def pins(facts: dict[str, Any], deployments: Iterable[RunnerDeployment]) -> Pins:
    """Return what runs may use: what the schedules name and what the table `allowed` adds."""
    try:
        allowed = Pins.model_validate(facts.get(ALLOWED, {}))
    except ValidationError as error:
        raise UserError(f"[{ALLOWED}] cannot be used: {explain(error)}.") from error
    named = [_flow_of(one).validate_parameters(dict(one.parameters)) for one in deployments]
    return pins_of(allowed, [(one["config"], one["cluster"], one["notify"]) for one in named])


class _Runner(Runner):
    """Serves deployments until it is stopped."""

    def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
        """End, as Prefect's own handler does, which also makes a coroutine that it never awaits."""
        sys.exit(0)


async def _polled_s_ago(deployment: RunnerDeployment) -> float | None:
    """Return how many seconds ago a process polled a deployment; None if none has."""
    async with get_client() as client:
        try:
            found = await client.read_deployment_by_name(f"{deployment.flow_name}/{deployment.name}")
        except ObjectNotFound:
            return None
    return (datetime.now(UTC) - found.last_polled).total_seconds() if found.last_polled else None


def warn_of_others(deployments: Sequence[RunnerDeployment]) -> None:
    """Say which of these deployments another process seems to serve: both would run their flows."""
    for one in deployments:
        polled_s_ago = asyncio.run(_polled_s_ago(one))
        if polled_s_ago is not None and polled_s_ago < POLLED_S:
            said = f"{one.flow_name}/{one.name} was polled {polled_s_ago:.0f} s ago: if another process serves it, too, stop one."
            print(f"flows.deploy: {said}", file=sys.stderr, flush=True)  # noqa: T201 (operators look for it)


def run_schedules(deployments: Sequence[RunnerDeployment]) -> None:
    """Serve deployments until this process is stopped. It runs its own flows, not the code that the server names."""
    runner = _Runner(pause_on_shutdown=False)
    for one in deployments:
        runner.add_flow(
            _flow_of(one),
            name=one.name,
            schedules=cast("Any", one.schedules),
            parameters=one.parameters,
            concurrency_limit=ONE_AT_A_TIME,
            tags=one.tags,
        )
    names = ", ".join(f"{one.flow_name}/{one.name}" for one in deployments)
    print(f"flows.deploy: serving, and polling for scheduled runs: {names}", flush=True)  # noqa: T201 (operators wait for this line)
    asyncio.run(runner.start())


def crash_silent_runs() -> None:
    """Create the automation that marks runs with a silent process as crashed, so that they do not block later nights."""
    name, heartbeat = "fer-pipeline: crash silent runs", "prefect.flow-run.heartbeat"
    try:
        asyncio.run(Automation.aread(name=name))
        return
    except ValueError:
        pass
    silent = Automation(
        name=name,
        trigger=EventTrigger(
            after={heartbeat},
            expect={heartbeat, *(f"prefect.flow-run.{end}" for end in ("Completed", "Failed", "Cancelled", "Crashed"))},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENT_S),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="The process of this run has been silent for two minutes.")],
    )
    asyncio.run(silent.acreate())


def main(arguments: list[str]) -> None:
    """Serve the schedules of a TOML file until this process is stopped. With `--show-config`, only print what runs may use."""
    files = [one for one in arguments if one != SHOW_CONFIG]
    if len(files) != 1:
        raise UserError(f"Give one argument: the TOML file of the schedules. Add {SHOW_CONFIG} to print what runs may use.")
    facts = read_facts(files[0])
    deployments = deployments_of(facts)
    may_use = pins(facts, deployments)
    if SHOW_CONFIG in arguments:
        api = os.environ.get("PREFECT_API_URL", "a temporary Prefect server on loopback")
        print(f"{tomli_w.dumps(may_use.model_dump(mode='json'))}# Prefect's API: {api}")  # noqa: T201 (the requested output)
        return
    pin(may_use)
    try:
        crash_silent_runs()
        watch(heads_of(deployments), [f"{deployment.flow_name}/{deployment.name}" for deployment in deployments])
        warn_of_others(deployments)
        run_schedules(deployments)
    except (ConnectionError, OSError, RuntimeError) as error:
        where = os.environ.get("PREFECT_API_URL", "an unknown address")
        raise UserError(
            f"The Prefect server at {where} cannot be reached: start it ('prefect server start') or set PREFECT_API_URL."
        ) from error


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except JobError as error:
        print(f"flows.deploy: {error}", file=sys.stderr)  # noqa: T201 (the final message of the command)
        sys.exit(error.exit_code)
