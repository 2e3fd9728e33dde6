"""Jobs on a cluster whose flow run is over, which are stopped, and runs whose process died before they began, which are crashed.

Prefect calls a flow's hooks in the process that serves it. Where the machine of that process died, the server marks the run as
crashed and calls none.
"""

import logging
import re
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow
from prefect.states import Crashed

from fer_pipeline.jobs import submission
from flows.notify import tell
from flows.steps import RAY_JOBS, stop_ray_jobs

log = logging.getLogger(__name__)

OF_A_RUN = re.compile(rf"{RAY_JOBS}([0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}})-")
LOOK_S = 60.0
STRANDED_S = 300.0
"""How long a run may be pending before its process is taken for dead: less than `grace_period_seconds`, after which the server
may have given its place to another."""
PATIENCE_S = 120.0
"""How long a run has been over before its hooks are taken not to have been called."""


def watch(heads: Iterable[str], deployments: Iterable[str]) -> None:
    """Look every minute for orphans on these heads and stranded runs of deployments (FLOW/NAME), while this process lives."""
    arguments = sorted(set(heads)), sorted(set(deployments))
    threading.Thread(target=_watch, args=arguments, daemon=True, name="orphans").start()


def _watch(heads: list[str], deployments: list[str]) -> None:
    while True:
        for what, look in [*((head, stop_orphans) for head in heads), *((name, crash_stranded) for name in deployments)]:
            try:
                look(what)
            except Exception as error:  # noqa: BLE001 (a server or head that is away for a while ends no watch)
                log.warning("Could not look for what is left of %s: %s", what, type(error).__name__)
        time.sleep(LOOK_S)


def crash_stranded(name: str) -> None:
    """Crash runs of a deployment (FLOW/NAME) whose process died before they ran, and tell of it: they hold the next one's place.

    Not while another run is active: it may have the place by now, which the server would give away.
    """
    active = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(name)
        except ObjectNotFound:
            return
        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=active)),
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
        )
        for run in runs if all(map(_is_stranded, runs)) else []:
            crashed: State[Any] = Crashed(message="The process of this run died before it began: the next one does its work.")
            answer = client.set_flow_run_state(run.id, crashed)
            if answer.status is SetStateStatus.ACCEPT and answer.state:
                log.warning("The run %s of %s is stranded: crashed", run.name, name)
                tell(cast("Flow[..., Any]", client.read_flow(run.flow_id)), run, answer.state)


def _is_stranded(run: FlowRun) -> bool:
    state = run.state
    pending = state is not None and state.type is StateType.PENDING
    return pending and state is not None and (datetime.now(UTC) - state.timestamp).total_seconds() > STRANDED_S


def stop_orphans(head: str) -> None:
    """Stop the jobs of a head whose flow run is over, and tell the webhook of the run."""
    for run, flow in _over(submission.unfinished(head, RAY_JOBS)):
        state = run.state
        if state and state.is_final() and (datetime.now(UTC) - state.timestamp).total_seconds() > PATIENCE_S:
            stop_ray_jobs(flow, run, state)
            tell(flow, run, state)


def _over(job_ids: Iterable[str]) -> Iterator[tuple[FlowRun, Flow[..., Any]]]:
    """Yield the flow run of each job, with its flow, of which the name is needed; the job of another server has none."""
    runs = {UUID(found[1]) for job_id in job_ids if (found := OF_A_RUN.match(job_id))}
    with get_client(sync_client=True) as client:
        for run_id in runs:
            try:
                run = client.read_flow_run(run_id)
                flow = client.read_flow(run.flow_id)
            except ObjectNotFound:
                continue
            yield run, cast("Flow[..., Any]", flow)
