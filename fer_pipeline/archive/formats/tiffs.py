"""TIFF: lists the pages of a file, and extracts one. With `--pages all` each page is a record.

Sources: TIFF 6.0, Adobe's TIFF technical notes (SubIFDs), the BigTIFF design, DNG 1.6.
"""

import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from fer_pipeline.archive.files import File, Selection
from fer_pipeline.archive.formats.images import list_image
from fer_pipeline.archive.formats.spec import Ranged, ReadRange, SourceFormat
from fer_pipeline.archive.record import Record, Skipped
from fer_pipeline.base import storage
from fer_pipeline.base.errors import ChangedError
from fer_pipeline.base.memory import MAX_FILE_BYTES

MOST_PAGES, MOST_TAGS = 10_000, 1_000
NEW_SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, PHOTOMETRIC, ORIENTATION, SUB_IFDS = 254, 255, 256, 257, 262, 274, 330
"""Tags."""
REDUCED, MASK, OLD_REDUCED = 1, 4, 2
"""Values of the subfile tags."""
SENSOR_DATA = frozenset((32803, 34892))
"""Values of PHOTOMETRIC for what a camera's sensor gave: CFA and LinearRaw."""
CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
"""The code in `struct` of each type of integers: BYTE, SHORT, LONG, IFD, LONG8, IFD8."""
MOST_VALUES = 64
"""Values that are read of one tag."""


@dataclass(frozen=True)
class Page:
    """A page of a TIFF, or a picture below one (a SubIFD)."""

    offset: int
    """Of its directory."""
    end: int
    """Of its directory, where the offset of the next one stands."""
    width: int
    height: int
    is_reduced: bool
    """Whether it is a small copy, such as a thumbnail, or a mask, of another one."""
    is_sensor_data: bool
    is_below: bool
    """Whether it is a SubIFD."""
    orientation: int
    """As in EXIF."""
    inherited_orientation: int
    """That of the page above, for a picture below it that says none; else 1."""


class _Reader:
    """The directories of a TIFF."""

    def __init__(self, data: bytes) -> None:
        self.data, self.order = data, "<" if data[:2] == b"II" else ">"
        self.is_big = struct.unpack_from(f"{self.order}H", data, 2)[0] == 43
        self.offset_code, self.first_place = ("Q", 8) if self.is_big else ("I", 4)

    def number(self, code: str, place: int) -> int:
        return int(struct.unpack_from(self.order + code, self.data, place)[0])

    def directory(self, offset: int) -> tuple[dict[int, list[int]], int]:
        """Return the integers of each tag of a directory, and where the offset of the next directory stands."""
        count = self.number("Q" if self.is_big else "H", offset)
        first, size = (offset + 8, 20) if self.is_big else (offset + 2, 12)
        if count > MOST_TAGS or first + count * size > len(self.data):
            raise struct.error("a directory has too many tags, or ends beyond the file")
        return dict(self._entry(first + index * size) for index in range(count)), first + count * size

    def _entry(self, place: int) -> tuple[int, list[int]]:
        tag, kind = self.number("H", place), self.number("H", place + 2)
        code, offset_size = CODES.get(kind), struct.calcsize(f"<{self.offset_code}")
        if code is None:
            return tag, []
        count, value_place, size = self.number(self.offset_code, place + 4), place + 4 + offset_size, struct.calcsize(f"<{code}")
        if count * size > offset_size:
            value_place = self.number(self.offset_code, value_place)
        return tag, [self.number(code, value_place + index * size) for index in range(min(count, MOST_VALUES))]


def pages_of(data: bytes) -> list[Page]:
    """Return the pages of a TIFF in order, each followed by the pictures below it, up to any damage."""
    found, seen = list[Page](), set[int]()
    try:
        reader = _Reader(data)
        offset = reader.number(reader.offset_code, reader.first_place)
        while offset and offset not in seen and len(seen) < MOST_PAGES:
            seen.add(offset)
            tags, end = reader.directory(offset)
            page = _page(offset, end, tags, None)
            found.append(page)
            for below in tags.get(SUB_IFDS, []):
                if below not in seen:
                    seen.add(below)
                    below_tags, below_end = reader.directory(below)
                    found.append(_page(below, below_end, below_tags, page))
            offset = reader.number(reader.offset_code, end)
    except (struct.error, OverflowError):
        pass
    return found


def _page(offset: int, end: int, tags: dict[int, list[int]], above: Page | None) -> Page:
    def value(tag: int, default: int) -> int:
        return (tags.get(tag) or [default])[0]

    return Page(
        offset,
        end,
        value(WIDTH, 0),
        value(HEIGHT, 0),
        bool(value(NEW_SUBFILE, 0) & (REDUCED | MASK)) or value(OLD_SUBFILE, 0) == OLD_REDUCED,
        value(PHOTOMETRIC, 0) in SENSOR_DATA,
        above is not None,
        value(ORIENTATION, 1),
        above.orientation if above and ORIENTATION not in tags else 1,
    )


def largest(pages: list[Page]) -> Page | None:
    """Return the largest page that is no small copy, the first of several; None if there is no page."""
    return max(pages, key=lambda page: (not page.is_reduced, page.width * page.height), default=None)


def single_page(data: bytes, page: Page) -> bytes:
    """Return the TIFF with only this page: its directory becomes the first and the last."""
    reader, out = _Reader(data), bytearray(data)
    struct.pack_into(reader.order + reader.offset_code, out, reader.first_place, page.offset)
    struct.pack_into(reader.order + reader.offset_code, out, page.end, 0)
    return bytes(out)


def list_pages(file: File, selection: Selection) -> Iterator[Record | Skipped]:
    """Yield a record for each page; a file of one page is listed as a plain image."""
    pages = [] if file.size_bytes > MAX_FILE_BYTES else _full_pages(storage.read_bytes(file.uri, file.etag or None))
    if len(pages) < 2:
        yield from list_image(file, selection)
        return
    for number, page in enumerate(pages, 1):
        yield Record(file.uri, f"page {number}", page.offset, size_bytes=file.size_bytes, etag=file.etag)


def _full_pages(data: bytes) -> list[Page]:
    return [page for page in pages_of(data) if not page.is_reduced and not page.is_below]


class OpenTiff(Ranged):
    """A TIFF that is read once for all its pages."""

    def __init__(self, uri: str, etag: str | None = None, image_column: str | None = None) -> None:
        super().__init__(uri, etag)
        self._lock, self._data, self._pages = threading.Lock(), b"", dict[int, Page]()

    def read(self, record: Record, read_range: ReadRange) -> bytes:
        with self._lock:
            if not self._data:
                self._data = storage.read_bytes(self.uri, self.etag)
                self._pages = {page.offset: page for page in _full_pages(self._data)}
            data = self._data
        if record.etag and len(data) != record.size_bytes:
            raise ChangedError
        if record.offset not in self._pages:
            raise ValueError("the file has no such page")
        found = single_page(data, self._pages[record.offset])
        if record.offset == max(self._pages):
            self.close()  # a reader keeps all its files open, and a page that is read once more reads the file again
        return found

    def close(self) -> None:
        self._data = b""


TIFF_PAGES = SourceFormat(
    name="tiff",
    extensions=(".tif", ".tiff", ".btf", ".tf8"),
    list_records=list_pages,
    open=OpenTiff,
)
"""A TIFF with a record for each page. By default a TIFF is a plain image (`images.IMAGE`)."""
