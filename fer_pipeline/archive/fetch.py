"""Fetch records: read the next records' bytes while this one is processed, and open each video once for all its frames."""

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import closing, contextmanager
from itertools import groupby
from threading import Event
from typing import TypeVar

from fer_pipeline.archive.formats.spec import Frame
from fer_pipeline.archive.reader import RecordReader, blocks, record_error
from fer_pipeline.archive.record import Record
from fer_pipeline.base import storage
from fer_pipeline.base.errors import RecordError
from fer_pipeline.base.isolated import alive_at
from fer_pipeline.base.read_ahead import read_ahead

RECORDS_AHEAD, BYTES_AHEAD = 8, 256 * 1024**2
LOCAL_TIMEOUT_S = 40.0
"""Time limit for reading a file of a file system."""
STORE_TIMEOUT_S = 300.0
"""Time limit for reading from a store, with its retries, or from a container; the unpacking of a container does not count."""

Fetched = bytes | Frame | RecordError
Read = TypeVar("Read")


@contextmanager
def fetch(
    records: Iterable[Record | RecordError], max_bytes: int, image_column: str | None = None
) -> Iterator[Iterator[Fetched]]:
    """Yield an iterator of each record's encoded image or frame, or its error, in order; RecordErrors are passed on.

    Up to `RECORDS_AHEAD` records, or runs of neighbours in a container, and `BYTES_AHEAD` are read ahead. Records above
    `max_bytes` are not read.
    The reading threads end with the context. The garbage collector must not end them: it may run in a thread that is starting.
    """
    with closing(_fetched(records, max_bytes, image_column)) as fetched:
        yield fetched


def _fetched(records: Iterable[Record | RecordError], max_bytes: int, image_column: str | None) -> Generator[Fetched]:
    reader = RecordReader(image_column)
    try:
        for in_sequence, group in groupby(records, key=_in_sequence):
            if in_sequence:
                yield from _frames(reader, group)
            else:
                yield from _images(reader, group, max_bytes)
    finally:
        reader.close()


def _in_sequence(record: Record | RecordError) -> tuple[str, str | None, int | None] | None:
    """Return the file, the member and the offset of the video that a record is a frame of; None if it is no frame."""
    if isinstance(record, RecordError) or record.time_ms is None or record.error:
        return None
    return record.uri, record.member, record.offset


def _frames(reader: RecordReader, records: Iterable[Record | RecordError]) -> Iterator[Fetched]:
    """Yield frames of one video. A thread opens it, so that its time limit does not depend on what hangs."""
    pool, stuck, uri = ThreadPoolExecutor(1, thread_name_prefix="frames"), Event(), ""
    found: Fetched = RecordError("timed_out", "")
    try:
        for record in records:
            if isinstance(record, RecordError):
                yield record
                continue
            uri = record.uri
            if not stuck.is_set():
                (found,) = _taken([record], pool.submit(reader.frame, record), stuck)
            yield found  # of a video that is stuck all frames have one error
    finally:
        reader.release(uri)
        pool.shutdown(wait=not stuck.is_set(), cancel_futures=True)


def _images(reader: RecordReader, records: Iterable[Record | RecordError], max_bytes: int) -> Iterator[Fetched]:
    pool, stuck = ThreadPoolExecutor(RECORDS_AHEAD, thread_name_prefix="fetch"), Event()
    bounded = blocks(_bounded(record, max_bytes) for record in records)
    try:
        for block, read in read_ahead(
            bounded, lambda block: pool.submit(reader.read_block, block), RECORDS_AHEAD, _size, BYTES_AHEAD
        ):
            yield from _taken(block, read, stuck)
    finally:
        pool.shutdown(wait=not stuck.is_set(), cancel_futures=True)  # a thread that hangs in a read cannot be stopped


def _size(block: list[Record | RecordError]) -> int:
    """Return the size of a block of records in bytes; unknown sizes count as 0."""
    return sum(record.size_bytes or 0 for record in block if isinstance(record, Record))


def _taken(block: Sequence[Record | RecordError], read: "Future[list[Read]]", stuck: Event) -> "list[Read | RecordError]":
    """Return the bytes or errors of a block of records; set `stuck` if reading it exceeds the time limit."""
    first = block[0]
    plain = isinstance(first, Record) and first.member is None and storage.is_local(first.uri)
    limit_s = left_s = LOCAL_TIMEOUT_S if plain else STORE_TIMEOUT_S
    while True:
        try:
            return [*read.result(left_s)]
        except FutureTimeoutError as late:
            left_s = alive_at() + limit_s - time.monotonic()
            if left_s > 0:  # its container is being unpacked
                continue
            stuck.set()
            if isinstance(first, Record) and not storage.is_local(first.uri):
                record_error(first, late)  # raises if the store is down
            return [RecordError("timed_out", f"reading it took longer than {limit_s:g} s")] * len(block)


def _bounded(record: Record | RecordError, max_bytes: int) -> Record | RecordError:
    if isinstance(record, Record) and (record.size_bytes or 0) > max_bytes:
        return RecordError("too_large", f"{record.size_bytes} bytes are more than the limit of {max_bytes}")
    return record
