"""Pictures of labelled faces, cut from their images in another process."""

import base64
import logging
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from fer_pipeline.archive.record import Record
from fer_pipeline.base import storage
from fer_pipeline.base.errors import OutageError, RecordError
from fer_pipeline.report.pictures import PictureLimits, PictureProcess, Wanted

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
    rows, missing = faces.to_pylist(), Counter[str]()
    wanted, places = list[Wanted](), list[int]()
    for index, (row, record) in enumerate(zip(rows, records, strict=True)):
        if record is None:
            missing["gone"] += 1
        elif not storage.is_below(record.uri, source):
            missing["outside the source"] += 1
        else:
            wanted.append(Wanted(record, ((row["x"], row["y"], row["w"], row["h"]),)))
            places.append(index)
    crops = list[Crop]()
    with closing(PictureProcess(limits)) as process:
        try:
            found = process.cut(wanted) if wanted else []
        except OutageError as error:
            raise OutageError(f"the pictures cannot be cut: {error}") from error
    for index, urls in zip(places, found, strict=True):
        if isinstance(urls, RecordError):
            missing[urls.reason] += 1
        else:
            crops.append(Crop(base64.b64decode(urls[0].partition(",")[2]), rows[index]))
    for reason, count in missing.items():
        log.warning("%d of the faces have no picture: %s", count, reason)
    return crops
