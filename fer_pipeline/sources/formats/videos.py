"""Videos: frames sampled at a fixed rate, decoded in sequence on one core by PyAV (FFmpeg)."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import av.logging
import numpy as np
from numpy.typing import NDArray

from fer_pipeline.core import storage
from fer_pipeline.core.boundary import as_file_error
from fer_pipeline.core.errors import RecordError
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.files import File, Selection
from fer_pipeline.sources.formats.spec import Frame, ReadRange, SourceFormat

av.logging.set_level(None)  # what is wrong with a video stands in its rows

SEEK_BEYOND_MS = 2000
"""A first moment later than this is searched for; an earlier one is decoded up to."""
ROUNDING_MS = 0.51
"""Moments are whole milliseconds, times of frames are not."""
CLAIMED_MS = 1000
"""By how much a container may claim to last longer than its last frame."""
READ_BYTES = 1024**2
ALONE = {
    "format_whitelist": "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,dv,ivf,h264,hevc,m4v,mjpeg,gif",
    "protocol_whitelist": "file",
}
"""What FFmpeg may take a file for, whatever its name: formats that hold their frames themselves. Playlists (HLS, DASH, concat)
and sessions (SDP) have it read other files, connect to other machines and open ports."""


@dataclass
class _Decoded:
    """A frame and when it is shown."""

    frame: Any
    start_ms: float
    end_ms: float
    damaged_before: bool
    """Whether what precedes it could not be decoded."""


class Video:
    """One video, opened when it is first asked for something; moments are asked for in ascending order.

    Every method raises RecordError, `unreadable` or `undecodable`, where the video cannot be opened or ends early.
    """

    def __init__(self, uri: str, etag: str | None = None) -> None:
        self.uri, self.etag = uri, etag
        self._file: Any = None
        self._container: Any = None
        self._frames: Iterator[_Decoded] = iter(())
        self._shown: _Decoded | None = None
        self._next: _Decoded | None = None

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height as the container has them."""
        context = self._stream().codec_context
        return int(context.width), int(context.height)

    def at(self, time_ms: int) -> NDArray[np.uint8]:
        """Return the frame shown at a moment, BGR uint8 (h, w, 3), upright; raise RecordError where there is none.

        After a read that failed the video is opened again, once for this moment, and for those that follow.
        """
        for is_last in (False, True):
            try:
                return self._at(time_ms)
            except storage.STORAGE_ERRORS as error:
                self.close()
                if is_last or storage.says_changed(error):
                    raise as_file_error(self.uri, error, "unreadable") from error
        raise AssertionError("the last try returns or raises")

    def _at(self, time_ms: int) -> NDArray[np.uint8]:
        try:
            shown = self._show(time_ms)
            if shown is None:
                raise self._error("undecodable", f"the video breaks off before {time_ms / 1000:g} s")
            if self._next and self._next.damaged_before and shown.end_ms + ROUNDING_MS < time_ms:
                raise self._error("undecodable", f"the frame at {time_ms / 1000:g} s is damaged")
            pixels = shown.frame.to_ndarray(format="bgr24")
            storage.require_unchanged(self.uri, self.etag)
        except storage.STORAGE_ERRORS:
            raise
        except av.FFmpegError as error:
            raise self._error("undecodable", f"the frame at {time_ms / 1000:g} s is damaged") from error
        return np.ascontiguousarray(np.rot90(pixels, round(shown.frame.rotation / 90)))

    def moments_ms(self, fps: float, size_bytes: int | None = None, most: int = 10**9) -> list[int]:
        """Return the moments of frames sampled `fps` times a second, 0 ms first.

        Raise ValueError for more than `most` of them, and for a container that claims more frames than `size_bytes` can hold.
        """
        try:
            duration_ms, stream = self._duration_ms(), self._stream()
            rate = float(stream.average_rate or 0)
            claimed = max(stream.frames, duration_ms * rate / 1000 if math.isfinite(rate) else math.inf)
            if size_bytes is not None and claimed > size_bytes:
                raise ValueError(f"it claims {claimed:.0f} frames, more than its {size_bytes} bytes can hold")
            if not 0 <= duration_ms * fps / 1000 <= most:
                raise ValueError(f"it claims to last {duration_ms / 1000:.0f} s: more than {most} moments at {fps:g} a second")
            moments = [round(1000 * index / fps) for index in range(max(1, math.ceil(duration_ms * fps / 1000)))]
            while len(moments) > 1 and moments[-1] > duration_ms - CLAIMED_MS and self._show(moments[-1]) is None:
                moments.pop()
                self._open()
        except storage.STORAGE_ERRORS as error:
            raise as_file_error(self.uri, error, "unreadable") from error
        except av.FFmpegError as error:
            raise self._error("undecodable", "the video is damaged") from error
        return moments

    def close(self) -> None:
        self._frames, self._shown, self._next = iter(()), None, None
        if self._container is not None:
            self._container.close()
        if self._file is not None:
            self._file.close()
        self._container = self._file = None

    def _stream(self) -> Any:
        if self._container is None:
            self._open()
        return self._container.streams.video[0]

    def _open(self) -> None:
        """Open, or open again at the beginning."""
        self.close()
        try:
            if not storage.is_local(self.uri):
                self._file = storage.open_version(self.uri, self.etag, READ_BYTES)
            self._container = av.open(self._file or self.uri, metadata_errors="ignore", options=dict(ALONE))
        except storage.STORAGE_ERRORS as error:
            raise as_file_error(self.uri, error, "unreadable") from error
        except av.FFmpegError as error:
            raise self._error("undecodable", "the content is no video that is known here") from error
        if not self._container.streams.video:
            raise self._error("undecodable", "the content is no video that is known here")
        self._stream().codec_context.thread_count = 1
        self._frames = self._decode()

    def _error(self, status: str, reason: str) -> RecordError:
        """Return what is wrong: that the file is another one by now, or cannot be read any more, where it is so."""
        try:
            storage.require_version(self.uri, self.etag)
            if storage.is_local(self.uri):
                os.close(os.open(self.uri, os.O_RDONLY))
        except RecordError as error:
            return error
        except storage.STORAGE_ERRORS as error:
            if storage.is_local(self.uri):
                return RecordError("unreadable", storage.reason(error))
            return as_file_error(self.uri, error, "unreadable")
        return RecordError(status, reason)

    def _decode(self) -> Iterator[_Decoded]:
        """Yield the frames from where the container stands; packets that cannot be decoded are passed over."""
        stream = self._stream()
        unit_ms, rate = 1000 * float(stream.time_base), stream.average_rate
        usual_ms = 1000 / float(rate) if rate else 40.0
        first, end_ms, damaged = stream.start_time or 0, 0.0, False
        packets = self._container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                frames = packet.decode()
            except storage.STORAGE_ERRORS:
                raise
            except av.FFmpegError as error:
                if isinstance(error, av.error.EOFError):
                    return
                damaged = True
                continue
            for frame in frames:
                stamp = frame.pts if frame.pts is not None else frame.dts
                start_ms = end_ms if stamp is None else (stamp - first) * unit_ms
                end_ms = start_ms + (frame.duration * unit_ms if frame.duration else usual_ms)
                yield _Decoded(frame, start_ms, end_ms, damaged)
                damaged = False

    def _show(self, time_ms: int) -> _Decoded | None:
        """Return the frame shown at a moment, None where the video ends before it."""
        due_ms = time_ms + ROUNDING_MS
        self._stream()
        if self._shown is None and self._next is None and time_ms > SEEK_BEYOND_MS:
            self._search(time_ms)
        elif self._shown and self._shown.start_ms > due_ms:
            self._open()
        while True:
            self._next = self._next or next(self._frames, None)
            if self._next is None:
                return self._shown if self._shown and self._shown.end_ms + ROUNDING_MS > time_ms else None
            if self._next.start_ms > due_ms:
                return self._shown or self._next  # before its first frame a video shows that one
            self._shown, self._next = self._next, None

    def _search(self, time_ms: int) -> None:
        """Go to the last key frame before a moment; to the beginning where the container cannot find it."""
        stream = self._stream()
        place = int(time_ms / 1000 / stream.time_base) + (stream.start_time or 0)
        try:
            self._container.seek(place, stream=stream, backward=True)
            self._frames = self._decode()
            self._next = next(self._frames, None)
        except av.FFmpegError:
            self._next = None
        if self._next is None or self._next.start_ms > time_ms + ROUNDING_MS:
            self._open()

    def _duration_ms(self) -> float:
        """Return how long the pictures last, as the container says or, where it does not, as its packets do."""
        stream = self._stream()
        if stream.duration:
            return float(stream.duration * stream.time_base) * 1000
        claimed_ms = (self._container.duration or 0) / 1000
        if claimed_ms and len(self._container.streams) == 1:
            return claimed_ms
        if claimed_ms:  # of the longest of its streams: the last packets say how long the pictures last
            self._container.seek(self._container.duration, backward=True)
        ends = [
            (packet.pts - (stream.start_time or 0) + (packet.duration or 0)) * float(stream.time_base) * 1000
            for packet in self._container.demux(stream)
            if packet.pts is not None
        ]
        self._open()
        return max(ends, default=claimed_ms)


def list_frames(file: File, selection: Selection) -> Iterator[Record | str]:
    """Yield a record for each sampled frame, or the file's name where none are asked for."""
    if not selection.fps:
        yield file.uri
        return
    video = Video(file.uri)
    try:
        for moment in video.moments_ms(selection.fps, file.size_bytes, selection.max_members):
            yield Record(file.uri, time_ms=moment, etag=file.etag)
    except RecordError as error:
        if isinstance(error.__cause__, storage.STORAGE_ERRORS):
            raise error.__cause__ from None  # the store's, if it is a store: not the video's
        raise
    finally:
        video.close()


class OpenVideo:
    """A video from which frames are taken in sequence."""

    def __init__(self, uri: str, etag: str | None = None, image_column: str | None = None) -> None:
        self._video = Video(uri, etag)

    def read(self, record: Record, read_range: ReadRange) -> Frame:
        return Frame(self._video, record.time_ms or 0)

    def close(self) -> None:
        self._video.close()


def _index_key(selection: Selection) -> str:
    return f"fps {selection.fps}"


VIDEO = SourceFormat(
    name="video",
    extensions=(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"),
    list_records=list_frames,
    open=OpenVideo,
    in_sequence=True,
    index_key=_index_key,
)
