"""An S3 server with conditional writes on loopback, and the two places that nights are run in."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from moto.server import ThreadedMotoServer


@pytest.fixture(scope="session", autouse=True)
def moto() -> Iterator[str]:
    """Start the server and set the environment as AWS users do, before any Ray is started; yield the endpoint."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "nights",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    yield settings["AWS_ENDPOINT_URL"]
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.stop()


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.long)])
def place(request: pytest.FixtureRequest, moto: str, local_ray: None, tmp_path: Path) -> str:
    """A folder or bucket for source, runs and table."""
    if request.param == "disk":
        return str(tmp_path)
    bucket = "nights-" + "".join(one for one in tmp_path.name.lower() if one.isalnum())
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(bucket)
    return f"s3://{bucket}"
