"""The interface of a source format: how its files are recognised, listed and read, and where its records are."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fer_pipeline.archive.capture import Capture
from fer_pipeline.archive.files import File, Selection
from fer_pipeline.archive.record import Opening, Record, Skipped

ReadRange = Callable[[int, int], bytes]
"""Takes an offset and a size, and returns these bytes of a file."""


class FrameSource(Protocol):
    """An open file whose frames can be decoded by time. Ascending order costs least."""

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height in pixels."""
        ...

    @property
    def capture(self) -> Capture:
        """When and with which camera the file was taken: the moment of its start."""
        ...

    def at(self, time_ms: int) -> NDArray[np.uint8]:
        """Return the frame shown at `time_ms`, BGR uint8 (h, w, 3). Raise RecordError if there is none."""
        ...


@dataclass(frozen=True)
class Frame:
    """A frame of an open file at a time, not yet decoded."""

    source: FrameSource
    time_ms: int


class OpenFile(Protocol):
    """A file that stays open while several of its records are read. Calls may come from several threads."""

    def read(self, record: Record, read_range: ReadRange) -> bytes | Frame | None:
        """Return the encoded image or the frame of a record, None if there is none.

        `read_range` returns bytes of the listed version of the file, perhaps from a block that was read for a neighbour. An
        exception of `read` is the error of the record.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class SourceFormat:
    """The declaration of a source format."""

    name: str
    extensions: tuple[str, ...]
    """Endings of file names, in lower case, with the dot."""
    list_records: Callable[[File, Selection], Iterator[Record | Skipped | Opening]]
    """Yields a record for each image or sampled frame, and any other member as skipped. A container is listed in its own
    process with limits of memory and time; an exception ends the listing of this file only."""
    open: Callable[[str, str | None, str | None], OpenFile]
    """Opens a file for reading. The arguments are its URI, its etag when it was listed, and `Selection.image_column`. Bytes that
    are not read by `read_range` are checked against the etag (`storage.open_version`, `require_unchanged`)."""
    span: Callable[[Record], tuple[int, int] | None] = lambda record: None
    """Returns the byte range (start, end) of a record, None if it has none. Neighbours are read by one request."""
    is_container: bool = True
    """Whether a file may hold several records."""
    index_key: Callable[[Selection], str] | None = None
    """Returns what the listing depends on besides the file: a part of the key of its index. None: listing is cheap, no index."""


def keyed_by_fps(selection: Selection) -> str:
    """Return the `index_key` of a format that may hold videos: its listing depends on the file and the sampling rate."""
    return f"fps {selection.fps}"


class Ranged:
    """A file whose records are byte ranges. It keeps nothing open."""

    def __init__(self, uri: str, etag: str | None = None, image_column: str | None = None) -> None:
        self.uri, self.etag = uri, etag

    def read(self, record: Record, read_range: ReadRange) -> Any:
        return read_range(record.offset or 0, record.size_bytes or 0)

    def close(self) -> None: ...


def byte_span(record: Record) -> tuple[int, int] | None:
    """The `span` of a format in which `offset` is a record's first byte and `size_bytes` its length."""
    return None if record.offset is None else (record.offset, record.offset + (record.size_bytes or 0))
