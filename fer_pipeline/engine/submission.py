"""Run a command of this project as a Ray job: submit it once, follow it through lost connections, stop it.

The job's id is derived from a name, so a second request finds the existing job: a running job is followed, and a successful one
counts as done. After a failed or stopped one, the next job of the same name is submitted.
"""

import json
import logging
import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

import fer_pipeline
from fer_pipeline.base.config import Config
from fer_pipeline.base.errors import JOB_ERRORS, ClusterError, StoppedError, UserError
from fer_pipeline.base.outcome import Outcome, outcome_name
from fer_pipeline.base.storage import reason
from fer_pipeline.engine.connect import ClusterConfig
from fer_pipeline.engine.private_ray import read_log_file

log = logging.getLogger(__name__)

POLL_S = 2.0
"""Interval between two queries for the status and the log of a job."""
LEAST_PENDING_S = 60.0
"""Lower bound of the time that a job may be pending, because Ray sets up its environment meanwhile."""
STOP_TIMEOUT_S = 60.0
"""Time that a job gets to stop. Ray kills it after the head's $RAY_JOB_STOP_WAIT_TIME_S."""
OUTCOME_TIMEOUT_S = 30.0
"""Timeout of one request for the outcome file of a job."""
OUTCOME_TRIES = 5
"""Number of requests for the outcome file."""
Say = Callable[[str], None]


def is_head(address: str | None) -> bool:
    """Return whether an address is the URL of a Ray head's Jobs API."""
    return bool(address) and str(address).startswith(("http://", "https://"))


def run(command: str, config: Config, cluster: ClusterConfig, name: str, say: Say) -> str:
    """Run a command as the job `name` on the head at the cluster's address. Return its result as one line of JSON.

    Call `say` once for each line of the job's log; the project writes JSON objects (`base/log.py`). Raise the error that the
    command raised, or StoppedError if the job was stopped.
    """
    head = str(cluster.address)
    job = _Job(_connect(head), head, name, cluster.silent_s, cluster.wait_s)
    job.submit(_entrypoint(command, config, cluster))
    try:
        job.follow(say)
    except BaseException:
        with suppress(Exception):  # raise the original error, even if the job cannot be stopped
            job.stop()
        raise
    return _result_of(job)


def stop(head: str, prefix: str) -> list[str]:
    """Stop the unfinished jobs with this name prefix, wait until they end, and return their ids."""
    client = _connect(head)
    found = _unfinished(client, prefix)
    for job_id in found:
        _Job(client, head, job_id, job_id=job_id).stop()
    return found


def unfinished(head: str, prefix: str) -> list[str]:
    """Return the ids of the unfinished jobs with this name prefix."""
    return _unfinished(_connect(head), prefix)


def _unfinished(client: JobSubmissionClient, prefix: str) -> list[str]:
    ids = [str(job.submission_id) for job in client.list_jobs() if not job.status.is_terminal()]
    return [job_id for job_id in ids if job_id.startswith(prefix)]


def _connect(head: str) -> JobSubmissionClient:
    try:
        return JobSubmissionClient(head)
    except ConnectionError as error:
        raise UserError(f"There is no Ray head at '{head}': start the cluster, or give the URL of its dashboard.") from error
    except AuthenticationError as error:
        raise UserError(
            f"The Ray head at '{head}' refuses the token: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the token of the head."
        ) from error


def _entrypoint(command: str, config: Config, cluster: ClusterConfig) -> str:
    """Return the command line of a job. It contains no address, because the job runs on the cluster."""
    on_cluster = cluster.model_copy(update={"address": None})
    parameters = {
        name: one.model_dump(mode="json", exclude_defaults=True) for name, one in (("config", config), ("cluster", on_cluster))
    }
    return shlex.join(
        ["python", "-m", "fer_pipeline.cli", *command.split(), "--json-log", "--parameters", json.dumps(parameters)]
    )


def _ids(client: JobSubmissionClient, name: str) -> list[str]:
    """Return the ids of all jobs of a name, the newest last."""
    found: list[str] = []
    for number in range(1, 1000):
        job_id = name if number == 1 else f"{name}-{number}"
        if _details(client, job_id) is None:
            return found
        found.append(job_id)
    return found


def _details(client: JobSubmissionClient, job_id: str) -> JobDetails | None:
    try:
        return client.get_job_info(job_id)
    except RuntimeError as error:
        if "404" in str(error) or "does not exist" in str(error):
            return None
        raise


