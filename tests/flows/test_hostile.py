"""Attacks by someone who reaches Prefect's server: a run refuses parameters outside of the pins of its serving process."""

import os
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.blocks.webhook import Webhook
from prefect.client.schemas.objects import FlowRun
from prefect.states import Failed

from fer_pipeline.base.errors import UserError
from fer_pipeline.base.identity import Identity, now
from fer_pipeline.engine import submission
from fer_pipeline.engine.connect import ClusterConfig
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.jobs.nightly import NightlyConfig
from fer_pipeline.jobs.train.config import TrainConfig
from fer_pipeline.labelling.run import RunRecord, RunResult
from flows import notify, pins, steps
from flows.deploy import deployments_of
from flows.deploy import pins as pins_of_file
from flows.label import summary
from flows.pins import Pins, pin, require_pinned
from flows.retrain import RetrainConfig

SCHEDULES = """
[nightly.photos]
cron = "0 2 * * *"
config = { source = "s3://bucket/photos", table = "s3://bucket/labels", out = "s3://bucket/r/{date}", page = "/srv/nights.html" }
cluster = { address = "http://head:8265" }
notify = "on-call"

[allowed]
roots = ["s3://bucket/scratch"]
"""


@pytest.fixture(autouse=True)
def no_pins() -> Iterator[None]:
    yield
    os.environ.pop(pins.ENVIRONMENT, None)


@pytest.fixture
def pinned() -> Pins:
    facts = tomllib.loads(SCHEDULES)
    found = pins_of_file(facts, deployments_of(facts))
    pin(found)
    return found


def label_of(**changes: Any) -> LabelConfig:
    return LabelConfig.model_validate({"source": "s3://bucket/photos/2026", "out": "s3://bucket/r/x"} | changes)


def test_the_pins_are_what_the_schedules_name_and_what_is_allowed(pinned: Pins) -> None:
    assert pinned.clusters == ("http://head:8265",) and pinned.notify == ("on-call",)
    assert set(pinned.roots) >= {"s3://bucket/photos", "s3://bucket/labels", "s3://bucket/r", "s3://bucket/scratch"}
    assert "/srv/nights.html" in pinned.roots and "/" not in pinned.roots
    with pytest.raises(UserError, match=r"\[allowed\] cannot be used: unknown key 'root'"):
        pins_of_file({"allowed": {"root": []}}, [])


@pytest.mark.parametrize(
    ("changes", "cluster", "block", "says"),
    [
        ({}, "http://evil:8265", None, "not among the clusters"),
        ({}, "ray://evil:10001", None, "not among the clusters"),
        ({}, None, "evil", "not among the notify"),
        ({"source": "/etc"}, None, None, "source '/etc' is not below any root"),
        ({"source": "s3://bucket/photos-of-others"}, None, None, "not below any root"),
        ({"out": "/srv"}, None, None, "out '/srv' is not below any root"),
        ({"out": "schedules.toml"}, None, None, "out 'schedules.toml' is not below any root"),
        ({"model": "s3://evil/model"}, None, None, "model 's3://evil/model' is not below any root"),
        ({"detector_weights": "/etc/passwd"}, None, None, "detector_weights"),
        ({"source": "simplecache::http://h/x"}, None, None, "not below any root"),
        ({"source": "s3://bucket/photos/../secret"}, None, None, "not below any root"),
        ({"table": "s3://bucket/labels/%2e%2e/secret"}, None, None, "not below any root"),
        ({"model": "folder-of-this-place"}, None, None, "model 'folder-of-this-place' is not below any root"),
    ],
)
def test_a_parameter_outside_of_the_pins_is_refused(
    changes: dict[str, Any], cluster: str | None, block: str | None, says: str, pinned: Pins
) -> None:
    with pytest.raises(UserError, match=says):
        require_pinned(label_of(**changes), ClusterConfig(address=cluster), block)


