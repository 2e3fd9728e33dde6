"""Pictures of labelled faces, cut from their images in another process."""

import base64
import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from fer_pipeline.archive.record import Record
from fer_pipeline.base.errors import RecordError
from fer_pipeline.report.pictures import PictureLimits, cut_faces

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Crop:
    """The picture of a face, with its row. Notebooks show the picture."""

    jpeg: bytes
    row: dict[str, Any]

    def __repr__(self) -> str:
        return f"Crop({self.row['path']}: {self.row['expression']} {self.row['confidence']:.0%})"

    def _repr_jpeg_(self) -> bytes:
        return self.jpeg


def cut_crops(faces: pa.Table, records: list[Record | None], source: str, limits: PictureLimits) -> list[Crop]:
    """Return the pictures of faces, rows of `flat_faces`, in their order. Only files below `source` are opened."""
    known = [(record, row) for record, row in zip(records, faces.to_pylist(), strict=True) if record]
    found = cut_faces([(record, (row["x"], row["y"], row["w"], row["h"])) for record, row in known], source, limits)
    missing = Counter(one.reason for one in found if isinstance(one, RecordError))
    if gone := len(records) - len(known):
        missing["gone"] = gone
    for reason, count in missing.items():
        log.warning("%d of the faces have no picture: %s", count, reason)
    pictures = zip(found, known, strict=True)
    return [Crop(base64.b64decode(one.partition(",")[2]), row) for one, (_, row) in pictures if isinstance(one, str)]
