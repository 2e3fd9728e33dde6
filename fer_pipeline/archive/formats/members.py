"""Members of a tar or a zip: which of them become records, what the others are, and how a video among them is opened."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import IO, Any

from av.error import FFmpegError

from fer_pipeline.archive.files import CONTAINER_ERRORS, Selection, says_damage
from fer_pipeline.archive.formats.images import IMAGE, says_image
from fer_pipeline.archive.formats.spec import Frame
from fer_pipeline.archive.formats.videos import VIDEO, Video
from fer_pipeline.archive.record import Opening, Record, Skipped
from fer_pipeline.archive.signatures import HEAD_BYTES, UNPACK, Kind, kind_of
from fer_pipeline.archive.unpacked import NoRoomError
from fer_pipeline.base import storage
from fer_pipeline.base.boundary import as_record_error
from fer_pipeline.base.errors import ChangedError, RecordError
from fer_pipeline.base.read_only import ReadOnly

MOST_TRIES = 2
VIDEO_BLOCK_BYTES = 1024**2
"""Size of a request for a video in a container on a store."""


class Part(ReadOnly):
    """A part of an open file, as a file. Closing it closes the whole file unless that is kept open for other parts."""

    def __init__(self, whole: IO[bytes], start: int, size: int, keep_open: bool = False) -> None:
        super().__init__(size)
        self._whole, self._start, self._keep_open = whole, start, keep_open

    def read(self, size: int | None = -1) -> bytes:
        wanted = self._wanted(size)
        self._whole.seek(self._start + self._position)
        found = self._whole.read(wanted)
        self._position += len(found)
        return found

    def close(self) -> None:
        if not self._keep_open:
            self._whole.close()
        super().close()


def open_part(uri: str, etag: str | None, start: int, size: int) -> Part:
    """Open a range of a file's bytes. Raise what its storage raises."""
    return Part(storage.open_version(uri, etag, VIDEO_BLOCK_BYTES), start, size)


def part_of_copy(copy: IO[bytes], start: int = 0, size: int | None = None) -> Part:
    """Return a part of an unpacked copy, by default all of it. The copy stays open."""
    return Part(copy, start, os.fstat(copy.fileno()).st_size if size is None else size, keep_open=True)


class OpenVideos:
    """The videos of an open container. The last one stays open for its next frames."""

    def __init__(self, uri: str, etag: str | None, opener: Callable[[Record], Callable[[], Part]]) -> None:
        """`opener` returns a function that opens the video of a record anew at each call. It may take long: it may unpack it."""
        self._uri, self._etag, self._opener = uri, etag, opener
        self._offset: int | None = None
        self._video: Video | Exception | None = None
        self._tries = 0

    def frame(self, record: Record) -> Frame:
        """Return the frame of a record. Raise what `opener` raises, again for each of the video's records.

        It is called once, and once more after the storage failed.
        """
        if self._offset != record.offset:
            self.close()
            self._offset, self._tries = record.offset, 0
        may_pass = isinstance(self._video, storage.STORAGE_ERRORS) and self._tries < MOST_TRIES
        if self._video is None or may_pass:
            self._tries += 1
            try:
                self._video = Video(self._uri, self._etag, self._opener(record))
            except Exception as error:  # noqa: BLE001 (raised below)
                self._video = error
        if isinstance(self._video, Exception):
            raise self._video
        return Frame(self._video, record.time_ms or 0)

    def close(self) -> None:
        if isinstance(self._video, Video):
            self._video.close()
        self._video = None


def entries_of(
    record: Record, selection: Selection, open_member: Callable[[], Any], video_opener: Callable[[], Callable[[], Any]]
) -> Iterator[Record | Skipped | Opening]:
    """Yield the records of a member, or why it has none.

    `record`: that of the member if it is an image. `open_member` opens it to be read once. `video_opener` returns a function that
    opens it anew at each call, to be read anywhere.
    """
    name, size_bytes, kind = record.member or "", record.stored_bytes or record.size_bytes or 0, None
    is_image = says_image(name)
    if is_image is False:
        yield Skipped(name, size_bytes=size_bytes)
        return
    source_format = IMAGE.name if is_image else VIDEO.name if name.lower().endswith(VIDEO.extensions) else ""
    if not source_format:
        try:
            with open_member() as member:
                kind = kind_of(member.read(HEAD_BYTES))
        except CONTAINER_ERRORS as error:
            yield Skipped(name, f"it cannot be read: {storage.reason(error)}"[:80], size_bytes)
            return
        source_format = kind.format or "" if kind else ""
    if source_format == IMAGE.name:
        yield record
    elif source_format != VIDEO.name:
        yield Skipped(name, _reason(kind), size_bytes)
    else:
        yield from _frames(replace(record, stored_bytes=size_bytes, size_bytes=None), selection, video_opener)


def _frames(
    record: Record, selection: Selection, video_opener: Callable[[], Callable[[], Any]]
) -> Iterator[Record | Skipped | Opening]:
    """Yield a record for each sampled frame of a video, or one that says why it cannot be read."""
    name, size_bytes = record.member or "", record.stored_bytes or 0
    if not selection.fps:
        yield Skipped(name, "video", size_bytes)
        return
    yield Opening(name)
    try:
        if name in selection.unopened:
            raise RecordError("unreadable", "it kills the process that opens it, or takes too long")
        yield from Video(record.uri, record.etag, video_opener()).entries(record, size_bytes, selection)
    except (NoRoomError, ChangedError):
        raise
    except Exception as error:
        if isinstance(error, storage.STORAGE_ERRORS) and not isinstance(error, FFmpegError) and not says_damage(error):
            raise  # the storage failed, not the video
        yield replace(record, time_ms=0, error=f"the video cannot be read: {as_record_error(error, 'unreadable').reason}")


def _reason(kind: Kind | None) -> str:
    if kind is None:
        return ""
    return f"{kind.name} in a container: {UNPACK}" if kind.format or kind.remedy == UNPACK else kind.reason
