"""Source formats: what an archive may hold. One file each, and the table `FORMATS`."""

import posixpath

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
