"""A Ray job as a submitting process follows it; the Jobs API is played, what a real head does is tried in tests/production."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from fer_pipeline.base.errors import ClusterError
from fer_pipeline.engine import submission
from fer_pipeline.engine.connect import ClusterConfig
from fer_pipeline.jobs.label.config import LabelConfig


class Client:
    """A head on which a job is pending until it is stopped."""

    def __init__(self) -> None:
        self.submitted, self.stopped = list[str](), list[str]()

    def get_job_info(self, job_id: str) -> Any:
        if job_id not in self.submitted:
            raise RuntimeError("404: no such job")
        return SimpleNamespace(status=self.get_job_status(job_id), message="Job has not started yet.", submission_id=job_id)

    def get_job_status(self, job_id: str) -> JobStatus:
        return JobStatus.STOPPED if job_id in self.stopped else JobStatus.PENDING

    def submit_job(self, submission_id: str, **_: Any) -> None:
        self.submitted.append(submission_id)

    def stop_job(self, job_id: str) -> None:
        self.stopped.append(job_id)

    def get_job_logs(self, job_id: str) -> str:
        return ""


def test_a_job_that_never_starts_is_stopped_and_the_command_ends_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    monkeypatch.setattr(submission, "_connect", lambda head: client)
    monkeypatch.setattr(submission, "POLL_S", 0.01)
    monkeypatch.setattr(submission, "LEAST_PENDING_S", 0.0)
    config = LabelConfig(source="s3://bucket/photos", out="s3://bucket/run")
    with pytest.raises(ClusterError, match=r"fer-1 has been pending for 0 s .* Job has not started yet. It is being stopped"):
        submission.run("label", config, ClusterConfig(address="http://head:8265", wait_s=0), "fer-1", print)
    assert client.submitted == client.stopped == ["fer-1"]


def test_each_line_of_a_log_that_is_read_again_is_said_once() -> None:
    said = list[str]()
    lines = submission._Lines(said.append)
    for whole in ("", "one\ntw", "one\ntwo\nth", "one\n", "one\ntwo\nthree"):  # one answer was cut short
        lines.take(whole)
    lines.end()
    assert said == ["one", "two", "three"]
