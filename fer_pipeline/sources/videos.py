"""Videos: frames sampled at a fixed rate, decoded in sequence on one core."""

import io
import math
import os
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_pipeline.core import storage
from fer_pipeline.core.errors import RecordError

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet: what is wrong with a video stands in its rows

SEEK_AHEAD_MS = 1000
"""How far before a moment a search begins: containers find moments only roughly."""
ROUNDING_MS = 1000
"""By how much a container may claim to last longer than its last frame."""


class _Stream(io.BufferedIOBase):
    """A file of an object store as OpenCV reads it; an error ends the stream and is kept, since OpenCV cannot pass it on."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        fs, path = storage.open_filesystem(uri)
        self.file = fs.open(path, "rb", block_size=1024**2)
        self.error: BaseException | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        try:
            data: bytes = self.file.read(size)
        except storage.STORAGE_ERRORS as error:
            self.error = error
            return b""
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        place: int = self.file.seek(offset, whence)
        return place

    def close(self) -> None:
        self.file.close()
        super().close()


class Video:
    """One video, opened when it is first asked for something; moments are asked for in ascending order.

    Every method raises RecordError, `unreadable` or `undecodable`, where the video cannot be opened or ends early.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._capture: Any = None
        self._stream: _Stream | None = None
        self._position_ms = -math.inf

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height as the container has them."""
        capture = self._opened()
        return int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))

    @property
    def fps(self) -> float:
        fps = float(self._opened().get(cv2.CAP_PROP_FPS))
        return fps if math.isfinite(fps) and fps > 0 else 25.0

    def _opened(self) -> Any:
        if self._capture is None:
            self._open()
        return self._capture

    def _open(self) -> None:
        """Open, or open again at the beginning."""
        self.close()
        try:
            self._stream = None if storage.is_local(self.uri) else _Stream(self.uri)
        except storage.STORAGE_ERRORS as error:
            raise RecordError("unreadable", storage.reason(error)) from error
        place: Any = self._stream or self.uri
        capture = cv2.VideoCapture(place, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        if not capture.isOpened():
            raise self._error("undecodable", "the content is no video that is known here")
        self._capture, self._position_ms = capture, -math.inf

    def _error(self, status: str, reason: str) -> RecordError:
        """Return what is wrong, which is the storage where that failed."""
        failed = self._stream.error if self._stream else None
        if storage.is_local(self.uri):
            try:
                os.close(os.open(self.uri, os.O_RDONLY))
            except OSError as error:
                failed = error
        return RecordError("unreadable", storage.reason(failed)) if failed else RecordError(status, reason)

    def at(self, time_ms: int) -> NDArray[np.uint8]:
        """Return the frame shown at a moment, BGR uint8 (h, w, 3), upright; raise RecordError where there is none."""
        if not self._advance(time_ms):
            raise self._error("undecodable", f"the video breaks off before {time_ms / 1000:g} s")
        decoded, pixels = self._opened().retrieve()
        if not decoded:
            raise self._error("undecodable", f"the frame at {time_ms / 1000:g} s is damaged")
        return np.asarray(pixels, np.uint8)

    def _advance(self, time_ms: int) -> bool:
        """Bring the frame of a moment up, going on from where the video stands or searching; False where it ends before."""
        capture, tolerance_ms = self._opened(), 500 / self.fps
        target_ms = time_ms - tolerance_ms
        if self._position_ms == -math.inf and time_ms > 2 * SEEK_AHEAD_MS:
            capture.set(cv2.CAP_PROP_POS_MSEC, time_ms - SEEK_AHEAD_MS)
            if not self._grab() or self._position_ms > target_ms:  # searched too far, or into the void
                self._open()
        elif self._position_ms > time_ms + tolerance_ms:
            self._open()
        while self._position_ms < target_ms:
            if not self._grab():
                return False
        return True

    def _grab(self) -> bool:
        capture = self._opened()
        if not capture.grab():
            return False
        self._position_ms = float(capture.get(cv2.CAP_PROP_POS_MSEC))
        return True

    def moments_ms(self, fps: float) -> list[int]:
        """Return the moments of frames sampled `fps` times a second, 0 ms first."""
        frames = float(self._opened().get(cv2.CAP_PROP_FRAME_COUNT))
        if not math.isfinite(frames) or frames <= 0:  # the container does not say
            frames = 0
            while self._grab():
                frames += 1
            self._open()
        duration_ms = 1000 * frames / self.fps
        moments = [round(1000 * index / fps) for index in range(max(1, math.ceil(duration_ms * fps / 1000)))]
        while len(moments) > 1 and moments[-1] > duration_ms - ROUNDING_MS and not self._advance(moments[-1]):
            moments.pop()
            self._open()
        return moments

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
        if self._stream:
            self._stream.close()
        self._capture = self._stream = None
