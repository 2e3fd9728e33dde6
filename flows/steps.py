"""What the flows share: a job as a task, its log and progress in Prefect's, and the state that a flow ends in."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException
from prefect.flows import Flow
from prefect.runtime import flow_run as this_flow_run
from prefect.states import Failed
from pydantic import BaseModel

from fer_pipeline.core.config import Config, Some, with_date
from fer_pipeline.core.errors import FailureRateExceeded, HeldError, JobError, MisfortuneError, StoppedError, UserError
from fer_pipeline.core.storage import STORAGE_ERRORS, reason
from fer_pipeline.core.text import in_markdown, printable
from fer_pipeline.jobs import submission
from fer_pipeline.jobs.cluster import ClusterConfig
from flows.dates import scheduled
from flows.notify import tell
from flows.pins import is_pinned, require_pinned
from flows.retries import may_pass

log = logging.getLogger(__name__)

Result = TypeVar("Result", bound=BaseModel)
Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")

STATES: dict[type[JobError], str] = {
    HeldError: "Held",
    FailureRateExceeded: "Too many failures",
    UserError: "To be mended",
    MisfortuneError: "Cluster failed",
    StoppedError: "Stopped",
}
"""What Prefect shows in the place of `Failed`; the state's message is the job's own sentence."""
RAY_JOBS = "fer-"
"""What the names of our Ray jobs begin with; the flow run's id and the step's command follow."""
PROGRESS = re.compile(r"(?P<what>[a-z ]+): (?P<done>\d+) of (?P<all>\d+)(?:, |$)")


@task(retries=2, retry_delay_seconds=30, retry_condition_fn=may_pass)
def run_job(
    command: str, job: Callable[[Any, ClusterConfig], Result], kind: type[Result], config: Config, cluster: ClusterConfig
) -> Result:
    """Run a job where the cluster's address says: here, or as a Ray job of the head at an http:// URL. A retry continues."""
    with _job_log() as say:
        if not submission.is_head(cluster.address):
            return job(config, cluster)
        name = f"{ray_jobs_of(this_flow_run.id)}{command.replace(' ', '-')}"
        return kind.model_validate_json(submission.run(command, config, cluster, name, say))


def ray_jobs_of(flow_run_id: Any) -> str:
    """Return what the names of a flow run's Ray jobs begin with; the command of the step follows."""
    return f"{RAY_JOBS}{flow_run_id}-"


@contextmanager
def _job_log() -> Iterator[Callable[[str], None]]:
    """Have what the project logs here appear in the task's log, and yield what does the same for a line from elsewhere."""
    logger, progress = get_run_logger(), _Progress()

    def say(line: str) -> None:
        if line.strip() and not line.startswith("{"):  # the result, which the flow returns
            logger.info(printable(line))
            progress.show(line)

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with suppress(PrefectException):
                logger.log(record.levelno, printable(record.getMessage()))
                progress.show(record.getMessage())

    handler, ours = Handler(), logging.getLogger("fer_pipeline")
    level, propagate = ours.level, ours.propagate
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False  # Prefect writes each line itself
    try:
        yield say
    finally:
        ours.removeHandler(handler)
        ours.setLevel(level)
        ours.propagate = propagate


class _Progress:
    """An artifact that moves with the job's lines of progress."""

    def __init__(self) -> None:
        self.artifacts: dict[str, UUID] = {}

    def show(self, line: str) -> None:
        found = PROGRESS.match(line.strip())
        if not found:
            return
        what, done, whole = found["what"], int(found["done"]), int(found["all"])
        share = 100.0 * done / max(1, whole)
        if what in self.artifacts:
            update_progress_artifact(self.artifacts[what], progress=share, description=in_markdown(line))
        else:
            made = create_progress_artifact(progress=share, key=what.replace(" ", "-"), description=in_markdown(line))
            self.artifacts[what] = made  # type: ignore[assignment]


def _failed(error: JobError) -> Any:
    """Return the state in which a flow ends for an error, for Prefect takes it from the flow in the place of its result.

    Its name says what happened, its message why, in one sentence.
    """
    name = next(STATES[kind] for kind in type(error).__mro__ if kind in STATES)
    return Failed(name=name, message=str(error), data=error)


def tag(**facts: str | None) -> None:
    """Tag this flow run with facts that are known, such as `model:embedded`."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(str(this_flow_run.id)))
        new = {f"{name}:{value}" for name, value in facts.items() if value}
        client.update_flow_run(run.id, tags=sorted({*run.tags, *new}))


@contextmanager
def shown_if_readable() -> Iterator[None]:
    """Show what a job has left where this process can read it; its end counts in any case."""
    try:
        yield
    except (UserError, *STORAGE_ERRORS) as error:
        log.warning("What the job has left cannot be shown, for this process cannot read it: %s", reason(error))


def publish(key: str, markdown: str, description: str) -> None:
    """Show a page of figures with the flow run; names stand in `markdown` as `in_markdown` gives them."""
    create_markdown_artifact(key=key, markdown=markdown, description=in_markdown(description))


def as_scheduled(config: Some) -> Some:
    """Return a configuration with the date and time of this run's schedule, on its clock, in the place of `{date}` and `{time}`.

    So a run that begins late, or is tried again after midnight, is of its own night. A configuration's own `date` goes first.
    """
    context = FlowRunContext.get()
    due = scheduled(context.flow_run) if context and context.flow_run else datetime.now(UTC)
    return with_date(config, getattr(config, "date", None) or f"{due:%Y-%m-%d}", f"{due:%H%M}")


def stop_ray_jobs(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Stop what a flow run that was cancelled, or whose process died, has left running on a cluster."""
    cluster = (flow_run.parameters or {}).get("cluster") or {}
    address = cluster.get("address") if isinstance(cluster, dict) else getattr(cluster, "address", None)
    if submission.is_head(address) and is_pinned("clusters", address):
        stopped = submission.stop(str(address), ray_jobs_of(flow_run.id))
        log.warning("Stopped on %s: %s", address, ", ".join(stopped) or "nothing, it is over")


def job_flow(
    name: str,
) -> Callable[[Callable[Concatenate[Some, Parameters], Returned]], Flow[Concatenate[Some, Parameters], Returned]]:
    """Return the decorator of a flow over jobs, which ends in a state that says what a `JobError` says.

    It gets its configuration with the schedule's date and time in it. What it leaves on a cluster is stopped, and who wants to
    hear of its end does. Prefect calls hooks by the names of their parameters: exactly `flow`, `flow_run` and `state`.
    """

    def decorate(function: Callable[Concatenate[Some, Parameters], Returned]) -> Flow[Concatenate[Some, Parameters], Returned]:
        @wraps(function)
        def ending_in_words(config: Some, *arguments: Parameters.args, **options: Parameters.kwargs) -> Returned:
            try:
                dated = as_scheduled(config)
                require_pinned(dated, *arguments, **options)  # type: ignore[arg-type]
                return function(dated, *arguments, **options)
            except JobError as error:
                return _failed(error)  # type: ignore[no-any-return]

        return flow(
            name=name,
            on_cancellation=[stop_ray_jobs, tell],
            on_crashed=[stop_ray_jobs, tell],
            on_failure=[tell],
            on_completion=[tell],
        )(ending_in_words)

    return decorate
