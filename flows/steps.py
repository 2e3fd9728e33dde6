"""Parts that all flows share: running a job as a task, showing its log and progress in Prefect, and the final state."""

import json
import logging
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

from fer_pipeline.base import storage
from fer_pipeline.base.config import Config, Some, with_date
from fer_pipeline.base.errors import ClusterError, FailureRateExceeded, HeldError, JobError, StoppedError, UserError
from fer_pipeline.base.text import in_markdown, printable
from fer_pipeline.engine import submission
from fer_pipeline.engine.connect import ClusterConfig
from flows.dates import scheduled
from flows.notify import tell
from flows.pins import is_pinned, require_pinned
from flows.retries import may_pass

log = logging.getLogger(__name__)

Result = TypeVar("Result", bound=BaseModel)
Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")

STATE_NAMES: dict[type[JobError], str] = {
    HeldError: "Held",
    FailureRateExceeded: "Too many failures",
    UserError: "Needs attention",
    ClusterError: "Cluster failed",
    StoppedError: "Stopped",
}
"""State names that Prefect shows instead of `Failed`. The message of the state is the message of the error."""
JOB_PREFIX = "fer-"
"""Prefix of our Ray job names. The id of the flow run and the command of the step follow."""
THIS_MACHINE = ClusterConfig()


@task(retries=2, retry_delay_seconds=30, retry_condition_fn=may_pass)
def run_job(
    command: str,
    job: Callable[[Any, ClusterConfig], Result],
    kind: type[Result],
    config: Config,
    cluster: ClusterConfig,
    step: str | None = None,
) -> Result:
    """Run a job in this process, or as a Ray job if the cluster's address is an http:// URL. A retry continues the work.

    `step`: its name among the steps of the flow, if another step has the same command.
    """
    with _job_log() as say:
        if not submission.is_head(cluster.address):
            return job(config, cluster)
        name = f"{job_prefix_of(this_flow_run.id)}{(step or command).replace(' ', '-')}"
        return kind.model_validate_json(submission.run(command, config, cluster, name, say))


def job_prefix_of(flow_run_id: Any) -> str:
    """Return the prefix of the Ray job names of a flow run. The command of the step follows."""
    return f"{JOB_PREFIX}{flow_run_id}-"


@contextmanager
def _job_log() -> Iterator[Callable[[str], None]]:
    """Copy the log of this process to the task's log. Yield a function that adds one line of a Ray job's log."""
    logger, progress = get_run_logger(), _Progress()

    def show(level: int, message: str, about: dict[str, Any] | None) -> None:
        logger.log(level, printable(message))
        progress.show(message, about)

    def say(line: str) -> None:
        found = _json_line(line)
        if found and "message" in found:
            show(
                logging.getLevelNamesMapping().get(str(found.get("level")).upper(), logging.INFO),
                str(found["message"]),
                found.get("progress"),
            )
        elif not found and line.strip():  # skip an object without a message: it is the result, which the flow returns
            logger.info(printable(line))

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with suppress(PrefectException):
                show(record.levelno, record.getMessage(), getattr(record, "progress", None))

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


def _json_line(line: str) -> dict[str, Any] | None:
    """Return the JSON object in a line, or None if the line is anything else."""
    try:
        found = json.loads(line) if line.startswith("{") else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class _Progress:
    """One progress artifact for each kind of work."""

    def __init__(self) -> None:
        self.artifacts: dict[str, UUID] = {}

    def show(self, message: str, about: dict[str, Any] | None) -> None:
        """Create or update the artifact. `about` names the work (`what`) and counts how many of `all` are `done`."""
        if not isinstance(about, dict) or not about.keys() >= {"what", "done", "all"}:
            return
        what, share = about["what"], 100.0 * about["done"] / max(1, about["all"])
        if what in self.artifacts:
            update_progress_artifact(self.artifacts[what], progress=share, description=in_markdown(message))
        else:
            made = create_progress_artifact(progress=share, key=what.replace(" ", "-"), description=in_markdown(message))
            self.artifacts[what] = made  # type: ignore[assignment]


def _failed(error: JobError) -> Any:
    """Return the final state for an error. A flow returns it instead of a result.

    The name of the state says what happened, and its message says why.
    """
    name = next(STATE_NAMES[kind] for kind in type(error).__mro__ if kind in STATE_NAMES)
    return Failed(name=name, message=str(error), data=error)


def tag(**facts: str | None) -> None:
    """Add tags such as `model:embedded` to this flow run. Facts without a value are skipped."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(str(this_flow_run.id)))
        new = {f"{name}:{value}" for name, value in facts.items() if value}
        client.update_flow_run(run.id, tags=sorted({*run.tags, *new}))


@contextmanager
def shown_if_readable() -> Iterator[None]:
    """Log a warning if this process cannot read the output of a job. The final state of the job does not change."""
    try:
        yield
    except (UserError, *storage.STORAGE_ERRORS) as error:
        log.warning("The output of the job is not shown because this process cannot read it: %s", storage.reason(error))


def show_page(key: str, markdown: str, description: str) -> None:
    """Attach a Markdown page to the flow run. Escape names in `markdown` with `in_markdown` first."""
    create_markdown_artifact(key=key, markdown=markdown, description=in_markdown(description))


def as_scheduled(config: Some) -> Some:
    """Return a configuration in which the scheduled date and time of this run replace `{date}` and `{time}`.

    A run that begins late or is retried after midnight therefore keeps its date. A `date` in the configuration takes precedence.
    """
    context = FlowRunContext.get()
    due = scheduled(context.flow_run) if context and context.flow_run else datetime.now(UTC)
    return with_date(config, getattr(config, "date", None) or f"{due:%Y-%m-%d}", f"{due:%H%M}")


def stop_ray_jobs(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Stop the Ray jobs of a flow run that was cancelled or whose process died."""
    cluster = (flow_run.parameters or {}).get("cluster") or {}
    address = cluster.get("address") if isinstance(cluster, dict) else getattr(cluster, "address", None)
    if submission.is_head(address) and is_pinned("clusters", address):
        stopped = submission.stop(str(address), job_prefix_of(flow_run.id))
        log.warning("Stopped on %s: %s", address, ", ".join(stopped) or "no job, because none was running")


def job_flow(
    name: str,
) -> Callable[[Callable[Concatenate[Some, Parameters], Returned]], Flow[Concatenate[Some, Parameters], Returned]]:
    """Return a decorator that makes a function a flow. A `JobError` sets the name and the message of the final state.

    The scheduled date and time replace `{date}` and `{time}` in the configuration. The hooks stop Ray jobs and call the webhook.
    Prefect passes arguments to hooks by name, so their parameters must be named `flow`, `flow_run` and `state`.
    """

    def decorate(function: Callable[Concatenate[Some, Parameters], Returned]) -> Flow[Concatenate[Some, Parameters], Returned]:
        @wraps(function)
        def run_flow(config: Some, *arguments: Parameters.args, **options: Parameters.kwargs) -> Returned:
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
        )(run_flow)

    return decorate
