"""A command of this project run as a Ray job: submitted once, followed through lost connections, stopped.

The job's id is derived from a name, so that who asks twice gets the job that is there: one that runs is followed, one that
succeeded is taken as done, one that failed is followed by the next of the same name.
"""

import asyncio
import json
import logging
import shlex
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

import aiohttp
from pydantic import ValidationError

from fer_pipeline.core.config import Config
from fer_pipeline.core.errors import JOB_ERRORS, MisfortuneError, StoppedError, UserError
from fer_pipeline.core.outcome import Outcome, outcome_name
from fer_pipeline.core.storage import reason
from fer_pipeline.jobs.cluster import ClusterConfig

from ray.exceptions import AuthenticationError  # isort: skip (after the environment of `cluster`)
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient  # isort: skip

import fer_pipeline

log = logging.getLogger(__name__)

LOOK_S, AGAIN_S = 1.0, 3.0
"""How often a job's status is asked for, and when a lost connection is tried again."""
LEAST_PENDING_S = 60.0
"""How long a job may be pending at the least: its environment is set up meanwhile."""
STOPPED_S = 60.0
"""How long a job that is told to stop may take: Ray kills it after $RAY_JOB_STOP_WAIT_TIME_S of the head."""
PATIENCE_S, OUTCOME_TRIES = 30.0, 5
"""How long the head may take to give out the file of a job's outcome, and how often it is asked."""
Say = Callable[[str], None]


def is_head(address: str | None) -> bool:
    """Tell whether an address is that of a Ray head's Jobs API."""
    return bool(address) and str(address).startswith(("http://", "https://"))


def run(command: str, config: Config, cluster: ClusterConfig, name: str, say: Say) -> str:
    """Run a command as the job `name` of the head at the cluster's address; return its result, one line of JSON.

    `say` gets the job's log, line by line, each once. Raise what the command raised, StoppedError where the job was stopped.
    """
    head = str(cluster.address)
    job = _Job(_connect(head), head, name, cluster.silent_s, cluster.wait_s)
    job.submit(_entrypoint(command, config, cluster))
    try:
        job.follow(say)
    except BaseException:
        with suppress(Exception):  # whoever cancels is told of the cancelling
            job.stop()
        raise
    return _result_of(job)


def stop(head: str, beginning: str) -> list[str]:
    """Stop the jobs whose names begin so and that are not over, wait until they are, and return their ids."""
    client = _connect(head)
    found = _unfinished(client, beginning)
    for job_id in found:
        _Job(client, head, job_id, job_id=job_id).stop()
    return found


def unfinished(head: str, beginning: str) -> list[str]:
    """Return the ids of the jobs whose names begin so and that are not over."""
    return _unfinished(_connect(head), beginning)


def _unfinished(client: JobSubmissionClient, beginning: str) -> list[str]:
    ids = [str(job.submission_id) for job in client.list_jobs() if not job.status.is_terminal()]
    return [job_id for job_id in ids if job_id.startswith(beginning)]


def _connect(head: str) -> JobSubmissionClient:
    try:
        return JobSubmissionClient(head)
    except ConnectionError as error:
        raise UserError(f"There is no Ray head at '{head}': is the cluster up, and is this the URL of its dashboard?") from error
    except AuthenticationError as error:
        raise UserError(
            f"The Ray head at '{head}' refuses the token: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to its own."
        ) from error


def _entrypoint(command: str, config: Config, cluster: ClusterConfig) -> str:
    """Return the command line of a job; on the cluster it finds the cluster by itself."""
    there = cluster.model_copy(update={"address": None})
    parameters = {
        name: one.model_dump(mode="json", exclude_defaults=True) for name, one in (("config", config), ("cluster", there))
    }
    return shlex.join(["python", "-m", "fer_pipeline.cli", *command.split(), "--json", json.dumps(parameters)])


