"""Production, rehearsed: a store, a Prefect server, a Ray head and workers on machines of their own, started by the commands of
`cluster/aws.yaml`; a night runs and loses a machine; another machine comes and the next night runs.

`REHEARSAL_PICTURES=FOLDER` keeps screenshots of Prefect's pages.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars
import pytest
import s3fs
import tomli_w

from fer_pipeline.base import storage
from fer_pipeline.jobs import nightly
from fer_pipeline.jobs.nightly import NightlyConfig
from fer_pipeline.table.delta import storage_options
from tests.conftest import copies, until
from tests.production.stand import Prefect, await_prefect
from tests.rehearsal.machines import (
    BIN,
    HEAD,
    HEAD_COMMANDS,
    NETWORK,
    OPERATIONS,
    WORKER_COMMANDS,
    Machine,
    alone,
    make_network,
)
from tests.s3.conftest import upload

pytestmark = [
    pytest.mark.rehearsal,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not alone(), reason="runs in namespaces of its own: make rehearsal"),
]
TOKEN = "r" * 40
STORE = {
    "AWS_ENDPOINT_URL": f"http://{OPERATIONS}:9000",
    "AWS_ACCESS_KEY_ID": "rehearsal",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}
API = f"http://{OPERATIONS}:4200/api"
OF_A_MACHINE = STORE | {"PREFECT_API_URL": API, "RAY_USAGE_STATS_ENABLED": "0", "LANG": "C.UTF-8"}
"""The environment that its commands find."""
SETTINGS = {"detector": "mtcnn", "shard_records": 4}
NEVER = "0 0 1 1 *"


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The machine of operations, with the store and Prefect's server; yields a folder."""
    folder = tmp_path_factory.mktemp("operations")
    make_network()
    os.environ |= STORE | {"PREFECT_API_URL": API, "PREFECT_HOME": str(folder / "prefect")}
    store = [sys.executable, "-m", "moto.server", "-H", OPERATIONS, "-p", "9000"]
    prefect = [str(BIN / "prefect"), "server", "start", "--host", OPERATIONS, "--port", "4200"]
    servers = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for command in (store, prefect)]

    await_prefect(API)
    yield folder
    for server in servers:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def machines(operations: Path) -> Iterator[list[Machine]]:
    """The head, which serves the schedule, and two workers of one core."""
    bucket = "s3://media"
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir("media")
    config = {
        "source": f"{bucket}/photos", "table": f"{bucket}/labels", "out": f"{bucket}/runs/{{date}}-{{time}}",
        "page": f"{bucket}/nights.html", "metrics": f"{bucket}/fer_pipeline.prom",
    }  # fmt: skip
    schedule = {"cron": NEVER, "config": config | SETTINGS, "cluster": {"address": "http://127.0.0.1:8265"}}
    schedules = operations / "schedules.toml"
    schedules.write_text(tomli_w.dumps({"nightly": {"media": schedule}}))
    served = f"RAY_AUTH_MODE=token python -m flows.deploy {schedules} &"
    found = [Machine("head", HEAD, operations, TOKEN)]
    found[0].start([*HEAD_COMMANDS, served], OF_A_MACHINE, cores=0)
    found += [Machine(f"worker{number}", f"{NETWORK}.{2 + number}", operations, TOKEN) for number in (1, 2, 3)]
    until(lambda: "polling for scheduled runs" in found[0].log.read_text(), lambda: f"the head: {found[0].log.read_text()}")
    for worker in found[1:3]:
        worker.start(WORKER_COMMANDS, OF_A_MACHINE, cores=1)
    yield found
    for machine in found:
        machine.end()


def rows(table: str) -> list[dict[str, Any]]:
    """Return a table's labels without what says when, by which run and at which try."""
    found = polars.scan_delta(storage.encoded(table), storage_options=storage_options(table)).collect()
    own = {"run_id", "labelled_at", "published_by", "attempt"}  # what failed once is tried again by the next night
    return sorted(
        ({name: value for name, value in row.items() if name not in own} for row in found.to_dicts()),
        key=lambda row: (row["uri"], row["member"] or "", row["time_ms"] or 0),
    )


