"""Start a Prefect server, a Ray head with token authentication and a serving process as operators do."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import tomli_w

from tests.conftest import until

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TOKEN = "t" * 40


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def await_prefect(api: str) -> None:
    """Wait until a Prefect server answers."""

    def answers() -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{api}/health").status_code == 200
        return False

    until(answers, "the Prefect server")


class Process:
    """A process that a test starts, with its descendants."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path, cwd: Path = ROOT) -> None:
        self.command, self.environment, self.log, self.cwd = command, environment, log, cwd
        self.start()

    def start(self) -> None:
        with self.log.open("a") as said:
            self.popen = subprocess.Popen(self.command, env=self.environment, stdout=said, stderr=said, cwd=self.cwd)

    def all(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            me = psutil.Process(self.popen.pid)
            return [me, *me.children(recursive=True)]
        return []

    def kill(self) -> None:
        """Send SIGKILL to the process and its descendants."""
        for one in self.all():
            with suppress(psutil.NoSuchProcess):
                one.kill()
        self.popen.wait(30)

    def stop(self) -> None:
        """Send SIGTERM to the process, then kill the descendants that are left."""
        left = self.all()
        self.popen.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(15)
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        self.popen.wait(30)

    def said(self) -> str:
        return self.log.read_text()

    def await_line(self, text: str) -> None:
        """Wait until the process says this."""

        def said() -> bool:
            alive = self.popen.poll() is None
            found = text in self.said()
            assert found or alive, f"{self.command} ended before it said '{text}': {self.said()[-1500:]}"
            return found

        until(said, lambda: f"'{text}' in the log of {self.command}: {self.said()[-1500:]}")


class Prefect:
    """A client of the Prefect server's HTTP API."""

    def __init__(self, api: str) -> None:
        self.http = httpx.Client(base_url=api, timeout=30)

    def post(self, path: str, **body: Any) -> Any:
        for _ in range(5):
            answer = self.http.post(path, json=body)
            if answer.status_code != 503:  # SQLite is locked at the moment
                break
            time.sleep(1)
        answer.raise_for_status()
        return answer.json()

    def start(self, deployment: str) -> str:
        """Start a run of the deployment FLOW/NAME and return its id."""
        found = self.http.get(f"/deployments/name/{deployment}").json()
        return str(self.post(f"/deployments/{found['id']}/create_flow_run", state={"type": "SCHEDULED"})["id"])

    def runs(self, flow: str, deployment: str) -> list[dict[str, Any]]:
        where = {"flows": {"name": {"any_": [flow]}}, "deployments": {"name": {"any_": [deployment]}}}
        return list(self.post("/flow_runs/filter", sort="EXPECTED_START_TIME_ASC", **where))

    def state(self, run: str) -> dict[str, Any]:
        return dict(self.http.get(f"/flow_runs/{run}").json()["state"])

    def is_over(self, run: str) -> bool:
        return self.state(run)["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

    def end_of(self, run: str) -> dict[str, Any]:
        until(lambda: self.is_over(run), lambda: f"the end of run {run}, {self.state(run)}", 600)
        return self.state(run)

    def cancel(self, run: str) -> None:
        self.post(f"/flow_runs/{run}/set_state", state={"type": "CANCELLING"})

    def log(self, run: str) -> list[str]:
        found = self.post("/logs/filter", logs={"flow_run_id": {"any_": [run]}}, sort="TIMESTAMP_ASC", limit=200)
        return [one["message"] for one in found]

    def artifacts(self, run: str) -> dict[str, Any]:
        found = self.post("/artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
        return {one["key"]: one["data"] for one in found}


class Stand:
    """The processes of one production system on loopback, and their environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefect_port = free_port()
        self.api = f"http://127.0.0.1:{self.prefect_port}/api"
        self.environment = os.environ | {
            "PREFECT_API_URL": self.api,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # makes Ray bind to loopback only
            "RAY_JOB_STOP_WAIT_TIME_S": "15",
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        self.environment.pop("RAY_ADDRESS", None)
        self.processes: list[Process] = []

    def run(self, command: list[str], name: str, cwd: Path = ROOT, **environment: str) -> Process:
        process = Process(command, self.environment | environment, self.folder / f"{name}.log", cwd)
        self.processes.append(process)
        return process

    def start_server(self) -> Process:
        port = str(self.prefect_port)
        server = self.run([str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", port], "server")
        self.await_server()
        return server

    def await_server(self) -> None:
        await_prefect(self.api)

    def start_head(self, cpus: int = 1) -> "Head":
        head = Head(self, cpus)
        self.processes.append(head.process)
        return head

    def serve(self, schedules: dict[str, Any], name: str = "schedules", by: str = "flows.deploy") -> Process:
        path = self.folder / f"{name}.toml"
        path.write_text(tomli_w.dumps(schedules))
        served = self.run([sys.executable, "-m", by, str(path)], f"{name}-{len(self.processes)}")
        served.await_line("polling for scheduled runs")
        return served

    def close(self) -> None:
        for process in reversed(self.processes):
            process.stop()


class Head:
    """A Ray head started by `ray start`."""

    def __init__(self, stand: Stand, cpus: int) -> None:
        self.stand, self.dashboard, port = stand, free_port(), free_port()
        command = [str(BIN / "ray"), "start", "--head", "--block", f"--port={port}", f"--num-cpus={cpus}"]
        command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}"]
        command += ["--dashboard-agent-listen-port=0", "--object-store-memory=100000000", "--disable-usage-stats"]
        place = stand.folder / f"r{port}"
        self.process = Process([*command, f"--temp-dir={place}"], stand.environment, stand.folder / f"head-{port}.log")
        self.url = f"http://127.0.0.1:{self.dashboard}"
        until(lambda: self.get("/api/version") is not None, lambda: f"the head: {self.process.said()[-500:]}")

    def get(self, path: str) -> Any:
        with suppress(httpx.HTTPError):
            answer = httpx.get(self.url + path, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=5)
            return answer.json() if answer.status_code == 200 else None
        return None

    def jobs(self) -> list[dict[str, Any]]:
        """Return the submitted jobs."""
        return [job for job in self.get("/api/jobs/") or [] if job["type"] == "SUBMISSION"]


@contextmanager
def standing(folder: Path) -> Iterator[Stand]:
    stand = Stand(folder)
    try:
        yield stand
    finally:
        stand.close()


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def kill(process: psutil.Process) -> None:
    os.kill(process.pid, signal.SIGKILL)