def _ids(client: JobSubmissionClient, name: str) -> list[str]:
    """Return the ids of the jobs of a name, the last one last."""
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
    """How long it may be pending."""
    job_id: str = ""

    def submit(self, entrypoint: str) -> None:
        """Take the job of the name that runs or succeeded; without one, submit the next."""
        ids = _ids(self.client, self.name)
        if ids and self.client.get_job_info(ids[-1]).status not in (JobStatus.FAILED, JobStatus.STOPPED):
            self.job_id = ids[-1]
            log.info("The Ray job %s is there already: it is followed", self.job_id)
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
            log.info("The Ray job %s was submitted by another in this moment: it is followed", self.job_id)
        else:
            log.info("Submitted the Ray job %s", self.job_id)

    def details(self) -> JobDetails:
        return self.client.get_job_info(self.job_id)

    def follow(self, say: Say) -> None:
        """Say the lines of the job's log as they come, each once, until it is over."""
        lines, over = SimpleQueue[str](), threading.Event()
        tail = _Tail(self.client, self.job_id, lines, over)
        tail.start()
        try:
            began = heard = time.monotonic()
            while True:
                for line in _taken(lines, LOOK_S):
                    say(line)
                try:
                    status = self.client.get_job_status(self.job_id)
                    heard = time.monotonic()
                except (RuntimeError, OSError) as error:  # `requests` raises OSErrors
                    self._require_hope(heard, error)
                    continue
                if status.is_terminal():
                    break
                if status is JobStatus.PENDING and heard - began > max(self.wait_s, LEAST_PENDING_S):
                    raise MisfortuneError(
                        f"The Ray job {self.job_id} has been pending for {heard - began:.0f} s (--wait-s): "
                        f"{self.details().message} Is there room on '{self.head}'? It is told to stop; run it again to continue."
                    )
            over.set()
            tail.join(self.silent_s)
            for line in _taken(lines, 0):
                say(line)
        finally:
            over.set()

    def outcome(self, details: JobDetails) -> Outcome | None:
        """Return how the job ended, from the file that it left; None where it left none."""
        if not details.driver_node_id:
            return None
        asked = {"node_id": details.driver_node_id, "filename": outcome_name(self.job_id), "lines": "-1"}
        for _ in range(OUTCOME_TRIES):  # an answer without content is the head's way to stumble, now and then
            try:
                answer = self.client._do_request("GET", "/api/v0/logs/file", params=asked, timeout=PATIENCE_S)
                if answer.status_code == 200 and answer.content:
                    return Outcome.model_validate_json(answer.content)
                said = answer.text
            except (OSError, RuntimeError, ValidationError) as error:  # a connection that is lost, an answer that breaks off
                said = reason(error)
            time.sleep(LOOK_S)
        log.warning("What the Ray job %s said last is not known: %s", self.job_id, said[:200])
        return None

    def _require_hope(self, heard: float, error: Exception) -> None:
        silent_s = time.monotonic() - heard
        if silent_s > self.silent_s:
            raise ConnectionError(
                f"The Ray head at '{self.head}' has been silent for {silent_s:.0f} s: is it gone? Run it again to continue."
            ) from error

    def stop(self) -> None:
        """Have the job stopped and wait until it is over; a job that is not stops by itself where its cluster is gone."""
        until = time.monotonic() + STOPPED_S
        self.client.stop_job(self.job_id)
        while time.monotonic() < until:
            if self.client.get_job_status(self.job_id).is_terminal():
                log.info("The Ray job %s is stopped", self.job_id)
                return
            time.sleep(LOOK_S / 2)
        log.error("The Ray job %s was told to stop %g s ago and is not over: see it on %s", self.job_id, STOPPED_S, self.head)


class _Tail(threading.Thread):
    """Reads a job's log; after a lost connection from the start again, without what was read before."""

    def __init__(self, client: JobSubmissionClient, job_id: str, lines: "SimpleQueue[str]", over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.client, self.job_id, self.lines, self.over = client, job_id, lines, over
        self.read = 0
        """Characters of the log that were taken."""
        self.begun = ""
        """A line without its end."""

    def run(self) -> None:
        while not self.over.is_set():
            try:
                asyncio.run(self._tail())
            except (RuntimeError, OSError, aiohttp.ClientError) as error:
                log.info("The connection to the log of %s was lost: %s", self.job_id, reason(error)[:200])
            self.over.wait(AGAIN_S)
        with suppress(RuntimeError, OSError):  # the tail may have ended before the log did
            self._take(self.client.get_job_logs(self.job_id)[self.read :])
        if self.begun:
            self.lines.put(self.begun)

    async def _tail(self) -> None:
        seen = 0
        async for text in self.client.tail_job_logs(self.job_id):
            new = text[max(0, self.read - seen) :]
            seen += len(text)
            self._take(new)
            if self.over.is_set():
                return

    def _take(self, text: str) -> None:
        self.read += len(text)
        *whole, self.begun = (self.begun + text).split("\n")
        for line in whole:
            self.lines.put(line)


def _taken(lines: "SimpleQueue[str]", timeout_s: float) -> list[str]:
    """Return the lines that are there; wait for the first."""
    found = []
    with suppress(Empty):
        found.append(lines.get(timeout=timeout_s) if timeout_s else lines.get_nowait())
        while True:
            found.append(lines.get_nowait())
    return found


def _result_of(job: _Job) -> str:
    """Return the result that a job left, or raise what its exit code and its last sentence say."""
    details = job.details()
    if details.status is JobStatus.STOPPED:
        raise StoppedError(f"The Ray job {job.job_id} was stopped. What is done is kept: run it again to continue.")
    outcome = job.outcome(details)
    if details.status is JobStatus.SUCCEEDED:
        if outcome is None or outcome.result is None:
            raise RuntimeError(f"the Ray job {job.job_id} succeeded and left no result")
        return json.dumps(outcome.result)
    said = outcome.said if outcome else " ".join((details.message or "").split())[-1000:]
    kind = next((kind for kind in JOB_ERRORS if kind.exit_code == details.driver_exit_code), None)
    if kind and (outcome or kind is not MisfortuneError):  # a bug exits with 1 too, and leaves no outcome
        raise kind(said)
    raise RuntimeError(f"the Ray job {job.job_id} failed: {said or 'no reason given'}")
