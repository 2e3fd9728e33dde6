"""Source formats: what an archive may hold. One file each, and the table `FORMATS`."""

import posixpath
from collections.abc import Iterator
from typing import Any

from fer_pipeline.core import storage
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.files import MOST_BYTES, File, Selection
from fer_pipeline.sources.formats.images import IMAGE
from fer_pipeline.sources.formats.parquets import PARQUET
from fer_pipeline.sources.formats.spec import SourceFormat
from fer_pipeline.sources.formats.tars import TAR
from fer_pipeline.sources.formats.videos import VIDEO
from fer_pipeline.sources.formats.zips import ZIP

FORMATS: dict[str, SourceFormat] = {one.name: one for one in (IMAGE, TAR, ZIP, PARQUET, VIDEO)}
"""Every source format. What `Record.offset` means in it:

image      not used
tar        first byte of the member's content; in a compressed tar, of the decompressed stream
zip        first byte of the member's local header
parquet    number of the row in its file
video      not used; `time_ms` is the moment
"""


def format_of(name: str) -> SourceFormat | None:
    """Return the format that a file's name speaks for; None where it speaks for none."""
    base = posixpath.basename(name).lower()
    if base.startswith("._"):  # what macOS leaves beside a file
        return None
    return next((one for one in FORMATS.values() if base.endswith(one.extensions)), None)


def list_container(name: str, file: dict[str, Any], selection: dict[str, Any]) -> Iterator[str | tuple[Any, ...]]:
    """Yield what a file of the format `name` holds: names, and records as member, offset, stored bytes, moment, size.

    All passes as JSON, since this runs in a process of its own (`core/isolated.py`).
    """
    try:
        yield from _entries(FORMATS[name].list_records(File(**file), Selection(**selection)))
    except Exception as error:
        # zipfile calls a file that it could not read no zip file.
        if any(storage.says_store_failed(one) for one in (error, error.__cause__, error.__context__)):
            storage.require_store(file["uri"])
        raise


def _entries(found: Iterator[Record | str]) -> Iterator[str | tuple[Any, ...]]:
    for entry in found:
        if not isinstance(entry, Record):
            yield entry
            continue
        numbers = entry.offset, entry.stored_bytes, entry.time_ms, entry.size_bytes
        if any(number is not None and not 0 <= number <= MOST_BYTES for number in numbers):
            raise ValueError(f"the member {entry.member!r:.60} has an impossible place or size")
        yield entry.member, *numbers
