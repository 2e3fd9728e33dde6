"""The scheduled time of a flow run in its schedule's time zone, which replaces `{date}` and `{time}` in its paths."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound


def scheduled(run: FlowRun) -> datetime:
    """Return when a run was due, in the time zone of its schedule or else in UTC. A delay or a retry does not change it.

    Two nights of a schedule have two dates in its time zone; in UTC they can share one when clocks are set forward.
    """
    return (run.expected_start_time or datetime.now(UTC)).astimezone(ZoneInfo(_timezone(run)))


def _timezone(run: FlowRun) -> str:
    """Return the time zone of the schedule that made a run, or else of the first schedule of its deployment."""
    if run.deployment_id is None:
        return "UTC"
    with get_client(sync_client=True) as client:
        try:
            schedules = client.read_deployment(run.deployment_id).schedules
        except ObjectNotFound:
            return "UTC"
    own = [one for one in schedules if run.created_by and one.id == run.created_by.id] or schedules
    return next((zone for one in own if (zone := getattr(one.schedule, "timezone", None))), "UTC")
