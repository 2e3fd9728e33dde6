"""Fetch: the next records' bytes are read while this one is worked on; videos are opened once for the frames asked of them."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

from fer_pipeline.core.errors import RecordError
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.reader import Reader, blocks
from fer_pipeline.sources.videos import Video

AHEAD = 8


@dataclass(frozen=True)
class Frame:
    """A moment of an opened video, not yet decoded."""

    video: Video
    time_ms: int


Fetched = bytes | Frame | RecordError


def fetch(records: Iterable[Record | RecordError], max_bytes: int, image_column: str | None = None) -> Generator[Fetched]:
    """Yield, in order, each record's encoded image or frame, or why there is none (a RecordError is passed on).

    Up to `AHEAD` records, or runs of neighbours in a container, are read ahead; a record of more than `max_bytes` is not read.
    """
    reader = Reader(image_column)
    try:
        for video, group in groupby(records, key=_video_of):
            if video:
                yield from _frames(video, group)
            else:
                yield from _images(reader, group, max_bytes)
    finally:
        reader.close()


def _video_of(record: Record | RecordError) -> str | None:
    return record.uri if isinstance(record, Record) and record.time_ms is not None else None


def _frames(uri: str, records: Iterable[Record | RecordError]) -> Iterator[Fetched]:
    video = Video(uri)
    for record in records:
        yield Frame(video, record.time_ms or 0) if isinstance(record, Record) else record
    video.close()


def _images(reader: Reader, records: Iterable[Record | RecordError], max_bytes: int) -> Iterator[Fetched]:
    waiting: deque[Future[list[bytes | RecordError]]] = deque()
    with ThreadPoolExecutor(AHEAD, thread_name_prefix="fetch") as pool:
        for block in blocks(_bounded(record, max_bytes) for record in records):
            waiting.append(pool.submit(reader.read_block, block))
            if len(waiting) > AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _bounded(record: Record | RecordError, max_bytes: int) -> Record | RecordError:
    if isinstance(record, Record) and (record.size_bytes or 0) > max_bytes:
        return RecordError("too_large", f"{record.size_bytes} bytes are more than the limit of {max_bytes}")
    return record
