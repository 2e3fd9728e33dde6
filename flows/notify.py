"""Call a webhook, stored as a Prefect block, when a run ends badly and when the next one succeeds.

The JSON message contains `event` (`held`, `failed`, `crashed`, `cancelled`, `recovered`), `flow`, `flow_run`, `flow_run_id`,
`state`, `message`, `url` (of the run's page), and `source`, `table` and `out` if the flow has them.
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

from fer_pipeline.base.config import dated_text
from flows.dates import scheduled
from flows.pins import is_pinned

log = logging.getLogger(__name__)

BAD_ENDS = {StateType.FAILED: "failed", StateType.CRASHED: "crashed", StateType.CANCELLED: "cancelled"}
WEBHOOK_TIMEOUT_S = 10.0


def tell(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Call the webhook that the run's `notify` names if the run ended badly, or succeeded after a run that ended badly."""
    block = (flow_run.parameters or {}).get("notify")
    event = "held" if state.name == "Held" else BAD_ENDS.get(state.type, "recovered")
    if not block or not is_pinned("notify", str(block)) or (event == "recovered" and not _ended_badly_before(flow_run)):
        return
    try:
        webhook = cast("Webhook", Webhook.load(str(block)))
        _send(webhook, message_of(event, flow.name, flow_run, state))
    except (ValueError, httpx.HTTPError) as error:  # the block is missing or the webhook is down: the run's state does not change
        log.error("The webhook '%s' did not receive the event '%s' of this run: %s", block, event, type(error).__name__)


def message_of(event: str, flow: str, flow_run: FlowRun, state: State[Any]) -> dict[str, Any]:
    """Return the JSON message for the webhook."""
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
        # It checks again at connect time, because the name may now resolve elsewhere.
        transport = SSRFProtectedHTTPTransport(verify=webhook.verify)
    with httpx.Client(transport=transport, verify=webhook.verify, timeout=WEBHOOK_TIMEOUT_S) as client:
        client.request(webhook.method, url, json=message, headers=headers).raise_for_status()


def _ended_badly_before(flow_run: FlowRun) -> bool:
    """Return whether the last finished run of the same deployment (or of the flow, if the run has no deployment) ended badly."""
    is_final = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.COMPLETED, *BAD_ENDS]))
    before = FlowRunFilterExpectedStartTime(before_=flow_run.expected_start_time) if flow_run.expected_start_time else None
    of_deployment = FlowRunFilterDeploymentId(any_=[flow_run.deployment_id]) if flow_run.deployment_id else None
    wanted = FlowRunFilter(state=is_final, expected_start_time=before, deployment_id=of_deployment)
    of_flow = FlowFilter(id=FlowFilterId(any_=[flow_run.flow_id]))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=of_flow, flow_run_filter=wanted, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=200
        )
    ended = [
        run.state.type
        for run in runs
        if run.id != flow_run.id and run.state and (run.state.type is not StateType.CANCELLED or run.run_count)
    ]  # a run that was cancelled before it began does not count; it was cancelled because another run was active
    return bool(ended) and ended[0] in BAD_ENDS
