"""Videos: frames sampled at a fixed rate, decoded in sequence on one core by PyAV (FFmpeg)."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import av
import av.logging
import numpy as np
from numpy.typing import NDArray

from fer_pipeline.archive.capture import Capture
from fer_pipeline.archive.files import CONTAINER_ERRORS, File, Selection
from fer_pipeline.archive.formats import video_streams
from fer_pipeline.archive.formats.spec import Frame, ReadRange, SourceFormat, keyed_by_fps
from fer_pipeline.archive.formats.video_streams import best_stream, capture_of, discard_others, shown_size, what_it_holds
from fer_pipeline.archive.record import Record, Skipped
from fer_pipeline.base import storage
from fer_pipeline.base.boundary import as_file_error
from fer_pipeline.base.errors import RecordError

av.logging.set_level(None)  # the errors of a video are in its rows

SEEK_BEYOND_MS = 2000
"""The first frame is found by seeking if it is later than this, else by decoding from the start."""
ROUNDING_MS = 0.51
"""Tolerance between sampled moments, which are whole milliseconds, and the times of frames."""
LATE_MS = 500
"""A picture that begins this late, or earlier, is taken to be shown from the start."""
MAX_OVERSTATED_MS = 1000
"""By how much a container may overstate its duration."""
VIDEO_EXTENSIONS = (
    "mp4 m4v mov qt avi divx mkv webm mts m2ts m2t mpg mpeg mpe m2v vob wmv asf flv f4v 3gp 3g2 ogv dv insv lrv 360 mxf"
)
"""Other extensions of videos have other uses, too (`.ts`, `.mp`, `.mod`, `.ogg`): there the content decides."""
COUNTED_FROM_ZERO = ("asf",)
"""FFmpeg's formats in which the duration of a stream includes its start offset."""
FFMPEG_OPTIONS = {
    "format_whitelist": "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,dv,ivf,h264,hevc,m4v,mjpeg,gif",
    "protocol_whitelist": "file",
}
"""Allows only formats that contain their frames. With playlists (HLS, DASH, concat) and sessions (SDP), FFmpeg would read other
files, connect to other machines and open ports."""


@dataclass
class _Decoded:
    """A frame and the time span in which it is shown."""

    frame: Any
    start_ms: float
    end_ms: float
    damaged_before: bool
    """Whether packets directly before it could not be decoded."""


