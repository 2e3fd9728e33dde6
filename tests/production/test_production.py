"""Nights as in production: schedules fire, jobs run on a cluster with tokens, and any process can die."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from fer_pipeline.table.delta import LabelTable
from tests.conftest import copies, until
from tests.production.stand import TOKEN, Head, Prefect, Process, Stand, ended, kill, standing

pytestmark = [pytest.mark.production, pytest.mark.timeout(600)]
NEVER = "0 0 1 1 *"


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with standing(tmp_path_factory.mktemp("p")) as found:
        found.start_server()
        yield found


@pytest.fixture(scope="module")
def head(stand: Stand) -> Head:
    return stand.start_head()


@pytest.fixture(scope="module")
def prefect(stand: Stand) -> Prefect:
    return Prefect(stand.api)


@pytest.fixture(scope="module")
def many(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """288 records, which take MTCNN half a minute."""
    return copies(archive, tmp_path_factory.mktemp("many"), 8)


@pytest.fixture(scope="module")
def very_many(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,320 records, which take MTCNN more than five minutes."""
    return copies(archive, tmp_path_factory.mktemp("very-many"), 120)


class Night:
    """A deployed night with its own source."""

    def __init__(self, stand: Stand, prefect: Prefect, name: str, source: Path, address: str, **options: Any) -> None:
        self.stand, self.prefect, self.name, self.folder = stand, prefect, name, stand.folder / name
        paths = {
            "source": source,
            "table": self.folder / "table",
            "out": self.folder / "run",
            "page": self.folder / "nights.html",
        }
        cluster = {"address": address, "silent_s": 20, **options.pop("cluster", {})}
        config = {key: str(value) for key, value in paths.items()} | {"detector": "none"} | options.pop("config", {})
        by = options.pop("by", "flows.deploy")
        self.schedules = {"nightly": {name: {"cron": NEVER, "config": config, "cluster": cluster} | options}}
        self.served = stand.serve(self.schedules, name, by)

    def start(self) -> str:
        return self.prefect.start(f"nightly/{self.name}")

    def shards(self) -> int:
        return len(list(self.folder.glob("run/images/*.parquet")))

    def rows(self) -> int:
        return LabelTable(str(self.folder / "table")).rows

    def begun(self) -> str:
        """Start a night and wait until it labels."""
        run = self.start()
        until(lambda: self.shards() > 1, lambda: f"labelling: {self.prefect.state(run)} {self.served.said()[-800:]}")
        return run


SLOW: dict[str, Any] = {"config": {"detector": "mtcnn", "shard_records": 4}}


def jobs_of(head: Head, run: str) -> list[dict[str, Any]]:
    return [job for job in head.jobs() if run in job["submission_id"]]


