"""The flows on a real, ephemeral Prefect server."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.testing.utilities import prefect_test_harness

from fer_pipeline.core.errors import FailureRateExceeded, UserError
from fer_pipeline.jobs.label.job import LabelConfig
from fer_pipeline.jobs.nightly import NightlyConfig
from flows.label import label_archive
from flows.nightly import nightly
from flows.train import train_model


@pytest.fixture(scope="module", autouse=True)
def prefect() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


def test_the_label_flow_runs_the_job_and_publishes_its_counts(archive: Path, tmp_path: Path, local_ray: None) -> None:
    record = label_archive(LabelConfig(source=str(archive), out=str(tmp_path / "run"), detector="none"))
    assert record.result is not None and record.result.counts["ok"] == 34
    assert (tmp_path / "run" / "_SUCCESS").exists()
    with get_client(sync_client=True) as client:
        artifact, progress = (
            next(one for one in client.read_artifacts() if one.key == key) for key in ("label-archive", "labelling")
        )
    assert progress.data == 100.0
    assert artifact.key == "label-archive" and "| undecodable | 2 |" in str(artifact.data)


def test_the_nightly_flow_publishes_and_shows_its_audit(archive: Path, tmp_path: Path, local_ray: None) -> None:
    paths = {"out": f"{tmp_path}/{{date}}", "table": f"{tmp_path}/table", "page": f"{tmp_path}/nights.html"}
    paths["metrics"] = f"{tmp_path}/night.prom"
    config = NightlyConfig.model_validate({"source": str(archive), "detector": "none", "date": "2026-01-01"} | paths)
    assert (nightly(config).state, nightly(config).state) == ("published", "published")
    assert nightly(config.model_copy(update={"date": "2026-01-02"})).records == 2  # those that failed
    assert "fer_night_records" in (tmp_path / "night.prom").read_text()
    with get_client(sync_client=True) as client:
        artifact = next(one for one in client.read_artifacts() if one.key == "nightly")
    assert "| expressions |" in str(artifact.data) and (tmp_path / "2026-01-02" / "_SUCCESS").exists()


def test_what_a_retry_cannot_mend_is_not_tried_again(archive: Path, tmp_path: Path, local_ray: None) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match="does not exist"):
        label_archive(LabelConfig(source="/nowhere", out=str(tmp_path / "never"), detector="none"))
    failing = LabelConfig(source=str(archive), out=str(tmp_path / "run"), detector="none", max_failure_rate=0.0)
    with pytest.raises(FailureRateExceeded):
        label_archive(failing)
    assert time.monotonic() - started < 30  # a retry would come after 30 s


def test_flow_parameters_are_the_jobs_configuration() -> None:
    assert set(label_archive.parameters.properties) == {"config", "cluster", "notify"}
    assert "recipe" in str(train_model.parameters.model_dump())
