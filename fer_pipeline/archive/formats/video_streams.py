"""Which stream of a video is its picture, and how a frame of it is shown: upright, with square pixels, without combs."""

import struct
from typing import Any

import cv2
import numpy as np
from av.sidedata.sidedata import SideDataContainer, Type
from av.stream import Discard, Disposition
from numpy.typing import NDArray

from fer_pipeline.archive.capture import Capture, camera_name, local_time

COVERS = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
"""Dispositions of pictures that belong to a file and are not its video."""
APPLE = "com.apple.quicktime."
MOST_STRETCHED = 8.0
"""Largest plausible ratio of a pixel's sides."""
MATRIX = struct.Struct("=9i")
"""A display matrix of FFmpeg: a, b, u, c, d, v, x, y, w (`libavutil/display.h`)."""

Image = NDArray[np.uint8]


def best_stream(container: Any) -> Any | None:
    """Return the video stream with the largest picture, of those the default one, then the longest; None if there is none."""
    videos = [stream for stream in container.streams.video if stream.codec_context]  # without: a codec that FFmpeg does not know
    streams = [stream for stream in videos if not stream.disposition & COVERS]
    return max(streams, key=_rank, default=None)


def _rank(stream: Any) -> tuple[int, bool, float, int]:
    context, is_default = stream.codec_context, bool(stream.disposition & Disposition.default)
    seconds = float((stream.duration or 0) * (stream.time_base or 0))
    return context.width * context.height, is_default, seconds, -stream.index


def discard_others(container: Any, chosen: Any) -> None:
    """Let the container pass over the packets of all streams but one."""
    for stream in container.streams:
        stream.discard = Discard.default if stream.index == chosen.index else Discard.all


def what_it_holds(container: Any) -> str:
    """Return, in words, what a file without a video stream holds; empty if it holds nothing."""
    covers, sounds = len(container.streams.video), len(container.streams.audio)
    pictures = f"{covers} cover picture{'s' if covers > 1 else ''}" if covers else ""
    return ", ".join(part for part in ("sound" if sounds else "", pictures) if part)


def capture_of(container: Any, stream: Any) -> Capture:
    """Return when a recording began, and with which camera.

    Apple's phones say their local time and its offset, Android's and Matroska the time in UTC. The clock of other MP4 files is
    UTC by their standard, but local time in those of many cameras: it is returned as it is written, without an offset.
    """
    said = {name.lower(): value for name, value in {**stream.metadata, **container.metadata}.items()}
    is_utc = container.format.name.startswith("matroska") or any(name.startswith("com.android.") for name in said)
    written = str(said.get("creation_time") or said.get("date") or "").removesuffix("Z")
    taken_at = local_time(said.get(f"{APPLE}creationdate")) or local_time(written, "Z" if is_utc else None)
    maker = said.get(f"{APPLE}make") or said.get("com.android.manufacturer") or said.get("make")
    model = said.get(f"{APPLE}model") or said.get("com.android.model") or said.get("model")
    return Capture(taken_at, camera_name(maker, model))


def shown_size(stream: Any) -> tuple[int, int]:
    """Return width and height of a stream's frames in square pixels, before they are turned upright."""
    context = stream.codec_context
    width, height = int(context.width), int(context.height)
    ratio = float(stream.sample_aspect_ratio or context.sample_aspect_ratio or 1)
    if not 1 / MOST_STRETCHED <= ratio <= MOST_STRETCHED:
        return width, height
    return (round(width * ratio), height) if ratio > 1 else (width, round(height / ratio))


def shown(frame: Any, stream: Any) -> Image:
    """Return a frame as players show it, BGR uint8 (h, w, 3)."""
    width, height = shown_size(stream)
    context = stream.codec_context
    if (frame.width, frame.height) != (context.width, context.height):  # the picture changes its size in the middle
        width, height = frame.width, frame.height
    lines = frame.height if frame.interlaced_frame else height  # resampling lines would mix the fields
    pixels: Image = frame.to_ndarray(format="bgr24", width=width, height=lines, threads=1)
    if frame.interlaced_frame:
        pixels = without_combs(pixels)
    if lines != height:
        pixels = np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
    return np.ascontiguousarray(upright(pixels, _matrix(frame)))


def _matrix(frame: Any) -> tuple[int, int, int, int]:
    """Return a, b, c, d of a frame's display matrix; (1, 0, 0, 1) if it has none."""
    # `frame.side_data` makes a circle of references, which keeps the frame in memory
    for side_data in SideDataContainer(frame):  # type: ignore[call-arg]
        if side_data.type == Type.DISPLAYMATRIX and len(data := bytes(side_data)) >= MATRIX.size:
            a, b, _, c, d, *_ = MATRIX.unpack(data[: MATRIX.size])
            return a, b, c, d
    return 1, 0, 0, 1


def upright(pixels: Image, matrix: tuple[int, int, int, int]) -> Image:
    """Return an image turned by quarter turns and mirrored, as a display matrix says.

    A point (x, y) of the image goes to (a x + c y, b x + d y).
    """
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, to_right, to_bottom = pixels.transpose(1, 0, 2), c, b
    else:
        to_right, to_bottom = a, d
    return pixels[:: -1 if to_bottom < 0 else 1, :: -1 if to_right < 0 else 1]


def without_combs(pixels: Image) -> Image:
    """Return an interlaced image (h, w, 3) of one moment: the lines of its other field are means of their neighbours."""
    field = pixels[::2].astype(np.uint16)
    below = np.concatenate([field[1:], field[-1:]])
    out = pixels.copy()
    out[1::2] = ((field + below) // 2)[: len(out[1::2])]
    return out
