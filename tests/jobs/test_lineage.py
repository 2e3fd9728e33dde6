"""Jobs tell a catalogue what they read and wrote, to a file or an endpoint, and lose nothing if that fails."""

import json
import logging
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from fer_pipeline.base.errors import HeldError, UserError
from fer_pipeline.jobs import ingest, lineage, nightly
from fer_pipeline.jobs.ingest import IngestConfig
from fer_pipeline.jobs.nightly import NightlyConfig
from fer_pipeline.table.thresholds import Thresholds

Told = list[dict[str, Any]]


@pytest.fixture
def night(archive: Path, tmp_path: Path, local_ray: None) -> NightlyConfig:
    source = tmp_path / "photos"
    source.mkdir()
    for photo in sorted(archive.rglob("hopper-*.jpg"))[:3]:
        (source / f"private {photo.name}").write_bytes(photo.read_bytes())
    places = {"table": str(tmp_path / "table"), "out": str(tmp_path / "run"), "page": str(tmp_path / "nights.html")}
    return NightlyConfig.model_validate({"source": str(source), "detector": "mtcnn"} | places)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of events. A file that would configure OpenLineage lies in the current folder."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    (tmp_path / "cwd" / "openlineage.yml").write_text("transport: {type: file, log_file_path: planted, append: true}\n")
    monkeypatch.setenv(lineage.URL, f"file://{tmp_path}/events.jsonl")
    return tmp_path / "events.jsonl"


def told(file: Path) -> Told:
    return [json.loads(line) for line in file.read_text().splitlines()]


def names(events: Told) -> list[tuple[str, str]]:
    return [(event["job"]["name"], event["eventType"]) for event in events]


def test_a_night_tells_of_itself_and_of_its_jobs(night: NightlyConfig, file: Path) -> None:
    nightly.run(night)
    events = told(file)
    assert names(events) == [
        ("nightly", "START"), ("label", "START"), ("label", "COMPLETE"), ("publish", "START"), ("publish", "COMPLETE"),
        ("nightly", "COMPLETE"),
    ]  # fmt: skip
    first, labelled, published, last = events[0], events[2], events[4], events[5]
    assert {event["run"]["facets"]["parent"]["run"]["runId"] for event in events[1:5]} == {first["run"]["runId"]}
    assert len({event["run"]["runId"] for event in events}) == 3 and "parent" not in first["run"]["facets"]
    assert [(one["namespace"], one["name"]) for one in labelled["inputs"]] == [
        ("file", night.source), ("fer-pipeline", "embedded")
    ]  # fmt: skip
    images, faces = labelled["outputs"]
    assert (images["name"], faces["name"]) == (f"{night.out}/images", f"{night.out}/faces")
    assert images["outputFacets"]["outputStatistics"]["rowCount"] == 3
    columns = {one["name"] for one in faces["facets"]["schema"]["fields"]}
    origins = faces["facets"]["columnLineage"]["fields"]
    assert set(origins) <= columns and {"expression", "confidence", "landmarks"} <= set(origins)
    assert [one["field"] for one in origins["expression"]["inputFields"]] == ["image", "weights"]
    checks = published["inputs"][0]["inputFacets"]["dataQualityAssertions"]["assertions"]
    assert {"failed", "vanished"} <= {check["assertion"] for check in checks} and all(check["success"] for check in checks)
    (table,) = last["outputs"]
    assert table["name"] == night.table and table["facets"]["version"]["datasetVersion"] == "1"
    assert table["outputFacets"]["outputStatistics"]["rowCount"] == 3
    assert "private" not in file.read_text() and not Path("planted").exists()


