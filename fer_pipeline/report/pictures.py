"""Cut pictures from untrusted images in a separate process with limits; the process that draws a page decodes nothing."""

import base64
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from fer_pipeline.archive.fetch import Fetched, fetch
from fer_pipeline.archive.record import Record
from fer_pipeline.base import storage
from fer_pipeline.base.boundary import as_record_error
from fer_pipeline.base.errors import RecordError
from fer_pipeline.base.isolated import IsolatedProcess, ProcessDiedError, TimedOutError
from fer_pipeline.faces.align import box_transform, warp_crop
from fer_pipeline.faces.decode import decode
from fer_pipeline.labelling.run import RunRecord
from fer_pipeline.report.annotate import annotate
from fer_pipeline.report.page import jpeg_url

TIMEOUT_S = 60.0
"""Time limit for the pictures of one record."""
MAX_CRASHES = 3
"""After this many crashes or timeouts the remaining pictures are skipped, because each may take `TIMEOUT_S`."""
FACE_PX = 128
"""Side of the picture of a face."""
WHOLE_PX = 96
"""Long side of the picture of a whole image."""
FULL_SIZE, FULL_QUALITY = 0, 92
"""Instead of a long side: the image as large as it is, as a JPEG of this quality."""


Box = tuple[float, float, float, float]
"""x, y, width and height in pixels of the upright image."""


@dataclass(frozen=True)
class PictureLimits:
    """Limits for reading and decoding images."""

    max_pixels: int
    max_bytes: int
    image_column: str | None = None

    @classmethod
    def of(cls, record: RunRecord) -> "PictureLimits":
        """Return the limits of a labelling run."""
        return cls(record.known.max_pixels, record.known.max_bytes, record.known.image_column)


@dataclass(frozen=True)
class Wanted:
    """Pictures to cut from one record: of the faces in these boxes (pixels of the upright image), or of the whole image."""

    record: Record
    boxes_xywh: tuple[Box, ...] = ()
    whole_px: int = WHOLE_PX
    """Longer side of the picture of a whole image, or `FULL_SIZE`."""


class PictureProcess:
    """Cuts pictures in another process, which starts with the first call."""

    def __init__(self, limits: PictureLimits) -> None:
        self.limits, self._process = asdict(limits), IsolatedProcess()

    def cut(self, wanted: Sequence[Wanted]) -> list[list[str] | RecordError]:
        """Return each record's pictures as data URLs, or the error. Raise OutageError if the store is unavailable."""
        try:
            return self._cut(wanted)
        except ValueError:  # a record crashes or hangs the process, or aborts the call: try each record alone
            return list(self._cut_each(wanted))

    def _cut_each(self, wanted: Sequence[Wanted]) -> Iterator[list[str] | RecordError]:
        crashes = 0
        for one in wanted:
            if crashes == MAX_CRASHES:
                yield RecordError("crashed", f"skipped: the process that cuts pictures crashed or timed out {crashes} times")
                continue
            try:
                yield from self._cut([one])
            except (ProcessDiedError, TimedOutError) as error:
                crashes += 1
                yield RecordError("timed_out" if isinstance(error, TimedOutError) else "crashed", str(error))
            except ValueError as error:
                yield RecordError("undecodable", str(error))

    def _cut(self, wanted: Sequence[Wanted]) -> list[list[str] | RecordError]:
        function = f"{__name__}:{cut.__name__}"
        answers = self._process.call(function, [asdict(one) for one in wanted], self.limits, timeout_s=TIMEOUT_S)
        return [RecordError(*answer["error"]) if "error" in answer else answer["urls"] for answer in answers]

    def marked(self, record: Record, faces: Sequence[dict[str, Any]]) -> bytes:
        """Return a copy of an image with its faces marked, as a JPEG. Raise ValueError with the reason if it cannot be read."""
        function = f"{__name__}:{mark.__name__}"
        (found,) = self._process.call(function, asdict(record), list(faces), self.limits, timeout_s=TIMEOUT_S)
        return base64.b64decode(found)

    def close(self) -> None:
        self._process.close()


def cut_faces(
    faces: Sequence[tuple[Record, Box | None]], source: str, limits: PictureLimits, whole_px: int = WHOLE_PX
) -> list[str | RecordError]:
    """Return the picture of each face, or of the whole image, as a data URL, or why it has none.

    Only files below `source` are opened, each record once. Raise OutageError if the store is unavailable.
    """
    pictures: list[str | RecordError] = [RecordError("outside the source", "outside the source")] * len(faces)
    places = defaultdict[tuple[Record, bool], list[int]](list)
    for index, (record, box) in enumerate(faces):
        if storage.is_below(record.uri, source):
            places[record, box is None].append(index)
    boxes = {key: tuple(box for index in indices if (box := faces[index][1])) for key, indices in places.items()}
    wanted = [Wanted(record, boxes[record, is_whole], whole_px) for record, is_whole in places]
    with closing(PictureProcess(limits)) as process:
        found = process.cut(wanted) if wanted else []
    for (_, is_whole), indices, urls in zip(places, places.values(), found, strict=True):
        for place, index in enumerate(indices):
            pictures[index] = urls if isinstance(urls, RecordError) else urls[0 if is_whole else place]
    return pictures


def cut(wanted: Sequence[dict[str, Any]], limits: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the `urls` of each record's pictures, or its `error`. This runs in the other process."""
    bounds = PictureLimits(**limits)
    records = [Record(**one["record"]) for one in wanted]
    with fetch(records, bounds.max_bytes, bounds.image_column) as fetched:
        for one, data in zip(wanted, fetched, strict=True):
            try:
                yield {"urls": _urls(data, one["boxes_xywh"], bounds.max_pixels, one["whole_px"])}
            except Exception as error:  # noqa: BLE001 (the boundary around one record)
                record_error = as_record_error(error, "undecodable")
                yield {"error": [record_error.status, record_error.reason]}


def _urls(data: Fetched, boxes_xywh: Sequence[Sequence[float]], max_pixels: int, whole_px: int) -> list[str]:
    photo = decode(data, max_pixels, (1024 if boxes_xywh else whole_px) or None)  # reduced JPEGs decode faster
    if not boxes_xywh and whole_px == FULL_SIZE:
        return [jpeg_url(photo.pixels, FULL_QUALITY)]
    if not boxes_xywh:
        scale = whole_px / max(photo.pixels.shape[:2])
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        return [jpeg_url(np.asarray(cv2.resize(photo.pixels, None, fx=scale, fy=scale, interpolation=interpolation), np.uint8))]
    squares = [box_transform(np.array(box) / photo.reduction, box_scale=1.8, side_px=FACE_PX) for box in boxes_xywh]
    return [jpeg_url(warp_crop(photo.pixels, place, FACE_PX)) for place in squares]


def mark(record: dict[str, Any], faces: list[dict[str, Any]], limits: dict[str, Any]) -> Iterator[str]:
    """Yield an image with its faces marked, as a JPEG in base 64. This runs in the other process."""
    bounds = PictureLimits(**limits)
    with fetch([Record(**record)], bounds.max_bytes, bounds.image_column) as fetched:
        pixels = decode(next(fetched), bounds.max_pixels).pixels
    yield base64.b64encode(cv2.imencode(".jpg", annotate(pixels, faces))[1].tobytes()).decode()
