"""Run the flows on a real, temporary Prefect server."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import cv2
import numpy as np
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.schedules import Cron
from prefect.states import Cancelled, Completed, Failed, Scheduled
from prefect.testing.utilities import prefect_test_harness
from pydantic import ValidationError

import fer_pipeline as fer
from fer_pipeline.base.errors import FailureRateExceeded, UserError
from fer_pipeline.cli import models, review
from fer_pipeline.cli.models import PushConfig
from fer_pipeline.cli.review import CorrectConfig
from fer_pipeline.engine.connect import ClusterConfig
from fer_pipeline.jobs.ingest import IngestConfig
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.jobs.nightly import NightlyConfig
from fer_pipeline.labelling.run import RunRecord
from fer_pipeline.models.bundle import EMBEDDED, read_bundle
from flows.label import label_archive
from flows.nightly import nightly
from flows.notify import message_of, tell
from flows.retrain import RetrainConfig, retrain
from flows.steps import shown_if_readable
from flows.train import train_model
from tests.conftest import RECIPE


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
    assert (nightly(config).state, nightly(config).state) == ("published", "published")  # the second retries failed records
    assert nightly(config.model_copy(update={"date": "2026-01-02"})).records == 2  # the failed ones
    assert "fer_night_records" in (tmp_path / "night.prom").read_text()
    with get_client(sync_client=True) as client:
        artifact = next(one for one in client.read_artifacts() if one.key == "nightly")
    assert "| expressions |" in str(artifact.data) and (tmp_path / "2026-01-02" / "_SUCCESS").exists()


def test_every_flow_puts_the_date_of_its_schedule_into_paths(archive: Path, tmp_path: Path, local_ray: None) -> None:
    photo = next(archive.rglob("hopper-640.jpg"))
    label_archive(LabelConfig(source=str(photo), out=f"{tmp_path}/{{date}}", detector="none"))
    assert [path.name for path in tmp_path.iterdir()] == [f"{datetime.now(UTC):%Y-%m-%d}"]


def test_a_message_names_the_folder_that_the_run_wrote() -> None:
    scheduled = datetime(2026, 1, 2, 23, 30, tzinfo=UTC)
    run = FlowRun(flow_id=uuid4(), name="r", expected_start_time=scheduled, parameters={"config": {"out": "runs/{date}T{time}"}})
    assert message_of("failed", "label-archive", run, Failed())["out"] == "runs/2026-01-02T2330"


def test_what_cannot_be_read_here_does_not_change_how_a_job_ended() -> None:
    with pytest.raises(UserError, match="the job's"):
        try:
            raise UserError("the job's own error")
        finally:
            with shown_if_readable():
                raise PermissionError("no rights to the bucket")


def test_what_a_retry_cannot_fix_is_not_retried(
    archive: Path, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[LabelConfig] = []

    def counted(config: LabelConfig, cluster: ClusterConfig) -> RunRecord:
        calls.append(config)
        return run(config, cluster)

    run = label.run
    monkeypatch.setattr(label, "run", counted)
    with pytest.raises(UserError, match="does not exist"):
        label_archive(LabelConfig(source="/nowhere", out=str(tmp_path / "never"), detector="none"))
    failing = LabelConfig(source=str(archive), out=str(tmp_path / "run"), detector="none", max_failure_rate=0.0)
    with pytest.raises(FailureRateExceeded):
        label_archive(failing)
    assert len(calls) == 2


def test_flow_parameters_are_the_jobs_configuration() -> None:
    assert set(label_archive.parameters.properties) == {"config", "cluster", "notify"}
    assert "recipe" in str(train_model.parameters.model_dump())


def test_two_nights_of_one_date_in_utc_are_two_on_the_clock_of_their_schedule() -> None:
    """Around the start of summer time, nights at 01:00 local time are due at 00:00 and 23:00 UTC of the same date."""
    schedule = Cron("0 1 * * *", timezone="Europe/Berlin")
    deployed = nightly.to_deployment("berlin", schedule=schedule).apply()  # type: ignore[union-attr]
    found = []
    for hour in (0, 23):
        due = datetime(2026, 3, 29, hour, tzinfo=UTC)
        parameters = {"config": {"out": "runs/{date}"}}
        run = FlowRun(flow_id=uuid4(), name="r", deployment_id=deployed, expected_start_time=due, parameters=parameters)
        found.append(message_of("failed", "nightly", run, Failed())["out"])
    assert found == ["runs/2026-03-29", "runs/2026-03-30"]


@pytest.mark.parametrize(("before", "told"), [([Failed], True), ([Failed, Completed], False), ([Completed], False)])
def test_the_first_good_run_after_a_bad_one_is_told_of_whatever_is_scheduled(
    before: list[Any], told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scheduled future runs, of which a frequent schedule has many, and runs refused for lack of a slot do not count."""
    events: list[str] = []
    monkeypatch.setattr("flows.notify.Webhook.load", lambda name: name)
    monkeypatch.setattr("flows.notify._send", lambda webhook, message: events.append(message["event"]))
    flow = label_archive.with_options(name=f"of-{uuid4()}")
    now = datetime.now(UTC)

    def due(client: Any, minutes: int, state: State[Any]) -> FlowRun:
        made = client.create_flow_run(flow, state=Scheduled(scheduled_time=now + timedelta(minutes=minutes)))
        client.set_flow_run_state(made.id, state, force=True)
        return client.read_flow_run(made.id)  # type: ignore[no-any-return]

    with get_client(sync_client=True) as client:
        for number, kind in enumerate(before):
            due(client, number - 60, kind())
        due(client, -5, Cancelled())  # refused, because another run held the slot
        run = due(client, 0, Completed())
        for minutes in range(1, 15):
            client.create_flow_run(flow, state=Scheduled(scheduled_time=now + timedelta(minutes=minutes)))
    tell(flow, run.model_copy(update={"parameters": {"notify": "on-call"}}), Completed())
    assert events == ["recovered"] * told


