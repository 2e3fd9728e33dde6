"""An S3 server with conditional writes on loopback, and the two places that nights are run in."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import s3fs

from tests.s3.swift import free_port


@pytest.fixture(scope="session", autouse=True)
def moto() -> Iterator[str]:
    """Start the server and set the environment as AWS users do, before any Ray is started; yield the endpoint.

    A process of its own: the Delta library keeps the interpreter's lock while it waits for an answer.
    """
    endpoint = f"http://127.0.0.1:{(port := free_port())}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "nights",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    for _ in range(300):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.1)
    yield endpoint
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.terminate()
    server.wait()


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.long)])
def place(request: pytest.FixtureRequest, moto: str, local_ray: None, tmp_path: Path) -> str:
    """A folder or bucket for source, runs and table."""
    if request.param == "disk":
        return str(tmp_path)
    bucket = "nights-" + "".join(one for one in tmp_path.name.lower() if one.isalnum())
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(bucket)
    return f"s3://{bucket}"
