"""The S3 server of the session, and one proxy in front of it for all tests."""

import contextlib
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fer_pipeline.base import storage
from tests.s3.swift import ACCESS_KEY, REGION, SECRET_KEY, Swift, free_port

ROOT = Path(__file__).resolve().parents[2]
SetFaults = Callable[..., None]


class Store:
    """The endpoint behind the proxy, and its faults."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def _control(self, method: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.endpoint}/-/faults", data, method=method)
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read())  # type: ignore[no-any-return]

    def fail(self, **faults: Any) -> None:
        """Inject these faults from now on, and no others."""
        self._control("PUT", faults)

    def traffic(self) -> tuple[int, int]:
        """Return the requests and the bytes sent in answer since the faults were set."""
        seen = self._control("GET")
        return seen["requests"], seen["bytes_sent"]

    def injected(self) -> dict[str, int]:
        """Return how many faults of each kind were injected since they were set."""
        return self._control("GET")["injected"]  # type: ignore[no-any-return]


@contextlib.contextmanager
def running_store(folder: Path) -> Iterator[tuple[Store, Swift]]:
    """Start Swift and the proxy, set the environment as AWS users do, and stop them again."""
    swift, port = Swift(folder), free_port()
    swift.start()
    command = [sys.executable, "-m", "tests.s3.proxy", swift.endpoint, str(port)]
    proxy = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": REGION,
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        assert proxy.stdout is not None and proxy.stdout.readline()
        yield Store(settings["AWS_ENDPOINT_URL"]), swift
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        proxy.terminate()
        proxy.wait()
        swift.stop()


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with running_store(tmp_path_factory.mktemp("swift") / "swift") as (store, _):
        yield store


@pytest.fixture
def store(running: Store) -> Iterator[Store]:
    """The S3 server, without faults until a test sets some."""
    running.fail()
    yield running
    running.fail()


@pytest.fixture
def bucket(store: Store, request: pytest.FixtureRequest) -> str:
    """An empty bucket of the test's own."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:60].strip("-")
    fs, path = storage.open_filesystem(f"s3://{name}")
    fs.mkdir(path)
    return f"s3://{name}"


@pytest.fixture
def uploaded(bucket: str, archive: Path) -> str:
    """The sample archive in the bucket."""
    upload(archive, f"{bucket}/archive")
    return f"{bucket}/archive"


def upload(folder: Path, url: str) -> None:
    """Put every file below a folder into the store."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            storage.write_bytes(f"{url}/{path.relative_to(folder).as_posix()}", path.read_bytes())
