"""Jobs on a cluster whose flow run is over: they are stopped, and who wants to hear of the run does.

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
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow

from fer_pipeline.jobs import submission
from flows.notify import tell
from flows.steps import RAY_JOBS, stop_ray_jobs

log = logging.getLogger(__name__)

OF_A_RUN = re.compile(rf"{RAY_JOBS}([0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}})-")
LOOK_S = 60.0
PATIENCE_S = 120.0
"""How long a run has been over before its hooks are taken not to have been called."""


def watch(heads: Iterable[str]) -> None:
    """Look for orphans on these heads every minute, in a thread that ends with the process."""
    threading.Thread(target=_watch, args=(sorted(set(heads)),), daemon=True, name="orphans").start()


def _watch(heads: list[str]) -> None:
    while heads:
        for head in heads:
            try:
                stop_orphans(head)
            except Exception as error:  # noqa: BLE001 (a server or head that is away for a while ends no watch)
                log.warning("Could not look for jobs left on %s: %s", head, type(error).__name__)
        time.sleep(LOOK_S)


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
