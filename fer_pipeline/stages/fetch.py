"""Fetch: the next records' bytes are read while this one is worked on; videos are opened once for the frames asked of them."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import closing, contextmanager
from functools import partial
from itertools import groupby
from threading import Event

from fer_pipeline.core import storage
from fer_pipeline.core.boundary import as_file_error
from fer_pipeline.core.errors import RecordError
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.formats import format_of
from fer_pipeline.sources.formats.spec import Frame, OpenFile
from fer_pipeline.sources.reader import RecordReader, blocks, why

RECORDS_AHEAD, BYTES_AHEAD = 8, 256 * 1024**2
LOCAL_TIMEOUT_S, STORE_TIMEOUT_S = 40.0, 300.0
"""Time that reading may take: a file of a file system; and neighbours in a container, which may have to be unpacked first, or
whatever a store gives with its retries."""

Fetched = bytes | Frame | RecordError


@contextmanager
def fetch(
    records: Iterable[Record | RecordError], max_bytes: int, image_column: str | None = None
) -> Iterator[Iterator[Fetched]]:
    """Give, in order, each record's encoded image or frame, or why there is none (a RecordError is passed on).

    Up to `RECORDS_AHEAD` records, or runs of neighbours in a container, and `BYTES_AHEAD` are read ahead. Records above
    `max_bytes` are not read.
    The threads that read end with the context: the garbage collector may not end them, it can run in one that is being born.
    """
    with closing(_fetched(records, max_bytes, image_column)) as fetched:
        yield fetched


def _fetched(records: Iterable[Record | RecordError], max_bytes: int, image_column: str | None) -> Generator[Fetched]:
    reader = RecordReader(image_column)
    try:
        for in_sequence, group in groupby(records, key=_in_sequence):
            if in_sequence:
                yield from _frames(in_sequence, group)
            else:
                yield from _images(reader, group, max_bytes)
    finally:
        reader.close()


def _in_sequence(record: Record | RecordError) -> str | None:
    """Return the file of a record that is decoded in sequence; None for any other."""
    if isinstance(record, RecordError) or record.time_ms is None or record.error:
        return None
    source_format = format_of(record.uri)
    return record.uri if source_format and source_format.in_sequence else None


def _frames(uri: str, records: Iterable[Record | RecordError]) -> Iterator[Fetched]:
    source_format = format_of(uri)
    assert source_format
    opened: OpenFile | None = None
    for record in records:
        if isinstance(record, RecordError):
            yield record
            continue
        try:
            opened = opened or source_format.open(uri, record.etag, None)
            yield opened.read(record, partial(storage.read_range, uri)) or RecordError("undecodable", "there is no frame")
        except Exception as error:  # noqa: BLE001 (the boundary around one record)
            yield as_file_error(uri, error, "undecodable")
    if opened:
        opened.close()


def _images(reader: RecordReader, records: Iterable[Record | RecordError], max_bytes: int) -> Iterator[Fetched]:
    waiting: deque[tuple[list[Record | RecordError], Future[list[bytes | RecordError]]]] = deque()
    pool, stuck = ThreadPoolExecutor(RECORDS_AHEAD, thread_name_prefix="fetch"), Event()
    try:
        for block in blocks(_bounded(record, max_bytes) for record in records):
            while waiting and (len(waiting) > RECORDS_AHEAD or _size(block, *(ahead for ahead, _ in waiting)) > BYTES_AHEAD):
                yield from _taken(*waiting.popleft(), stuck)
            waiting.append((block, pool.submit(reader.read_block, block)))
        while waiting:
            yield from _taken(*waiting.popleft(), stuck)
    finally:
        pool.shutdown(wait=not stuck.is_set(), cancel_futures=True)  # a thread that hangs in a read cannot be ended


def _size(*some: list[Record | RecordError]) -> int:
    """Return how many bytes these blocks of records take, as far as it is known."""
    return sum(record.size_bytes or 0 for block in some for record in block if isinstance(record, Record))


def _taken(
    block: list[Record | RecordError], read: "Future[list[bytes | RecordError]]", stuck: Event
) -> list[bytes | RecordError]:
    """Return what a block of records came to; set `stuck` where reading it hangs."""
    first = block[0]
    plain = isinstance(first, Record) and first.member is None and storage.is_local(first.uri)
    limit_s = LOCAL_TIMEOUT_S if plain else STORE_TIMEOUT_S
    try:
        return read.result(limit_s)
    except FutureTimeoutError as late:
        stuck.set()
        if isinstance(first, Record) and not storage.is_local(first.uri):
            why(first, late)  # which raises where the store is down
        return [RecordError("timed_out", f"reading it took longer than {limit_s:g} s")] * len(block)


def _bounded(record: Record | RecordError, max_bytes: int) -> Record | RecordError:
    if isinstance(record, Record) and (record.size_bytes or 0) > max_bytes:
        return RecordError("too_large", f"{record.size_bytes} bytes are more than the limit of {max_bytes}")
    return record
