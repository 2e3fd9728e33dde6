"""Sources, runs and tables on Azure, on Microsoft's local server Azurite (`make test-azure` installs it with npm)."""

import base64
import hashlib
import hmac
import os
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from fer_pipeline.archive.walk import list_files
from fer_pipeline.base import storage
from fer_pipeline.base.errors import ChangedError, UserError
from fer_pipeline.base.storage import objects, parquet
from fer_pipeline.jobs import nightly
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.jobs.nightly import NightlyConfig
from fer_pipeline.table.delta import LabelTable

pytestmark = pytest.mark.azure
PROGRAM = Path(__file__).resolve().parents[2] / ".venv/azurite/node_modules/.bin/azurite-blob"
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The public key of every Azurite."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An Azurite, and the environment that leads to it, as Azure's own tools take it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    options = ["--silent", "--disableTelemetry", "--inMemoryPersistence", "--skipApiVersionCheck"]
    process = subprocess.Popen([PROGRAM, *options, "--blobHost", "127.0.0.1", "--blobPort", str(port)])
    settings = {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURITE_BLOB_STORAGE_URL": address}
    os.environ.update(settings)
    try:
        until = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < until and process.poll() is None, "Azurite does not start"
            time.sleep(0.1)
        yield address
    finally:
        for name in settings:
            os.environ.pop(name)
        process.terminate()
        process.wait()


@pytest.fixture
def container(server: str, request: pytest.FixtureRequest) -> str:
    """An empty container of the test's own."""
    name, date, version = (
        re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:50].strip("-"),
        formatdate(usegmt=True),
        "2021-08-06",
    )
    lines = [
        "PUT",
        *[""] * 11,
        f"x-ms-date:{date}",
        f"x-ms-version:{version}",
        f"/{ACCOUNT}/{ACCOUNT}/{name}",
        "restype:container",
    ]
    signature = base64.b64encode(hmac.new(base64.b64decode(KEY), "\n".join(lines).encode(), hashlib.sha256).digest()).decode()
    headers = {
        "x-ms-date": date,
        "x-ms-version": version,
        "Authorization": f"SharedKey {ACCOUNT}:{signature}",
        "Content-Length": "0",
    }
    url = f"{server}/{ACCOUNT}/{name}?restype=container"
    urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers))
    return f"az://{name}"


def test_objects_are_written_listed_read_and_removed(container: str) -> None:
    names = ["a b.jpg", "d#e%20?x=1.jpg", "f/g/ä.jpg", "f/z.jpg", "big"]
    for name in names:
        storage.write_bytes(f"{container}/{name}", name.encode() * (5_000_000 if name == "big" else 1))
    assert [file.uri.removeprefix(f"{container}/") for file in list_files(container)] == sorted(names)
    assert storage.list_names(container) == ["a b.jpg", "big", "d#e%20?x=1.jpg", "f"]
    assert storage.list_below(container) == sorted(names) and storage.list_below(f"{container}/f") == ["g/ä.jpg", "z.jpg"]
    assert all(storage.read_bytes(f"{container}/{name}") == name.encode() for name in names[:4])
    assert objects.size_and_etag(f"{container}/big")[0] == 15_000_000
    assert storage.exists(container) and storage.exists(f"{container}/f") and not storage.exists(f"{container}/none")
    (only,) = list_files(f"{container}/f/z.jpg")
    assert (only.uri, only.size_bytes) == (f"{container}/f/z.jpg", 7)
    storage.remove(f"{container}/big")
    storage.remove(f"{container}/big")
    assert not storage.exists(f"{container}/big")
    storage.require_access(container)
    with pytest.raises(UserError, match="cannot be reached"):
        storage.require_access(f"{container}-none")


def test_another_version_is_refused_and_an_object_is_created_once(container: str) -> None:
    url = f"{container}/a.txt"
    assert storage.create(url, b"0123456789") and not storage.create(url, b"other")
    storage.require_exclusive_writes(container)
    size, etag = objects.size_and_etag(url)
    assert storage.read_range(url, 3, 4, etag) == b"3456" and size == 10
    with storage.open_version(url, etag, 4) as opened:
        assert opened.read(2) == b"01"
        storage.write_bytes(url, b"abcdefghij")
        with pytest.raises(ChangedError):
            opened.seek(8)
            opened.read(2)
    for read in (storage.read_bytes, storage.require_version, lambda url, etag: storage.open_version(url, etag, 4)):
        with pytest.raises(ChangedError):
            read(url, etag)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{container}/none", etag)


def test_an_archive_is_labelled_and_published_and_labelled_again_the_next_night(
    container: str, archive: Path, tmp_path: Path, local_ray: None
) -> None:
    for path in archive.rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{container}/archive/{path.relative_to(archive).as_posix()}", path.read_bytes())
    settings = {"detector": "none", "shard_records": 8}
    here = label.run(LabelConfig.model_validate(settings | {"source": str(archive), "out": str(tmp_path / "run")}))
    there = label.run(LabelConfig.model_validate(settings | {"source": f"{container}/archive", "out": f"{container}/run"}))
    assert there.result is not None and here.result is not None and there.result.counts == here.result.counts
    assert parquet.read_table(f"{container}/run/images/000000.parquet").num_rows == 8
    night = settings | {"source": f"{container}/archive", "out": f"{container}/night", "table": f"{container}/table"}
    night |= {"page": str(tmp_path / "nights.html")}
    first = nightly.run(NightlyConfig.model_validate(night))
    assert first.state == "published"
    storage.write_bytes(f"{container}/archive/new.jpg", next(archive.rglob("hopper-640.jpg")).read_bytes())
    nightly.run(NightlyConfig.model_validate(night | {"out": f"{container}/second"}))
    assert LabelTable(f"{container}/table").rows == here.records + 1
