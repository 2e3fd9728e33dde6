"""What a source format declares of itself: how its files are recognised, listed, placed and read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.files import File, Selection

ReadRange = Callable[[int, int], bytes]
"""Returns the bytes of a file from a place on, so many of them."""


class FrameSource(Protocol):
    """An opened file of which moments can be decoded, in ascending order at the least cost."""

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height."""
        ...

    def at(self, time_ms: int) -> NDArray[np.uint8]:
        """Return the frame shown at a moment, BGR uint8 (h, w, 3); raise RecordError where there is none."""
        ...


@dataclass(frozen=True)
class Frame:
    """A moment of an opened file, not yet decoded."""

    source: FrameSource
    time_ms: int


class OpenFile(Protocol):
    """A file that stays open while several of its records are read. Calls may come from several threads."""

    def read(self, record: Record, read_range: ReadRange) -> bytes | Frame | None:
        """Return the encoded image or the frame of a record, None where there is none.

        `read_range` returns bytes of the file as it was listed, perhaps from what was read for a neighbour. What it raises is the
        record's error.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class SourceFormat:
    """The declaration of a source format."""

    name: str
    extensions: tuple[str, ...]
    """Recognise: endings of file names, in lower case, with their dot."""
    list_records: Callable[[File, Selection], Iterator[Record | str]]
    """List: yields a record for each image or sampled frame, and the name of whatever else the file holds. A container is
    listed in a process of its own, under limits of memory and time: what it raises ends the listing of this file alone."""
    open: Callable[[str, str | None, str | None], OpenFile]
    """Read: opens the file at a URI, whose etag when it was listed is the second argument; the third is `Selection.image_column`.
    What is not read by `read_range` is held against the etag (`storage.open_version`, `require_unchanged`)."""
    span: Callable[[Record], tuple[int, int] | None] = lambda record: None
    """Place: from which byte of the file to which a record stands; neighbours are read by one request. None: it has none."""
    is_container: bool = True
    """Whether a file may hold several records."""
    in_sequence: bool = False
    """Whether records are decoded one after the other from one open file, as frames of a video are, and not read ahead."""
    index_key: Callable[[Selection], str] | None = None
    """What the listing depends on besides the file: listings are remembered under it. None: listing costs next to nothing."""


def keyed_by_file(selection: Selection) -> str:
    """The `index_key` of a format whose listing depends on the file alone."""
    return ""


class Ranged:
    """An open file whose records are byte ranges; nothing is kept open."""

    def __init__(self, uri: str, etag: str | None = None, image_column: str | None = None) -> None:
        self.uri, self.etag = uri, etag

    def read(self, record: Record, read_range: ReadRange) -> Any:
        return read_range(record.offset or 0, record.size_bytes or 0)

    def close(self) -> None: ...


def byte_span(record: Record) -> tuple[int, int] | None:
    """The `span` of a format whose `offset` is a record's first byte and `size_bytes` the bytes that it takes."""
    return None if record.offset is None else (record.offset, record.offset + (record.size_bytes or 0))