@pytest.mark.parametrize("out", ["/{date}", "{date}", "/runs-{date}", "s3://{date}/x", "./{date}"])
def test_a_date_that_leaves_no_folder_is_refused(out: str) -> None:
    facts = tomllib.loads(SCHEDULES.replace("s3://bucket/r/{date}", out))
    with pytest.raises(UserError, match="name a folder before the date"):
        pins_of_file(facts, deployments_of(facts))


def test_a_schedule_may_use_what_it_names_itself() -> None:
    config = {"source": "photos", "table": "labels", "out": "runs/{date}T{time}"}
    facts = {"nightly": {"n": {"cron": "0 2 * * *", "config": config}}}
    pin(pins_of_file(facts, deployments_of(facts)))
    require_pinned(NightlyConfig.model_validate(config | {"out": "runs/2026-01-01T0200"}))
    with pytest.raises(UserError, match=r"page 'schedules.toml' is not below any root"):
        require_pinned(NightlyConfig.model_validate(config | {"page": "schedules.toml"}))


def test_what_is_pinned_is_allowed_and_a_flow_by_hand_has_no_pins(pinned: Pins) -> None:
    require_pinned(label_of(model="faces@production"), ClusterConfig(address="http://head:8265"), "on-call")
    train = TrainConfig(recipe="fer2013-small", data="s3://bucket/scratch/d", out="s3://bucket/scratch/m")
    require_pinned(RetrainConfig(train=train, name="faces"))
    with pytest.raises(UserError, match=r"train.data '/etc' is not below any root"):
        require_pinned(RetrainConfig(train=train.model_copy(update={"data": "/etc"}), name="faces"))
    with pytest.raises(UserError, match=r"train.recipe './own.toml' is not below any root"):
        require_pinned(RetrainConfig(train=train.model_copy(update={"recipe": "./own.toml"}), name="faces"))
    del os.environ[pins.ENVIRONMENT]
    require_pinned(label_of(source="/etc"), ClusterConfig(address="http://anywhere:8265"), "anybody")


def test_nothing_is_sent_to_another_head_or_webhook(pinned: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "_connect", lambda head: pytest.fail(f"connects to {head}"))
    monkeypatch.setattr(Webhook, "load", lambda name: pytest.fail(f"loads {name}"))
    parameters = {"config": {}, "cluster": {"address": "http://evil:8265"}, "notify": "evil"}
    run = FlowRun(flow_id=uuid4(), name="r", parameters=parameters)
    flow: Any = SimpleNamespace(name="label-archive")
    steps.stop_ray_jobs(flow, run, Failed())
    notify.tell(flow, run, Failed())


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    heard: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/hook", heard
        server.shutdown()


def test_a_webhook_that_may_not_be_private_is_not(listener: tuple[str, list[str]]) -> None:
    url, heard = listener
    with pytest.raises((ValueError, httpx.HTTPError)):
        notify._send(Webhook(url=url, allow_private_urls=False), {})
    assert heard == []
    notify._send(Webhook(url=url), {})
    assert heard == ["/hook"]


def test_names_of_strangers_are_text_in_artifacts() -> None:
    evil = "<img src=x>|[x](javascript:alert(1))\n# all is well"
    one = Identity(name=evil.replace("\n", ""), digest="d")
    failure: dict[str, str | None] = {"uri": evil, "member": None, "status": "unreadable", "error": evil}
    result = RunResult(
        counts={"ok": 1}, failed=1, faces=1, uncertain=0, expressions={"happy": 1}, confidences=[0] * 20,
        faces_per_image=[0] * 6, failures=[failure], labelled_now=1, seconds=1, images_per_s=1, finished_at=now(),
    )  # fmt: skip
    record = RunRecord(run_id="r", created_at=now(), source=evil, settings={}, model=one, detector=one, result=result)
    text = summary(record, evil)
    plain = text.replace("\\<", "").replace("\\|", "").replace("\\[", "")
    assert "<" not in plain and "[" not in plain and "\n# all" not in text
    assert next(line for line in text.splitlines() if "unreadable" in line).replace("\\|", "").count("|") == 4
