"""Fetching reads ahead in threads, which end where the reader of the records says so."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from fer_pipeline.archive import fetch as module
from fer_pipeline.archive.fetch import fetch
from fer_pipeline.archive.listing import Listing
from fer_pipeline.archive.record import Record
from fer_pipeline.base import storage
from fer_pipeline.base.errors import OutageError
from fer_pipeline.labelling.labeller import Labeller
from fer_pipeline.labelling.manifest import manifest_table


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fetch")]


def test_no_thread_reads_on_after_the_context(archive: Path) -> None:
    with fetch(list(Listing(str(archive))), 2**28) as fetched:
        next(fetched)
        assert readers()
    assert not readers()


def test_large_files_are_not_read_far_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BYTES_AHEAD", 2500)
    records = [Record(str(tmp_path / f"{number}.bmp"), size_bytes=1000) for number in range(7)]
    for record in records:
        Path(record.uri).write_bytes(b"x" * 1000)
    read, reading = list[str](), storage.read_bytes

    def counted(url: str, etag: str | None = None) -> bytes:
        read.append(url)
        return reading(url, etag)

    monkeypatch.setattr(storage, "read_bytes", counted)
    with fetch(records, 2**28) as fetched:
        assert next(fetched) == b"x" * 1000 and len(read) <= 3
        assert [len(one) for one in fetched if isinstance(one, bytes)] == [1000] * 6


class Refusing:
    """A store of which some requests fail: with the connection (0), or an HTTP status."""

    def __init__(self, failing: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
        self.failing = failing
        self.server = HTTPServer(("127.0.0.1", 0), type("Handler", (BaseHTTPRequestHandler,), {
            "do_GET": lambda handler: self.answer(handler), "do_HEAD": lambda handler: self.answer(handler),
            "log_message": lambda *_: None,
        }))  # fmt: skip
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        settings = {"ENDPOINT_URL": f"http://127.0.0.1:{self.server.server_port}", "MAX_ATTEMPTS": "1", "ACCESS_KEY_ID": "x",
                    "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "us-east-1"}  # fmt: skip
        for name, value in settings.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        S3FileSystem.clear_instance_cache()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        what = "list" if "list-type" in handler.path or handler.path.count("/") == 1 else "object"
        status = self.failing.get(what, 404)
        if status == 0:
            handler.connection.close()
            return
        body = b"<ListBucketResult/>" if status == 200 else b""
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, int]], None]]:
    stores: list[Refusing] = []
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    yield lambda failing: stores.append(Refusing(failing, monkeypatch))
    for one in stores:
        one.server.shutdown()
        one.server.server_close()


NAMES = ("a.jpg", "a.tar", "a.zip", "a.parquet", "a.mp4")


def record_in(name: str, etag: str | None) -> Record:
    place = {"time_ms": 0} if name.endswith("mp4") else {} if name.endswith("jpg") else {"member": "1.jpg", "offset": 0}
    return Record(f"s3://bucket/{name}", size_bytes=9, etag=etag, **place)


def labelled_status(record: Record, labeller: Labeller) -> str:
    (rows,) = labeller([manifest_table([record], 0, 0)])
    status: str = rows["status"][0].as_py()
    return status


@pytest.mark.parametrize("etag", ["1", None])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("status", [0, 503])
def test_a_store_that_is_down_is_no_records_fault(
    status: int, name: str, etag: str | None, refusing: Callable[[dict[str, int]], None], labeller: Labeller
) -> None:
    refusing({"list": status, "object": status})
    with pytest.raises(OutageError, match="the store of 's3://bucket/a"):
        labelled_status(record_in(name, etag), labeller)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("status", [0, 503])
def test_one_object_that_fails_while_its_store_answers_is_a_records_fault(
    status: int, name: str, refusing: Callable[[dict[str, int]], None], labeller: Labeller
) -> None:
    refusing({"list": 200, "object": status})
    assert labelled_status(record_in(name, "1"), labeller) in ("unreadable", "undecodable")


def test_a_read_that_hangs_does_not_hold_up_the_outage(
    refusing: Callable[[dict[str, int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that hangs is left behind; waiting for it would never end."""
    refusing({"list": 503, "object": 503})
    go_on = threading.Event()
    monkeypatch.setattr(module, "STORE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(storage, "read_bytes", lambda *_: go_on.wait(120))
    try:
        with pytest.raises(OutageError), fetch([record_in("a.jpg", "1")], 2**28) as fetched:
            next(fetched)
        assert not go_on.is_set() and readers()
    finally:
        go_on.set()
        for thread in threading.enumerate():
            if thread.name.startswith("fetch"):
                thread.join()  # the next test counts the threads that are left


@pytest.mark.slow
@pytest.mark.long
def test_a_store_whose_port_is_closed_is_no_records_fault_after_all_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "x")
    record = Record("s3://closed/a.jpg", size_bytes=1, etag="1")
    with pytest.raises(OutageError, match="EndpointConnectionError"), fetch([record], 2**28) as fetched:
        next(fetched)


def test_no_thread_reads_on_after_a_shard(labeller: Labeller, archive: Path) -> None:
    """A generator that is left to the garbage collector joins its threads in a thread that is being born: a deadlock."""
    (shard,) = labeller([manifest_table(list(Listing(str(archive))), 0, 0)])
    assert len(shard) == 36 and not readers()