class Video:
    """One video, opened on first use. Frames should be requested in ascending order of time.

    All methods raise RecordError, `unreadable` or `undecodable`, if the video cannot be opened or ends early.
    """

    def __init__(self, uri: str, etag: str | None = None, open_member: Callable[[], Any] | None = None) -> None:
        """`open_member`: opens the video, at each call anew, if it is a member of the container `uri`."""
        self.uri, self.etag, self._open_member = uri, etag, open_member
        self._file: Any = None
        self._container: Any = None
        self._chosen: Any = None
        self._frames: Iterator[_Decoded] = iter(())
        self._shown: _Decoded | None = None
        self._next: _Decoded | None = None

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height in square pixels, as the container says, before it is turned upright."""
        return shown_size(self._stream())

    @property
    def capture(self) -> Capture:
        """When its recording began, and with which camera, as the container says."""
        return capture_of(self._container, self._stream())

    def at(self, time_ms: int) -> NDArray[np.uint8]:
        """Return the upright frame shown at `time_ms`, BGR uint8 (h, w, 3). Raise RecordError if there is none.

        After a failed read the video is reopened once for each moment.
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
                raise self._error("undecodable", f"the video ends before {time_ms / 1000:g} s")
            if self._next and self._next.damaged_before and shown.end_ms + ROUNDING_MS < time_ms:
                raise self._error("undecodable", f"the frame at {time_ms / 1000:g} s is damaged")
            pixels = video_streams.shown(shown.frame, self._stream())
            storage.require_unchanged(self.uri, self.etag)
        except storage.STORAGE_ERRORS:
            raise
        except av.FFmpegError as error:
            raise self._error("undecodable", f"the frame at {time_ms / 1000:g} s is damaged") from error
        return pixels

    def moments_ms(self, fps: float, size_bytes: int | None = None, max_moments: int = 10**9) -> list[int]:
        """Return the times of the frames to sample, `fps` a second, on the file's clock: players show its start as 0 ms.

        If the picture begins later than `LATE_MS`, no earlier moment is sampled.

        Raise ValueError for more than `max_moments`, and for a container that claims more frames than `size_bytes` can hold.
        """
        try:
            (start_ms, end_ms), stream = self._span_ms(), self._stream()
            rate, duration_ms = float(stream.average_rate or 0), end_ms - start_ms
            claimed = max(stream.frames, duration_ms * rate / 1000 if math.isfinite(rate) else math.inf)
            if size_bytes is not None and claimed > size_bytes:
                raise ValueError(f"it claims {claimed:.0f} frames, more than its {size_bytes} bytes can hold")
            if not 0 <= duration_ms * fps / 1000 <= max_moments:
                limit = f"more than {max_moments} frames at {fps:g} fps"
                raise ValueError(f"it claims to last {duration_ms / 1000:.0f} s: {limit}")
            first = math.ceil(start_ms * fps / 1000) if start_ms > LATE_MS else 0
            moments = [round(1000 * index / fps) for index in range(first, math.ceil(end_ms * fps / 1000))]
            moments = moments or [max(0, math.ceil(start_ms) if start_ms > LATE_MS else 0)]
            while len(moments) > 1 and moments[-1] > end_ms - MAX_OVERSTATED_MS and self._show(moments[-1]) is None:
                moments.pop()
                self._open()
        except storage.STORAGE_ERRORS as error:
            raise as_file_error(self.uri, error, "unreadable") from error
        except av.FFmpegError as error:
            raise self._error("undecodable", "the video is damaged") from error
        return moments

    def entries(self, record: Record, size_bytes: int, selection: Selection) -> Iterator[Record | Skipped]:
        """Yield a record for each sampled frame, or the file as skipped if it has none; then close it. `selection` has `fps`.

        `record` is a record of the video without a moment. Raise RecordError for a damaged video, and what its storage raises.
        """
        name = record.member or record.uri
        try:
            if what := self.holds_instead():
                yield Skipped(name, f"no video stream, only {what}", size_bytes)
            else:
                for moment in self.moments_ms(selection.fps or 1.0, size_bytes, selection.max_members):
                    yield replace(record, time_ms=moment)
        except RecordError as error:
            if isinstance(error.__cause__, storage.STORAGE_ERRORS):
                raise error.__cause__ from None  # the storage failed, not the video
            raise
        finally:
            self.close()

    def holds_instead(self) -> str:
        """Return, in words, what a file without a video stream holds, such as sound; empty for a video."""
        try:
            self._stream()
        except RecordError as error:
            if error.status != "unsupported":
                raise
            return what_it_holds(self._container)
        return ""

    def close(self) -> None:
        self._frames, self._shown, self._next = iter(()), None, None
        if self._container is not None:
            self._container.close()
        if self._file is not None:
            self._file.close()
        self._container = self._file = self._chosen = None

    def _stream(self) -> Any:
        if self._chosen is None:
            self._open()
        return self._chosen

    def _open(self) -> None:
        """Open the video, or reopen it at the beginning."""
        self.close()
        try:
            if self._open_member:
                self._file = self._open_member()
            elif not storage.is_local(self.uri):
                self._file = storage.open_version(self.uri, self.etag, 1024**2)
            self._container = av.open(self._file or self.uri, metadata_errors="ignore", options=dict(FFMPEG_OPTIONS))
        except storage.STORAGE_ERRORS as error:
            raise as_file_error(self.uri, error, "unreadable") from error
        except av.FFmpegError as error:
            raise self._error("undecodable", "the file is not a video of a supported format") from error
        except CONTAINER_ERRORS as error:
            raise self._error("unreadable", storage.reason(error)) from error
        self._chosen = best_stream(self._container)
        if self._chosen is None:
            raise self._error("unsupported", f"the file has no video stream, only {what_it_holds(self._container) or 'data'}")
        discard_others(self._container, self._chosen)
        self._chosen.codec_context.thread_count = 1
        self._frames = self._decode()

    def _error(self, status: str, reason: str) -> RecordError:
        """Return the record's error: a changed or unreadable file if it is one now, else `status` and `reason`."""
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
        """Yield the frames from the current position on. Skip packets that cannot be decoded."""
        stream = self._stream()
        unit_ms, rate = 1000 * float(stream.time_base), stream.average_rate
        usual_ms = 1000 / float(rate) if rate else 40.0
        first, end_ms, damaged = self._clock_start(), 0.0, False
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
        """Return the frame shown at `time_ms`, None if the video ends before it."""
        due_ms = time_ms + ROUNDING_MS
        self._stream()
        if self._shown is None and self._next is None and time_ms > SEEK_BEYOND_MS:
            self._seek(time_ms)
        elif self._shown and self._shown.start_ms > due_ms:
            self._open()
        while True:
            self._next = self._next or next(self._frames, None)
            if self._next is None:
                return self._shown if self._shown and self._shown.end_ms + ROUNDING_MS > time_ms else None
            if self._next.start_ms > due_ms:
                return self._shown or self._next  # before the first frame, the first frame is shown
            self._shown, self._next = self._next, None

    def _seek(self, time_ms: int) -> None:
        """Go to the last key frame before `time_ms`, or to the beginning if the container cannot seek there."""
        stream = self._stream()
        timestamp = int(time_ms / 1000 / stream.time_base) + self._clock_start()
        try:
            self._container.seek(timestamp, stream=stream, backward=True)
            self._frames = self._decode()
            self._next = next(self._frames, None)
        except av.FFmpegError:
            self._next = None
        if self._next is None or self._next.start_ms > time_ms + ROUNDING_MS:
            self._open()

    def _clock_start(self) -> int:
        """Return the time, in units of the stream, that players show as 0: the start of the earliest stream."""
        stream, start = self._stream(), self._container.start_time
        if start is None:
            return int(stream.start_time or 0)
        return round(float(start / av.time_base / stream.time_base))

    def _span_ms(self) -> tuple[float, float]:
        """Return start and end of the video stream on the file's clock, as its header says, or else as its packets say."""
        stream, unit_ms = self._stream(), 1000 * float(self._stream().time_base)
        first = self._clock_start()
        start_ms = max(0.0, ((stream.start_time if stream.start_time is not None else first) - first) * unit_ms)
        if stream.duration and not (first and self._container.format.name in COUNTED_FROM_ZERO):
            return start_ms, start_ms + stream.duration * unit_ms
        claimed_ms = (self._container.duration or 0) / 1000
        if claimed_ms and len(self._container.streams) == 1 and not first:
            return start_ms, claimed_ms
        if claimed_ms:  # of the longest stream, and perhaps from 0 on: only the last packets tell when the video stream ends
            self._seek_end()
        ends = [
            (packet.pts - first + (packet.duration or 0)) * unit_ms
            for packet in self._container.demux(self._stream())
            if packet.pts is not None
        ]
        self._open()
        return start_ms, max(ends, default=claimed_ms)

    def _seek_end(self) -> None:
        """Go near the end, or to the beginning if the container cannot seek there."""
        start, end = self._container.start_time or 0, self._container.duration
        try:
            self._container.seek(end if end > start else start + end, backward=True)  # it may or may not include the start
        except av.FFmpegError:
            self._open()


def list_frames(file: File, selection: Selection) -> Iterator[Record | Skipped]:
    """Yield a record for each sampled frame, or the file as skipped if no frames are wanted."""
    if not selection.fps:
        yield Skipped(file.uri, "video", file.size_bytes)
        return
    yield from Video(file.uri).entries(Record(file.uri, etag=file.etag), file.size_bytes, selection)


class OpenVideo:
    """A video whose frames are decoded in order."""

    def __init__(self, uri: str, etag: str | None = None, image_column: str | None = None) -> None:
        self._video = Video(uri, etag)

    def read(self, record: Record, read_range: ReadRange) -> Frame:
        return Frame(self._video, record.time_ms or 0)

    def close(self) -> None:
        self._video.close()


VIDEO = SourceFormat(
    name="video",
    extensions=tuple(f".{extension}" for extension in VIDEO_EXTENSIONS.split()),
    list_records=list_frames,
    open=OpenVideo,
    index_key=keyed_by_fps,
)
