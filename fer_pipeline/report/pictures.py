"""Pictures of strangers' images, cut in a process of their own under a record's limits: what draws a page decodes nothing."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from fer_pipeline.core.boundary import as_record_error
from fer_pipeline.core.errors import RecordError
from fer_pipeline.core.isolated import IsolatedProcess, ProcessDiedError, TimedOutError
from fer_pipeline.core.manifest import Record
from fer_pipeline.core.run import RunRecord
from fer_pipeline.report.annotate import annotate
from fer_pipeline.report.page import jpeg_url
from fer_pipeline.stages.align import square, warp_crop
from fer_pipeline.stages.decode import decode
from fer_pipeline.stages.fetch import Fetched, fetch

TIMEOUT_S = 60.0
"""Time that one picture may take."""
MOST_DEATHS = 3
"""Deaths of the process after which the remaining pictures are left out: each may take `TIMEOUT_S`."""
FACE_PX, WHOLE_PX = 128, 96
"""Sides of the pictures of a face and of a whole image."""
SURROUNDINGS = 1.8
"""Side of the pictured square over that of the face's box."""
ENOUGH_PX = 1024
"""Long side to which a photo is decoded for pictures of its faces."""


@dataclass(frozen=True)
class PictureLimits:
    """How images are read and decoded."""

    max_pixels: int
    max_bytes: int
    image_column: str | None = None

    @classmethod
    def of(cls, record: RunRecord) -> "PictureLimits":
        """Return those under which a run labelled."""
        return cls(record.known.max_pixels, record.known.max_bytes, record.known.image_column)


@dataclass(frozen=True)
class Wanted:
    """Pictures of one record: of the faces in these boxes, in pixels of the upright image; without any, of the whole image."""

    record: Record
    boxes_xywh: tuple[tuple[float, float, float, float], ...] = ()


class PictureProcess:
    """Cuts pictures in another process, which is started when first needed."""

    def __init__(self, limits: PictureLimits) -> None:
        self.limits, self._process = asdict(limits), IsolatedProcess()

    def cut(self, wanted: Sequence[Wanted]) -> list[list[str] | RecordError]:
        """Return each record's pictures as data URLs, or why there are none. Raise OutageError where the store is down."""
        try:
            return self._cut(wanted)
        except ValueError:  # one of them kills the process, hangs it, or breaks the call off: each alone
            return list(self._each(wanted))

    def _each(self, wanted: Sequence[Wanted]) -> Iterator[list[str] | RecordError]:
        deaths = 0
        for one in wanted:
            if deaths == MOST_DEATHS:
                yield RecordError("crashed", f"not tried: the process that cuts pictures died {deaths} times")
                continue
            try:
                yield from self._cut([one])
            except (ProcessDiedError, TimedOutError) as error:
                deaths += 1
                yield RecordError("timed_out" if isinstance(error, TimedOutError) else "crashed", str(error))
            except ValueError as error:
                yield RecordError("undecodable", str(error))

    def _cut(self, wanted: Sequence[Wanted]) -> list[list[str] | RecordError]:
        function = f"{__name__}:{cut.__name__}"
        answers = self._process.call(function, [asdict(one) for one in wanted], self.limits, timeout_s=TIMEOUT_S)
        return [RecordError(*answer["error"]) if "error" in answer else answer["urls"] for answer in answers]

    def marked(self, record: Record, faces: Sequence[dict[str, Any]]) -> bytes:
        """Return a copy of an image with its faces marked, as a JPEG; raise ValueError with the reason where it cannot be had."""
        function = f"{__name__}:{mark.__name__}"
        (found,) = self._process.call(function, asdict(record), list(faces), self.limits, timeout_s=TIMEOUT_S)
        return base64.b64decode(found)

    def close(self) -> None:
        self._process.close()


def cut(wanted: Sequence[dict[str, Any]], limits: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield, for each record, its pictures' `urls`, or the `error` that it has: in the other process."""
    bounds = PictureLimits(**limits)
    records = [Record(**one["record"]) for one in wanted]
    with fetch(records, bounds.max_bytes, bounds.image_column) as fetched:
        for one, data in zip(wanted, fetched, strict=True):
            try:
                yield {"urls": _urls(data, one["boxes_xywh"], bounds.max_pixels)}
            except Exception as error:  # noqa: BLE001 (the boundary around one record)
                its_own = as_record_error(error, "undecodable")
                yield {"error": [its_own.status, its_own.reason]}


def _urls(data: Fetched, boxes_xywh: Sequence[Sequence[float]], max_pixels: int) -> list[str]:
    photo = decode(data, max_pixels, ENOUGH_PX if boxes_xywh else WHOLE_PX)
    if not boxes_xywh:
        scale = WHOLE_PX / max(photo.pixels.shape[:2])
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        return [jpeg_url(np.asarray(cv2.resize(photo.pixels, None, fx=scale, fy=scale, interpolation=how), np.uint8))]
    squares = [square(np.array(box) / photo.reduction, SURROUNDINGS, FACE_PX) for box in boxes_xywh]
    return [jpeg_url(warp_crop(photo.pixels, place, FACE_PX)) for place in squares]


def mark(record: dict[str, Any], faces: list[dict[str, Any]], limits: dict[str, Any]) -> Iterator[str]:
    """Yield an image with its faces marked, as a JPEG in base 64: in the other process."""
    bounds = PictureLimits(**limits)
    with fetch([Record(**record)], bounds.max_bytes, bounds.image_column) as fetched:
        pixels = decode(next(fetched), bounds.max_pixels).pixels
    yield base64.b64encode(cv2.imencode(".jpg", annotate(pixels, faces))[1].tobytes()).decode()
