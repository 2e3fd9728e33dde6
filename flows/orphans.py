"""Stop Ray jobs that outlive their flow run, and crash runs that are stranded because their process died before they began.

Prefect calls the hooks of a flow in the process that serves it. If the machine of that process died, the server marks the run as
crashed and calls no hook.
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

from fer_pipeline.engine import submission
from flows.notify import tell
from flows.steps import JOB_PREFIX, stop_ray_jobs

log = logging.getLogger(__name__)

RUN_ID_IN_JOB = re.compile(rf"{JOB_PREFIX}([0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}})-")
LOOK_S = 60.0
STRANDED_S = 300.0
"""Time after which the process of a pending run counts as dead: less than `grace_period_seconds`, after which the server may have
given the slot of the run to another."""
ORPHAN_AFTER_S = 120.0
"""Time after the end of a run in which its hooks should have stopped its jobs."""


def watch(heads: Iterable[str], deployments: Iterable[str]) -> None:
    """Every minute, look for orphaned jobs on these heads and stranded runs of deployments (FLOW/NAME), in a daemon thread."""
    arguments = sorted(set(heads)), sorted(set(deployments))
    threading.Thread(target=_watch, args=arguments, daemon=True, name="orphans").start()


def _watch(heads: list[str], deployments: list[str]) -> None:
    while True:
        for what, look in [*((head, stop_orphans) for head in heads), *((name, crash_stranded) for name in deployments)]:
            try:
                look(what)
            except Exception as error:  # noqa: BLE001 (the watch continues when a server or head is away)
                log.warning("Could not look for orphaned jobs or stranded runs of %s: %s", what, type(error).__name__)
        time.sleep(LOOK_S)


def crash_stranded(name: str) -> None:
    """Crash runs of a deployment (FLOW/NAME) whose process died before they ran, and call the webhook. They block the next run.

    Do nothing while another run is active: it may hold the slot by now, and the server would free it.
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
            crashed: State[Any] = Crashed(message="The process of this run died before it began. The next run does its work.")
            answer = client.set_flow_run_state(run.id, crashed)
            if answer.status is SetStateStatus.ACCEPT and answer.state:
                log.warning("Marked the stranded run %s of %s as crashed", run.name, name)
                tell(cast("Flow[..., Any]", client.read_flow(run.flow_id)), run, answer.state)


def _is_stranded(run: FlowRun) -> bool:
    state = run.state
    pending = state is not None and state.type is StateType.PENDING
    return pending and state is not None and (datetime.now(UTC) - state.timestamp).total_seconds() > STRANDED_S


def stop_orphans(head: str) -> None:
    """Stop the jobs of a head whose flow run is over, and call the webhook of the run."""
    for run, flow in _flow_runs_of(submission.unfinished(head, JOB_PREFIX)):
        state = run.state
        if state and state.is_final() and (datetime.now(UTC) - state.timestamp).total_seconds() > ORPHAN_AFTER_S:
            stop_ray_jobs(flow, run, state)
            tell(flow, run, state)


def _flow_runs_of(job_ids: Iterable[str]) -> Iterator[tuple[FlowRun, Flow[..., Any]]]:
    """Yield the flow run and the flow of each job. Skip jobs of other servers, whose runs this server does not know."""
    runs = {UUID(found[1]) for job_id in job_ids if (found := RUN_ID_IN_JOB.match(job_id))}
    with get_client(sync_client=True) as client:
        for run_id in runs:
            try:
                run = client.read_flow_run(run_id)
                flow = client.read_flow(run.flow_id)
            except ObjectNotFound:
                continue
            yield run, cast("Flow[..., Any]", flow)