def test_a_held_night_fails_with_its_checks_and_without_words_that_may_name_pictures(night: NightlyConfig, file: Path) -> None:
    for number in range(9):
        (Path(night.source) / f"private {number}.jpg").write_bytes(b"no image")
    with pytest.raises(HeldError):
        nightly.run(night.model_copy(update={"max_failure_rate": 1.0, "audit": Thresholds(failed=0.1)}))
    events = told(file)
    assert names(events)[-2:] == [("publish", "FAIL"), ("nightly", "FAIL")]
    checks = events[-2]["inputs"][0]["inputFacets"]["dataQualityAssertions"]["assertions"]
    assert [check["assertion"] for check in checks if not check["success"]] == ["failed"]
    assert events[-1]["run"]["facets"]["errorMessage"]["message"] == "HeldError" and "private" not in file.read_text()


def test_a_photo_is_told_by_its_folder(night: NightlyConfig, file: Path) -> None:
    photo = next(Path(night.source).iterdir())
    nightly.run(night.model_copy(update={"source": str(photo)}))
    assert told(file)[0]["inputs"][0]["name"] == night.source and "private" not in file.read_text()


def test_a_long_job_tells_that_it_runs_and_a_stopped_one_that_it_was_stopped(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage, "RUNNING_S", 0.01)

    @lineage.traced("ingest", ("source",), ("out",))
    def job(config: IngestConfig) -> None:
        while not file.exists() or ("ingest", "RUNNING") not in names(told(file)):
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job(IngestConfig(source="photos", out="data"))
    events = names(told(file))
    assert events[0] == ("ingest", "START") and events[-1] == ("ingest", "ABORT") and ("ingest", "RUNNING") in events
    assert told(file)[0]["inputs"][0]["name"] == str(tmp_path / "cwd" / "photos")


class Catalogue(HTTPServer):
    """An endpoint of OpenLineage that keeps what it gets."""

    def __init__(self, status: int, wait_s: float = 0) -> None:
        catalogue = self
        self.got: list[tuple[str, str | None, dict[str, Any]]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                catalogue.got.append((self.path, self.headers["Authorization"], content))
                time.sleep(wait_s)
                self.send_response(status)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def ingested(tmp_path: Path, archive: Path, local_ray: None) -> IngestConfig:
    (tmp_path / "tree/train/happy").mkdir(parents=True)
    (tmp_path / "tree/train/happy/a.jpg").write_bytes(next(archive.rglob("hopper-320.jpg")).read_bytes())
    return IngestConfig(source=str(tmp_path / "tree"), out=str(tmp_path / "data"))


@pytest.fixture
def catalogue() -> Iterator[Catalogue]:
    server = Catalogue(201)
    yield server
    server.shutdown()
    server.server_close()


def test_an_endpoint_gets_the_events_with_the_key(
    ingested: IngestConfig, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(lineage.URL, catalogue.url)
    monkeypatch.setenv(lineage.KEY, "s3cret")
    monkeypatch.setenv(lineage.NAMESPACE, "photos-team")
    caplog.set_level(logging.DEBUG)
    ingest.run(ingested)
    assert [(path, key, one["eventType"], one["job"]["namespace"]) for path, key, one in catalogue.got] == [
        ("/api/v1/lineage", "Bearer s3cret", state, "photos-team") for state in ("START", "COMPLETE")
    ]
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("kind", ["dead", "refusing", "silent"])
def test_a_failing_endpoint_costs_a_job_nothing(
    kind: str, ingested: IngestConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = None if kind == "dead" else Catalogue(500, 30 if kind == "silent" else 0)
    monkeypatch.setattr(lineage, "SEND_S", 0.3)
    monkeypatch.setenv(lineage.URL, server.url if server else "http://127.0.0.1:9")
    assert ingest.run(ingested).samples == 1
    assert caplog.text.count("The lineage of this job is lost, the job goes on") == 1
    if server:
        Thread(target=server.shutdown, daemon=True).start()


def test_an_impossible_url_is_one_sentence_before_any_work(ingested: IngestConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(lineage.URL, "kafka:9092")
    with pytest.raises(UserError, match=r"\$OPENLINEAGE_URL is neither an http:// or https:// URL nor a file: URL"):
        ingest.run(ingested)
    assert not Path(ingested.out).exists()