@pytest.mark.slow
def test_a_retraining_whose_later_step_failed_is_run_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first steps reuse their outputs, and a changed configuration of one of them is refused.

    The first candidate gets the alias. The second is compared with it, and a repeated run returns the same verdict.
    """
    (tmp_path / "short.toml").write_text(RECIPE.replace("epochs = 8", "epochs = 1"))
    source = {"source": str(dataset.parent / "tree"), "out": str(tmp_path / "data")}
    learned = {"recipe": str(tmp_path / "short.toml"), "data": source["out"], "allow_missing_classes": True}
    facts: dict[str, Any] = {"name": "faces", "registry": str(tmp_path / "registry"), "ingest": source}
    config = RetrainConfig.model_validate(facts | {"train": learned | {"out": f"{tmp_path}/model-{{date}}"}})

    def failing(*_: Any) -> Any:
        raise UserError("the store forbids it")

    with monkeypatch.context() as today:
        today.setattr("fer_pipeline.jobs.evaluate.run", failing)
        with pytest.raises(UserError, match="the store forbids it"):
            retrain(config)
    assert retrain(config) is None and retrain(config) is None
    assert len(list(tmp_path.glob("model-20??-??-??/model.json"))) == 1
    assert list((tmp_path / "registry" / "faces" / "versions").iterdir()) == [tmp_path / "registry/faces/versions/1.json"]
    other = config.model_copy(update={"ingest": IngestConfig.model_validate(source | {"seed": 1})})
    with pytest.raises(UserError, match="was begun with another seed"):
        retrain(other)
    again = RetrainConfig.model_validate(
        facts | {"train": learned | {"out": str(tmp_path / "second")}, "rule": {"allow_unchecked_leaks": True}}
    )
    verdict = retrain(again)
    assert verdict is not None and (verdict.incumbent, verdict.candidate) == ("1", "2") and retrain(again) == verdict
    assert [one.precision for one in verdict.judged] == ["int8", "int8"]


def test_a_retraining_with_corrections_learns_them_and_judges_by_those_chosen_at_random(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text(RECIPE.replace("epochs = 8", "epochs = 1"))
    for number in range(40):
        wave = 128 + 50 * np.sign(np.sin(np.arange(48) * (0.5 + number / 100)))
        picture = np.tile(wave, (48, 1)) if number % 2 else np.tile(wave[:, None], (1, 48))
        path = tmp_path / "photos" / ("sad", "happy")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noisy = picture + np.random.default_rng(number).normal(0, 30, (48, 48))
        cv2.imwrite(str(path), np.clip(noisy, 0, 255).astype(np.uint8))
    run = fer.label(tmp_path / "photos", tmp_path / "run", detector="none")

    def answered(faces: list[dict[str, Any]], chosen: str) -> None:
        own = {"by": "ann", "at": "2026-11-30T09:00:00Z", "chosen": chosen}
        key = ("content_sha256", "uri", "member", "time_ms", *"xywh")
        lines = [{name: face[name] for name in key} | {"answer": face["folder"]} | own for face in faces]
        (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
        review.correct(CorrectConfig(labels=run.url, file=(str(tmp_path / "c.jsonl"),)))

    faces = run.faces().to_pylist()
    learned = {"recipe": str(tmp_path / "short.toml"), "data": str(dataset), "allow_missing_classes": True, "mix_weight": 2}
    facts: dict[str, Any] = {"name": "faces", "registry": str(tmp_path / "registry"), "corrections": run.url}

    def configured(out: str, **options: Any) -> RetrainConfig:
        rule = {"allow_unchecked_leaks": True}
        return RetrainConfig.model_validate(facts | {"rule": rule, "train": learned | {"out": str(tmp_path / out)} | options})

    answered(faces[::2], "margin")
    with pytest.raises(UserError, match="is about a face that was chosen at random, so nothing can compare the models"):
        retrain(configured("none"))
    answered(faces[1::2], "random")
    models.push(PushConfig(model=str(EMBEDDED), name="faces", alias=("production",), registry=facts["registry"]))
    verdict = retrain(configured("second"))
    assert verdict is not None and verdict.split == "audit" and verdict.data == f"{tmp_path}/second.corrections"
    assert 0 < verdict.comparison.images <= 20
    card = read_bundle(str(tmp_path / "second")).card
    assert card.training and card.training["mixed"]["weight"] == 2
    with pytest.raises(ValidationError, match=r"corrections are what the training mixes: leave out train\.mix"):
        configured("third", mix="y")
