"""Source formats: what an archive may hold. One file each, and the table `FORMATS`."""

import posixpath
from functools import lru_cache

from fer_pipeline.archive.formats.arrows import ARROW
from fer_pipeline.archive.formats.images import IMAGE, says_image
from fer_pipeline.archive.formats.parquets import PARQUET
from fer_pipeline.archive.formats.spec import SourceFormat
from fer_pipeline.archive.formats.tars import TAR
from fer_pipeline.archive.formats.tiffs import TIFF_PAGES
from fer_pipeline.archive.formats.videos import VIDEO
from fer_pipeline.archive.formats.zips import ZIP
from fer_pipeline.archive.signatures import HEAD_BYTES, Kind, kind_of
from fer_pipeline.base import storage

FORMATS: dict[str, SourceFormat] = {one.name: one for one in (IMAGE, TAR, ZIP, PARQUET, ARROW, VIDEO, TIFF_PAGES)}
"""Every source format. What `Record.offset` means in it:

image      not used
tar        first byte of the member's content; in a compressed tar, of the decompressed stream
zip        first byte of the member's local header
parquet    number of the row in its file and, in a list, `rows.ELEMENT` times that of the image in the row
arrow      the same with the number of the row in its batch, and `arrows.BATCH` times that of the batch
video      not used; `time_ms` is the moment
tiff       first byte of the page's directory
"""


def format_of(name: str) -> SourceFormat | None:
    """Return the format that a file's name speaks for, a plain image for a TIFF; None where it speaks for none."""
    base = posixpath.basename(name).lower()
    if base.startswith("._"):  # what macOS leaves beside a file
        return None
    return next((one for one in FORMATS.values() if base.endswith(one.extensions)), None)


@lru_cache(10_000)
def kind_at(uri: str, etag: str | None) -> Kind | None:
    """Return the kind of a file by its first bytes. `etag`: of the version that was listed. Raise what its storage raises."""
    return kind_of(storage.read_range(uri, 0, HEAD_BYTES, etag))


def format_at(uri: str, etag: str | None) -> SourceFormat | None:
    """Return the format of a file by its name or, if that does not tell, by its first bytes."""
    by_name = format_of(uri)
    if by_name or says_image(uri) is False:
        return by_name
    kind = kind_at(uri, etag)
    return FORMATS.get(kind.format or "") if kind else None
