"""Fetching reads ahead in threads, which end where the reader of the records says so."""

import threading
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError

from fer_pipeline.core import storage
from fer_pipeline.core.errors import OutageError
from fer_pipeline.core.manifest import Record, manifest_table
from fer_pipeline.sources.listing import Listing
from fer_pipeline.stages import fetch as module
from fer_pipeline.stages.fetch import fetch
from fer_pipeline.stages.label import FaceExtractor


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


def test_a_store_that_is_down_is_no_records_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*arguments: object, **options: object) -> None:
        raise EndpointConnectionError(endpoint_url="http://store")

    monkeypatch.setattr(storage, "require_version", down)
    with (
        pytest.raises(OutageError, match="does not answer"),
        fetch([Record(str(tmp_path / "none.jpg"), etag="1")], 2**28) as fetched,
    ):
        next(fetched)


@pytest.mark.slow
@pytest.mark.long
def test_a_store_whose_port_is_closed_is_no_records_fault_after_all_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "x")
    record = Record("s3://closed/a.jpg", size_bytes=1, etag="1")
    with pytest.raises(OutageError, match="EndpointConnectionError"), fetch([record], 2**28) as fetched:
        next(fetched)


def test_no_thread_reads_on_after_a_shard(extract: FaceExtractor, archive: Path) -> None:
    """A generator that is left to the garbage collector joins its threads in a thread that is being born: a deadlock."""
    (shard,) = extract([manifest_table(list(Listing(str(archive))), 0, 0)])
    assert len(shard.outcomes) == 36 and not readers()