def undisturbed(name: str) -> list[dict[str, Any]]:
    """Return the labels of the photos as they are now, by a night on this machine alone."""
    places = {"out": f"s3://media/runs/{name}", "page": f"s3://media/{name}.html"}
    table = f"s3://media/{name}"
    nightly.run(NightlyConfig.model_validate({"source": "s3://media/photos", "table": table} | places | SETTINGS))
    return rows(table)


def shards() -> int:
    filesystem, path = storage.open_filesystem("s3://media/runs")
    filesystem.invalidate_cache()
    return len([name for name in filesystem.find(path) if "/images/" in name])


def test_a_night_that_loses_a_machine_and_the_next_one(operations: Path, machines: list[Machine], archive: Path) -> None:
    began, prefect, (head, one, two, three) = time.monotonic(), Prefect(API), machines
    upload(copies(archive, operations / "first", 3), "s3://media/photos/first")
    run = prefect.start("nightly/media")
    until(lambda: shards() > 3, lambda: f"labelling: {prefect.state(run)}")
    ports = {machine.name: machine.listening() for machine in (head, one, two)}
    targets = [target for entry in discovered(head) for target in entry["targets"]]
    until(lambda: counted(targets) > 0, "the workers' metrics")
    assert not prefect.is_over(run), "the night ended before its machine was lost: make it longer"
    one.lose()
    lost_s = time.monotonic() - began
    state = prefect.end_of(run)
    assert state["type"] == "COMPLETED", (state, prefect.log(run))
    first_s = time.monotonic() - began
    assert rows("s3://media/labels") == undisturbed("quiet-first")

    three.start(WORKER_COMMANDS, OF_A_MACHINE, cores=1)
    upload(copies(archive, operations / "second", 1), "s3://media/photos/second")
    again = prefect.start("nightly/media")
    state = prefect.end_of(again)
    assert state["type"] == "COMPLETED", (state, prefect.log(again))
    assert any("36 new" in line for line in prefect.log(again)), "only what is new is labelled"
    assert rows("s3://media/labels") == undisturbed("quiet-second")
    assert b'fer_night_state{state="published",table="s3://media/labels"} 1.0' in storage.read_bytes(
        "s3://media/fer_pipeline.prom"
    )
    pictures(run, again)
    print(f"\nworker1 lost after {lost_s:.0f} s, the night over after {first_s:.0f} s, all in {time.monotonic() - began:.0f} s")
    print(*prefect.log(run), sep="\n")
    require_closed_dashboard(ports)


def discovered(head: Machine) -> list[dict[str, Any]]:
    """Return what Ray's head tells Prometheus about where to scrape."""
    (told,) = (head.folder / "ray").glob("session_2*/prom_metrics_service_discovery.json")
    found: list[dict[str, Any]] = json.loads(told.read_text())
    return found


def counted(targets: list[str]) -> float:
    """Return the records that the machines have counted."""
    text = ""
    for target in targets:
        with suppress(OSError), urllib.request.urlopen(f"http://{target}/metrics", timeout=5) as answer:
            text += answer.read().decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("ray_fer_records_total"))


def require_closed_dashboard(ports: dict[str, set[tuple[str, str, str]]]) -> None:
    """Print what listened on each machine; the head lets its workers in and nobody else to its dashboard."""
    for name, found in ports.items():
        for address, port, process in sorted(found, key=lambda one: (one[0], one[2])):
            print(f"| {name} | {address} | {port} | {process} |")
    ours = {port for address, port, _ in ports["head"] if not address.startswith("127.")}
    assert "6379" in ours and "8265" not in ours, "the dashboard listens on loopback, the head to its workers"


def pictures(*runs: str) -> None:
    folder = os.environ.get("REHEARSAL_PICTURES")
    if not folder or not shutil.which("chromium"):
        return
    for number, run in enumerate(runs, 1):
        page = f"http://{OPERATIONS}:4200/runs/flow-run/{run}"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1300,1000"]
        shot = f"--screenshot={Path(folder).resolve()}/night{number}.png"
        subprocess.run(["chromium", *options, "--virtual-time-budget=20000", shot, page], capture_output=True, timeout=120)
