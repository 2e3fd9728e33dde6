"""When a flow run was due, on the clock of its schedule: what `{date}` and `{time}` in its paths stand for."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound


def scheduled(run: FlowRun) -> datetime:
    """Return when a run was due, on its schedule's clock, or in UTC without one: the same when it is late or tried again.

    Two nights of a schedule are of two dates on its own clock, though where that is set forward they are of one in UTC.
    """
    return (run.expected_start_time or datetime.now(UTC)).astimezone(ZoneInfo(_timezone(run)))


def _timezone(run: FlowRun) -> str:
    """Return the time zone of the schedule that made a run, or else of its deployment's first."""
    if run.deployment_id is None:
        return "UTC"
    with get_client(sync_client=True) as client:
        try:
            schedules = client.read_deployment(run.deployment_id).schedules
        except ObjectNotFound:
            return "UTC"
    own = [one for one in schedules if run.created_by and one.id == run.created_by.id] or schedules
    return next((zone for one in own if (zone := getattr(one.schedule, "timezone", None))), "UTC")
