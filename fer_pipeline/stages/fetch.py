"""Fetch: the next records' bytes are read while this one is worked on."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from fer_pipeline.core.errors import RecordError
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.containers import Reader


def fetch(records: Sequence[Record], max_bytes: int, ahead: int = 8) -> Iterator[bytes | RecordError]:
    """Yield, in order, each record's encoded image, or why there is none; up to `ahead` records are read ahead.

    A record of more than `max_bytes` is not read.
    """
    reader = Reader()

    def read(record: Record) -> bytes | RecordError:
        if (record.size_bytes or 0) > max_bytes:
            return RecordError("too_large", f"{record.size_bytes} bytes are more than the limit of {max_bytes}")
        try:
            return reader.read(record)
        except RecordError as error:
            return error

    waiting: deque[Future[bytes | RecordError]] = deque()
    with ThreadPoolExecutor(min(ahead, 8), thread_name_prefix="fetch") as pool:
        for record in records:
            waiting.append(pool.submit(read, record))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    reader.close()