@dataclass
class _Job:
    client: JobSubmissionClient
    head: str
    name: str
    silent_s: float = 60.0
    wait_s: float = 600.0
    """Time that it may be pending."""
    job_id: str = ""

    def submit(self, entrypoint: str) -> None:
        """Use the newest job of the name if it runs or succeeded. Otherwise submit the next one."""
        ids = _ids(self.client, self.name)
        if ids and self.client.get_job_info(ids[-1]).status not in (JobStatus.FAILED, JobStatus.STOPPED):
            self.job_id = ids[-1]
            log.info("The Ray job %s exists already; following it", self.job_id)
            return
        self.job_id = self.name if not ids else f"{self.name}-{len(ids) + 1}"
        code = str(Path(fer_pipeline.__file__).parent)
        try:
            self.client.submit_job(
                entrypoint=entrypoint,
                submission_id=self.job_id,
                runtime_env={"py_modules": [code], "env_vars": {"PYTHONUNBUFFERED": "1"}},
            )
        except RuntimeError:
            if _details(self.client, self.job_id) is None:
                raise
            log.info("Another process has just submitted the Ray job %s; following it", self.job_id)
        else:
            log.info("Submitted the Ray job %s", self.job_id)

    def details(self) -> JobDetails:
        return self.client.get_job_info(self.job_id)

    def follow(self, say: Say) -> None:
        """Pass each new line of the job's log to `say`, once, until the job is over."""
        began = answered = time.monotonic()
        log_lines = _Lines(say)
        while True:
            try:
                status = self.client.get_job_status(self.job_id)
                log_text = self._log()
                answered = time.monotonic()
            except (RuntimeError, OSError) as error:  # `requests` raises OSErrors
                self._raise_if_silent(answered, error)
                time.sleep(POLL_S)
                continue
            log_lines.take(log_text)
            if status.is_terminal():
                log_lines.end()
                return
            if status is JobStatus.PENDING and answered - began > max(self.wait_s, LEAST_PENDING_S):
                raise ClusterError(
                    f"The Ray job {self.job_id} has been pending for {answered - began:.0f} s (--wait-s): "
                    f"{self.details().message} It is being stopped. Free resources on '{self.head}', then run it again."
                )
            time.sleep(POLL_S)

    def _log(self) -> str:
        """Return the job's log as it is now; a pending job has none."""
        try:
            return self.client.get_job_logs(self.job_id)
        except RuntimeError:
            return ""

    def outcome(self, details: JobDetails) -> Outcome | None:
        """Return the outcome that the job wrote to its file, or None if the file cannot be read."""
        if not details.driver_node_id:
            return None
        for _ in range(OUTCOME_TRIES):  # sometimes the head answers without content
            try:
                answer = read_log_file(self.client, details.driver_node_id, outcome_name(self.job_id), OUTCOME_TIMEOUT_S)
                if answer.status_code == 200 and answer.content:
                    return Outcome.model_validate_json(answer.content)
                problem = answer.text
            except (OSError, RuntimeError, ValidationError) as error:  # a lost connection or a truncated answer
                problem = reason(error)
            time.sleep(POLL_S)
        log.warning("The outcome of the Ray job %s cannot be read: %s", self.job_id, problem[:200])
        return None

    def _raise_if_silent(self, answered: float, error: Exception) -> None:
        silent_s = time.monotonic() - answered
        if silent_s > self.silent_s:
            raise ConnectionError(
                f"The Ray head at '{self.head}' has been silent for {silent_s:.0f} s. Check it, then run this again to continue."
            ) from error

    def stop(self) -> None:
        """Stop the job and wait until it is over. If its cluster is gone, the job ends by itself."""
        until = time.monotonic() + STOP_TIMEOUT_S
        self.client.stop_job(self.job_id)
        while time.monotonic() < until:
            if self.client.get_job_status(self.job_id).is_terminal():
                log.info("Stopped the Ray job %s", self.job_id)
                return
            time.sleep(POLL_S / 4)
        log.error("The Ray job %s did not stop within %g s: check it on %s", self.job_id, STOP_TIMEOUT_S, self.head)


class _Lines:
    """Passes each line of a log to `say` once, although the whole log is read repeatedly."""

    def __init__(self, say: Say) -> None:
        self.say, self.read, self.partial = say, 0, ""

    def take(self, whole: str) -> None:
        """Pass on the new lines of the whole log."""
        new, self.read = whole[self.read :], max(self.read, len(whole))
        *lines, self.partial = (self.partial + new).split("\n")
        for line in lines:
            self.say(line)

    def end(self) -> None:
        """Pass on a last line without a newline."""
        if self.partial:
            self.say(self.partial)


def _result_of(job: _Job) -> str:
    """Return the result of a job, or raise the error that its exit code and its final message describe."""
    details = job.details()
    if details.status is JobStatus.STOPPED:
        raise StoppedError(f"The Ray job {job.job_id} was stopped. Finished work is kept: run it again to continue.")
    outcome = job.outcome(details)
    if details.status is JobStatus.SUCCEEDED:
        if outcome is None or outcome.result is None:
            raise RuntimeError(f"the Ray job {job.job_id} succeeded but wrote no result")
        return json.dumps(outcome.result)
    message = outcome.said if outcome else " ".join((details.message or "").split())[-1000:]
    kind = next((kind for kind in JOB_ERRORS if kind.exit_code == details.driver_exit_code), None)
    if kind and (outcome or kind is not ClusterError):  # a bug also exits with 1, but writes no outcome
        raise kind(message)
    raise RuntimeError(f"the Ray job {job.job_id} failed: {message or 'it gave no reason'}")
