"""Who hears of runs that end badly, and of the first that ends well again: a webhook, kept in a block of Prefect.

What is sent, as JSON: `event` (`held`, `failed`, `crashed`, `cancelled`, `recovered`), `flow`, `flow_run`, `flow_run_id`,
`state`, `message`, `url` (of the run's page), and `source`, `table`, `out` where the flow has them.
"""

import logging
from typing import Any, cast

import httpx
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterId,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.flows import Flow
from prefect.settings import PREFECT_UI_URL
from prefect.utilities.urls import SSRFProtectedHTTPTransport, validate_restricted_url

from fer_pipeline.core.config import dated_text
from flows.dates import scheduled
from flows.pins import is_pinned

log = logging.getLogger(__name__)

BADLY = {StateType.FAILED: "failed", StateType.CRASHED: "crashed", StateType.CANCELLED: "cancelled"}
LOOKED_BACK = 200
"""Runs among which the one before is looked for, as many as the server gives at once: those that were refused a place count."""
PATIENCE_S = 10.0


def tell(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Tell the webhook that the run's `notify` names how it ended: badly, or well after one that ended badly."""
    block = (flow_run.parameters or {}).get("notify")
    event = "held" if state.name == "Held" else BADLY.get(state.type, "recovered")
    if not block or not is_pinned("notify", str(block)) or (event == "recovered" and not _ended_badly_before(flow_run)):
        return
    try:
        webhook = cast("Webhook", Webhook.load(str(block)))
        _send(webhook, message_of(event, flow.name, flow_run, state))
    except (ValueError, httpx.HTTPError) as error:  # no such block, or nobody there: the run is what it is
        log.error("The webhook '%s' was not told that this run %s: %s", block, event, type(error).__name__)


def message_of(event: str, flow: str, flow_run: FlowRun, state: State[Any]) -> dict[str, Any]:
    """Return what is sent."""
    config = (flow_run.parameters or {}).get("config") or {}
    facts = config if isinstance(config, dict) else config.model_dump(mode="json")
    due = scheduled(flow_run)
    date, time = facts.get("date") or f"{due:%Y-%m-%d}", f"{due:%H%M}"
    places = {name: facts[name] for name in ("source", "table", "out") if facts.get(name)}
    return {
        "event": event,
        "flow": flow,
        "flow_run": flow_run.name,
        "flow_run_id": str(flow_run.id),
        "state": state.name,
        "message": state.message,
        "url": f"{PREFECT_UI_URL.value()}/runs/flow-run/{flow_run.id}",
        **{name: dated_text(place, date, time) for name, place in places.items()},
    }


def _send(webhook: Webhook, message: dict[str, Any]) -> None:
    headers = {name: str(value) for name, value in webhook.headers.get_secret_value().items()}
    url, transport = webhook.url.get_secret_value(), None
    if not webhook.allow_private_urls:
        validate_restricted_url(url)
        transport = SSRFProtectedHTTPTransport(verify=webhook.verify)  # a name may stand for another address by now
    with httpx.Client(transport=transport, verify=webhook.verify, timeout=PATIENCE_S) as client:
        client.request(webhook.method, url, json=message, headers=headers).raise_for_status()


def _ended_badly_before(flow_run: FlowRun) -> bool:
    """Tell whether the last finished run of the same deployment, or of the same flow without one, ended badly."""
    over = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.COMPLETED, *BADLY]))
    before = FlowRunFilterExpectedStartTime(before_=flow_run.expected_start_time) if flow_run.expected_start_time else None
    of_deployment = FlowRunFilterDeploymentId(any_=[flow_run.deployment_id]) if flow_run.deployment_id else None
    wanted = FlowRunFilter(state=over, expected_start_time=before, deployment_id=of_deployment)
    of_flow = FlowFilter(id=FlowFilterId(any_=[flow_run.flow_id]))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=of_flow, flow_run_filter=wanted, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=LOOKED_BACK
        )
    ended = [
        run.state.type
        for run in runs
        if run.id != flow_run.id and run.state and (run.state.type is not StateType.CANCELLED or run.run_count)
    ]  # a run that was cancelled before it began was refused a place: that tells nothing
    return bool(ended) and ended[0] in BADLY
