"""Schedules and configurations as people write them: each error is reported in one sentence."""

import time
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect.client.schemas.objects import ConcurrencyLimitStrategy

from fer_pipeline.base.errors import UserError
from fer_pipeline.jobs.nightly import NightlyConfig
from flows import orphans
from flows.deploy import deployments_of
from flows.shell import parameters_of, read_facts

ROOT = Path(__file__).resolve().parents[2]
NIGHT = '[nightly.photos]\ncron = "0 2 * * *"\nconfig = { source = "photos", table = "labels" }\n'


def test_a_schedule_is_one_night_at_a_time() -> None:
    where = 'timezone = "Europe/Berlin"\ncluster = { address = "http://head:8265" }'
    deployment: Any
    (deployment,) = deployments_of(tomllib.loads(NIGHT + where))
    assert (deployment.flow_name, deployment.name) == ("nightly", "photos")
    assert deployment.schedules[0].schedule.timezone == "Europe/Berlin"
    assert deployment.concurrency_options.collision_strategy is ConcurrencyLimitStrategy.CANCEL_NEW
    assert deployment.concurrency_limit == 1 and deployment.parameters["cluster"]["address"] == "http://head:8265"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "There is no schedule"),
        ("[nightli.photos]", "'nightli' is not a flow: name one of nightly, retrain"),
        ("nightly = 3", "'nightly' is not a flow"),
        ("[nightly.photos]\nconfig = {}", r"\[nightly.photos\] cannot be used: 'cron' is missing"),
        (NIGHT + "crom = 1", "unknown key 'crom'"),
        (NIGHT.replace("0 2", "99 2"), "cannot be used"),
        (NIGHT.replace("source", "sauce"), r"\[nightly.photos\] cannot be used: unknown key 'sauce'"),
        (NIGHT + 'timezone = "Mars/Olympus"', "cannot be used"),
    ],
)
def test_a_schedule_that_cannot_be_served_is_one_sentence(
    text: str, complaint: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match=complaint) as raised:
        deployments_of(tomllib.loads(text))
    assert "\n" not in str(raised.value)
    assert not caplog.records and capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "Give one argument"),
        (["{"], "neither a TOML file nor a JSON object: it is not valid"),
        (["[1]"], "is not a JSON object"),
        (["nowhere.toml"], "the file cannot be read"),
        (['{"source": "photos"}'], "'table' is missing"),
        (['{"source": "photos", "table": "t", "tabel": 1}'], "unknown key 'tabel'"),
        (['{"source": "photos", "table": "t", "cluster": {"adress": "auto"}}'], "unknown key 'adress'"),
    ],
)
def test_a_flow_from_the_shell_says_what_is_wrong_with_its_argument(arguments: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        parameters_of(arguments, NightlyConfig)


def test_a_flow_takes_json_and_toml_alike(tmp_path: Path) -> None:
    text = 'source = "p"\ntable = "t"\nnotify = "n"\n[cluster]\naddress = "auto"\n[audit]\nfailed = 0.1'
    (tmp_path / "night.toml").write_text(text)
    as_json = '{"source": "p", "table": "t", "notify": "n", "cluster": {"address": "auto"}, "audit": {"failed": 0.1}}'
    assert parameters_of([as_json], NightlyConfig) == parameters_of([str(tmp_path / "night.toml")], NightlyConfig)


def test_the_project_file_deploys_flows_that_are_there_with_parameters_that_they_take() -> None:
    facts: dict[str, Any] = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    for deployment in facts["deployments"]:
        path, _, name = deployment["entrypoint"].partition(":")
        flow = getattr(import_module(path.removesuffix(".py").replace("/", ".")), name)
        taken = flow.validate_parameters(deployment["parameters"])
        assert taken["config"].source == "s3://bucket/photos"
        assert deployment["concurrency_limit"]["collision_strategy"] == "CANCEL_NEW" and deployment["work_pool"]["name"]


def test_the_schedules_of_the_documents_are_read() -> None:
    text = (ROOT / "docs" / "flows.md").read_text()
    block = text.split("<!-- the deployment that a test pastes -->", 1)[1].split("```toml\n", 1)[1].split("```", 1)[0]
    assert len(deployments_of(tomllib.loads(block))) == 1
    assert read_facts('{"a": 1}') == {"a": 1}


def test_the_watch_for_orphans_outlives_whatever_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    class EndedError(BaseException):
        pass

    looked: list[str] = []

    def fails(head: str) -> None:
        looked.append(head)
        raise httpx.ConnectError("no server")

    def slept(seconds: float) -> None:
        if len(looked) > 1:
            raise EndedError

    monkeypatch.setattr(orphans, "stop_orphans", fails)
    monkeypatch.setattr(time, "sleep", slept)
    with pytest.raises(EndedError):
        orphans._watch(["http://head:8265"], [])
    assert len(looked) == 2 and not orphans.RUN_ID_IN_JOB.match("fer-by-hand")
    assert orphans.RUN_ID_IN_JOB.match("fer-15d2f92b-dfa6-4b99-b979-550ff8a055dc-models-promote")