def drivers(head: Head) -> list[psutil.Process]:
    """Return the entry-point processes of Ray jobs, even if their head is dead."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if "fer_pipeline.cli" in line and "--parameters" in line and str(head.stand.folder) in line and not ended(process):
            found.append(process)
    return found


def test_a_cancelled_night_stops_on_the_cluster_and_the_next_one_goes_on(
    stand: Stand, prefect: Prefect, head: Head, many: Path
) -> None:
    night = Night(stand, prefect, "cancelled", many, head.url, **SLOW)
    run = night.begun()
    prefect.cancel(run)
    took_s = until(lambda: jobs_of(head, run)[0]["status"] == "STOPPED", "the end of the Ray job", 60)
    print(f"Ray had stopped {took_s:.1f} s after the cancelling")
    assert prefect.end_of(run)["type"] == "CANCELLED"
    done = night.shards()
    time.sleep(3)
    assert night.shards() == done and not drivers(head)
    shutil.rmtree(many / "05", ignore_errors=True)  # the source may change meanwhile
    again = night.start()
    until(lambda: night.shards() > done)
    assert prefect.end_of(again)["type"] == "COMPLETED" and night.rows() == 288
    log = prefect.log(again)
    assert any("of them done" in line and "0 of them done" not in line for line in log), log


@pytest.mark.long
def test_a_night_whose_process_is_killed_is_crashed_and_leaves_no_job(
    stand: Stand, prefect: Prefect, head: Head, archive: Path
) -> None:
    source = copies(archive, stand.folder / "killed-source", 10)
    night = Night(stand, prefect, "killed", source, head.url, **SLOW)
    run = night.begun()
    (process,) = [one for one in night.served.all() if "prefect.engine" in " ".join(one.cmdline())][:1]
    kill(process)
    assert prefect.end_of(run)["type"] == "CRASHED"
    until(lambda: jobs_of(head, run)[0]["status"] == "STOPPED", "the end of the Ray job")
    assert prefect.end_of(night.start())["type"] == "COMPLETED" and night.rows() == 360


@pytest.mark.long
def test_a_server_that_is_restarted_in_mid_night_finds_it_done(stand: Stand, prefect: Prefect, head: Head, archive: Path) -> None:
    source = copies(archive, stand.folder / "restart-source", 6)
    night = Night(stand, prefect, "restarted", source, head.url, **SLOW)
    run = night.begun()
    server = stand.processes[0]
    server.kill()
    time.sleep(5)
    server.start()
    stand.await_server()
    state = prefect.end_of(run)
    assert state["type"] in ("COMPLETED", "CRASHED"), state
    until(lambda: jobs_of(head, run)[0]["status"] in ("SUCCEEDED", "STOPPED"), "the end of the Ray job")
    if state["type"] != "COMPLETED":
        assert prefect.end_of(night.start())["type"] == "COMPLETED"
    assert night.rows() == 216


@pytest.mark.long
def test_a_head_that_dies_in_mid_night_leaves_no_process_and_the_next_night_goes_on(
    stand: Stand, prefect: Prefect, archive: Path
) -> None:
    source = copies(archive, stand.folder / "died-source", 10)
    mortal = stand.start_head()
    night = Night(stand, prefect, "died", source, mortal.url, **SLOW)
    run = night.begun()
    (driver,) = [one for one in drivers(mortal) if "died-source" in " ".join(one.cmdline())][:1]
    spared = {one.pid for one in (driver, *driver.parents()) if one.name() in ("sh", "bash") or one == driver}
    for process in mortal.process.all():  # the head's machine dies; the job's shell survives on another one
        if process.pid not in spared:
            with suppress(ProcessLookupError):
                kill(process)
    took_s = until(lambda: ended(driver), "the end of the driver whose cluster is gone", 60)
    print(f"the driver ended {took_s:.1f} s after its head")
    state = prefect.end_of(run)
    assert state["type"] == "FAILED" and "There is no Ray head" in state["message"], state  # after a silence and a retry
    other = stand.start_head()
    night.served.stop()
    again = Night(stand, prefect, "died", source, other.url, **SLOW)
    assert prefect.end_of(again.start())["type"] == "COMPLETED" and again.rows() == 360


def stripes(path: Path) -> Path:
    """Write a CSV in Kaggle's layout with two classes that differ in the direction of their stripes."""
    wave, rows = [40 + 170 * (number // 4 % 2) for number in range(48)], ["emotion,pixels,Usage"]
    for number in range(96):
        across = number % 2 == 0
        pixels = [(wave[x] if across else wave[y]) + (7 * x + 11 * y + number) % 13 for y in range(48) for x in range(48)]
        rows.append(f"{3 if across else 4},{' '.join(map(str, pixels))},{'Training' if number < 64 else 'PublicTest'}")
    path.write_text("\n".join(rows))
    return path


def test_a_model_is_retrained_by_a_job_for_each_step(stand: Stand, prefect: Prefect, head: Head) -> None:
    folder = stand.folder / "retrained"
    folder.mkdir()
    (folder / "small.toml").write_text("[network]\nwidth = 4\n[training]\nepochs = 2\nlearning_rate = 0.02\nbatch_size = 16\n")
    config: dict[str, Any] = {
        "ingest": {"source": str(stripes(folder / "fer2013.csv")), "layout": "fer2013-csv", "out": str(folder / "data")},
        "train": {"recipe": str(folder / "small.toml"), "data": str(folder / "data"), "out": str(folder / "{date}")},
        "name": "faces",
        "registry": str(folder / "registry"),
    }
    config["train"]["allow_missing_classes"] = True
    stand.serve({"retrain": {"faces": {"cron": NEVER, "config": config, "cluster": {"address": head.url}}}}, "retrained")
    run = prefect.start("retrain/faces")
    state = prefect.end_of(run)
    assert state["type"] == "COMPLETED", (state, prefect.log(run)[-5:])
    steps = {job["submission_id"].removeprefix(f"fer-{run}-"): job["status"] for job in jobs_of(head, run)}
    assert steps == {"ingest": "SUCCEEDED", "train": "SUCCEEDED", "evaluate": "SUCCEEDED"}
    assert (folder / "registry" / "faces").is_dir()


@pytest.mark.long
def test_a_job_whose_run_died_with_the_machine_that_served_it_is_stopped_and_told_of(
    stand: Stand, prefect: Prefect, head: Head, very_many: Path, told: list[dict[str, Any]]
) -> None:
    night = Night(stand, prefect, "orphan", very_many, head.url, notify="on-call", **SLOW)
    run = night.begun()
    night.served.kill()
    state = {"type": "CRASHED", "name": "Crashed", "message": "silent"}
    prefect.post(f"/flow_runs/{run}/set_state", state=state, force=True)  # what the automation does after two minutes
    assert jobs_of(head, run)[0]["status"] == "RUNNING" and told == []
    night.served.start()
    took_s = until(lambda: jobs_of(head, run)[0]["status"] == "STOPPED", "the end of the orphan", 300)
    print(f"The orphan was stopped {took_s:.0f} s after the schedules were served again")
    until(lambda: told, "telling the webhook")
    assert [one["event"] for one in told] == ["crashed"] and told[0]["flow_run_id"] == run
    assert not drivers(head)


def test_a_run_whose_process_dies_before_it_begins_does_not_hold_the_next_one_up(
    stand: Stand, prefect: Prefect, head: Head, archive: Path, told: list[dict[str, Any]]
) -> None:
    """The run holds the only slot and its process is dead, so the serving process marks it as crashed."""
    source = copies(archive, stand.folder / "stranded-source", 1)
    night = Night(stand, prefect, "stranded", source, head.url, notify="on-call", by="tests.production.killed")
    run = night.start()
    until(lambda: night.served.popen.poll() is not None, "the death of the process that serves", 60)
    assert prefect.state(run)["type"] == "PENDING"
    refused = night.start()
    night.served = stand.serve(night.schedules, "stranded", "tests.production.soon")
    until(lambda: prefect.state(run)["type"] == "CRASHED", "the crash of what is stranded")
    until(lambda: [one for one in told if (one["event"], one["flow_run_id"]) == ("crashed", run)], "the webhook")
    assert prefect.end_of(refused)["type"] in ("CANCELLED", "COMPLETED")
    assert prefect.end_of(night.start())["type"] == "COMPLETED" and night.rows() == 36


def test_a_token_that_does_not_fit_is_one_sentence(stand: Stand, prefect: Prefect, head: Head, archive: Path) -> None:
    config = {"source": str(archive), "table": str(stand.folder / "never"), "cluster": {"address": head.url}}
    command = [sys.executable, "-m", "flows.nightly", json.dumps(config)]
    for environment, complaint in (
        ({"RAY_AUTH_TOKEN": "x" * 40}, "refuses the token: set RAY_AUTH_TOKEN"),
        ({"PREFECT_API_URL": "http://127.0.0.1:1/api"}, "the Prefect server at http://127.0.0.1:1/api cannot be reached"),
    ):
        done = subprocess.run(command, env=stand.environment | environment, capture_output=True, text=True)
        assert complaint in done.stderr, done.stderr[-3000:]
        assert done.returncode == 2
    config["cluster"] = {"address": "http://127.0.0.1:1"}
    command[-1] = json.dumps(config)
    done = subprocess.run(command, env=stand.environment, capture_output=True, text=True)
    assert done.returncode == 2 and "There is no Ray head at 'http://127.0.0.1:1'" in done.stderr
    assert not (stand.folder / "never").exists()


@pytest.fixture
def told(stand: Stand, prefect: Prefect) -> Iterator[list[dict[str, Any]]]:
    """Messages that the webhook of the block `on-call` received."""
    told: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/hook"
    code = f"from prefect.blocks.webhook import Webhook; Webhook(url={url!r}).save('on-call', overwrite=True)"
    subprocess.run([sys.executable, "-c", code], env=stand.environment, check=True, capture_output=True)
    yield told
    server.shutdown()


@pytest.mark.long
def test_a_held_night_and_the_first_good_one_after_it_reach_the_webhook(
    stand: Stand, prefect: Prefect, head: Head, archive: Path, told: list[dict[str, Any]]
) -> None:
    source = copies(archive, stand.folder / "held-source", 4)
    audit = {"audit": {"vanished": 0.0}, "max_vanished": 1.0, "out": str(stand.folder / "held" / "runs" / "{date}")}
    first = Night(stand, prefect, "held", source, head.url, notify="on-call", config={"date": "2026-01-01", **audit})
    assert prefect.end_of(first.start())["name"] == "Completed" and told == []
    first.served.stop()
    for number in range(3):
        shutil.rmtree(source / f"{number:02d}")
    second = Night(stand, prefect, "held", source, head.url, notify="on-call", config={"date": "2026-01-02", **audit})
    run = second.start()
    state = prefect.end_of(run)
    assert (state["type"], state["name"]) == ("FAILED", "Held") and "vanished" in state["message"]
    assert "**failed**" in prefect.artifacts(run)["nightly"] and second.rows() == 144
    until(lambda: told, "telling the webhook")
    assert (told[0]["event"], told[0]["message"], told[0]["source"]) == ("held", state["message"], str(source))
    second.served.stop()
    good = {"date": "2026-01-03", "accept": ["vanished"], **audit}
    third = Night(stand, prefect, "held", source, head.url, notify="on-call", config=good)
    state = prefect.end_of(third.start())
    assert state["name"] == "Completed", state
    until(lambda: len(told) > 1, "telling of the recovery")
    assert told[1]["event"] == "recovered" and len(told) == 2


def test_the_deployment_of_the_documents_fires_on_its_schedule(stand: Stand, prefect: Prefect, archive: Path) -> None:
    """Paste it into an empty folder. The second night labels the image that was added after the first."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "flows.md").read_text()
    block = text.split("<!-- the deployment that a test pastes -->", 1)[1].split("```toml\n", 1)[1].split("```", 1)[0]
    place = stand.folder / "pasted"
    shutil.copytree(archive, place / "photos")
    (place / "schedules.toml").write_text(block)
    served = stand.run([sys.executable, "-m", "flows.deploy", "schedules.toml"], "pasted-log", place)
    served.await_line("polling")

    def finished() -> list[dict[str, Any]]:
        runs = prefect.runs("nightly", "photos")
        bad = [run["state"] for run in runs if run["state_type"] in ("FAILED", "CRASHED")]
        assert not bad, bad
        return [run for run in runs if run["state_type"] == "COMPLETED"]

    until(lambda: len(finished()) == 1, lambda: f"the first night: {served.said()[-1500:]}")
    assert LabelTable(str(place / "labels")).rows == 36
    added = next((place / "photos").rglob("*.jpg"))
    shutil.copy(added, place / "photos" / "added.jpg")
    until(lambda: len(finished()) >= 2, lambda: f"the second night: {served.said()[-1500:]}")
    assert LabelTable(str(place / "labels")).rows == 37
    assert all(run["auto_scheduled"] for run in finished())
    again = stand.run([sys.executable, "-m", "flows.deploy", "schedules.toml"], "pasted-again", place)
    again.await_line("polling")
    assert "nightly/photos was polled" in again.said() and "stop one" in again.said()
    for process in (again, served):
        process.stop()
        assert "Warning" not in process.said() and "Traceback" not in process.said(), process.said()[-1500:]


class Cut:
    """A proxy to the head that breaks connections after some bytes, four times."""

    def __init__(self, port: int, after: int) -> None:
        self.port, self.after, self.cuts = port, after, 0
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self.listening.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self.port))
            is_log = threading.Event()
            for source, target, cut in ((here, there, False), (there, here, True)):
                threading.Thread(target=self._pump, args=(source, target, cut, is_log), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, cut: bool, is_log: threading.Event) -> None:
        passed = 0
        try:
            while data := source.recv(4096):
                if not cut and b"/logs" in data:
                    is_log.set()
                passed += len(data)
                target.sendall(data)
                if cut and is_log.is_set() and passed > self.after and self.cuts < 4:
                    self.cuts += 1
                    break
        except OSError:
            pass
        for one in (source, target):
            with suppress(OSError):
                one.close()


FOLLOW = """
import json, sys
from fer_pipeline.engine import submission
from fer_pipeline.engine.connect import ClusterConfig
from fer_pipeline.jobs.label.config import LabelConfig
config = LabelConfig(source=sys.argv[2], out=sys.argv[3], detector="none")
lines = []
result = submission.run("label", config, ClusterConfig(address=sys.argv[1], silent_s=20), sys.argv[4], lines.append)
print(json.dumps({"lines": lines, "records": json.loads(result)["records"]}))
"""


@pytest.mark.long
def test_a_log_that_breaks_off_is_taken_up_again_without_repeating_a_line(stand: Stand, head: Head, archive: Path) -> None:
    cut = Cut(head.dashboard, after=700)
    source = copies(archive, stand.folder / "cut-source", 3)
    command = [sys.executable, "-c", FOLLOW, cut.url, str(source), str(stand.folder / "cut-run"), "cut"]
    done = subprocess.run(command, env=stand.environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    whole = head.get("/api/jobs/cut/logs")["logs"].split("\n")
    assert cut.cuts > 0 and found["records"] == 108
    assert [line for line in found["lines"] if line] == [line for line in whole if line]


def test_of_a_submission_that_is_sent_twice_one_job_runs(stand: Stand, head: Head, archive: Path) -> None:
    command = [sys.executable, "-c", FOLLOW, head.url, str(archive), str(stand.folder / "twice-run"), "twice"]
    both = [Process(command, stand.environment, stand.folder / f"twice-{number}.log") for number in range(2)]
    assert [one.popen.wait(120) for one in both] == [0, 0], both[0].said()[-1500:] + both[1].said()[-1500:]
    answers = [json.loads(one.said().splitlines()[-1]) for one in both]
    assert answers[0]["records"] == answers[1]["records"] == 36
    assert [job["submission_id"] for job in head.jobs() if job["submission_id"].startswith("twice")] == ["twice"]
    third = subprocess.run(command, env=stand.environment, capture_output=True, text=True, timeout=120)
    assert third.returncode == 0 and len([job for job in head.jobs() if job["submission_id"].startswith("twice")]) == 1


def test_nothing_of_it_shows_the_token(stand: Stand, prefect: Prefect, head: Head) -> None:
    said = "".join(path.read_text(errors="replace") for path in stand.folder.glob("*.log"))
    assert TOKEN not in said
    assert TOKEN not in json.dumps(head.jobs())
