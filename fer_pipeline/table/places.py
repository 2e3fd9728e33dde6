"""Where the images of a table's rows are. Containers are listed again: a table does not say where a member is in its own."""

import logging
from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa

from fer_pipeline.archive.files import Selection
from fer_pipeline.archive.listing import Listing
from fer_pipeline.archive.record import Record
from fer_pipeline.base import storage
from fer_pipeline.base.errors import JobError, RecordError

log = logging.getLogger(__name__)


def find_images(rows: pa.Table, is_ours: Callable[[str], bool]) -> list[Record | None]:
    """Return where the image of each row is (`uri, member, time_ms, etag, size_bytes`); None where a container has it no more.

    Only containers for which `is_ours` holds are opened.
    """
    keys = list(zip(*(rows[name].to_pylist() for name in ("uri", "member", "time_ms", "etag", "size_bytes")), strict=True))
    inside = {uri: _members(uri) for uri in {uri for uri, member, *_ in keys if member is not None and is_ours(uri)}}
    found: list[Record | None] = []
    for uri, member, time_ms, etag, size_bytes in keys:
        record = Record(uri, size_bytes=size_bytes) if member is None else inside.get(uri, {}).get(member)
        found.append(record and replace(record, time_ms=time_ms, etag=etag))  # a file that changed since is refused
    return found


def _members(container: str) -> dict[str | None, Record]:
    """Return the records in a container by member; none if it is gone or unreadable."""
    try:
        return {record.member: record for record in Listing(container, Selection(fps=1.0)) if not record.error}
    except (JobError, RecordError, OSError) as error:
        log.warning("'%s' cannot be listed: %s", container, storage.reason(error))
        return {}
