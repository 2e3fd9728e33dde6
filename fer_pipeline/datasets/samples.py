"""Ingest: decode and validate the records of a layout, and return them as rows of samples."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from fer_pipeline.archive.fetch import Fetched, fetch
from fer_pipeline.base import storage
from fer_pipeline.base.boundary import as_record_error
from fer_pipeline.base.isolated import IsolatedProcess
from fer_pipeline.base.memory import MAX_PIXELS
from fer_pipeline.datasets.crops import Cropper, NoCropError, pixel_digest
from fer_pipeline.datasets.dataset import SAMPLES
from fer_pipeline.datasets.layouts.layout import DAMAGED, Excluded, Reading, Sample
from fer_pipeline.faces.decode import decode, survives
from fer_pipeline.faces.phash import perceptual_hash
from fer_pipeline.models.label_space import LabelSpace

MAX_BYTES = 100_000_000
TIMEOUT_S = 60.0
"""Time limit for one image: decoding it and cutting its face."""


@dataclass(frozen=True)
class Validated:
    """The records of a part: samples, and those that are excluded."""

    samples: pa.Table
    """Rows of `dataset.SAMPLES`."""
    excluded: list[Excluded]
    class_names: dict[str, str]
    """The class of each name or number that the dataset uses for it."""


def validate(
    reading: Reading,
    space: LabelSpace,
    cropper: Cropper | None,
    time_limit: Callable[[], AbstractContextManager[None]] = nullcontext,
    careful: bool = False,
) -> Validated:
    """Return the samples that can be decoded, and the records that are excluded.

    Without a cropper, a sample keeps the encoded image of the source; with a cropper, it holds the face crop as PNG. The work
    on each record runs inside `time_limit`. `careful` decodes every image in another process first, for a part that killed a
    worker.
    """
    items = _items(reading)
    if careful:
        items = _survivors(items)
    records = (item.image for item in items if isinstance(item, Sample) and not isinstance(item.image, bytes))
    tables, rows, excluded = [], list[dict[str, Any]](), list[Excluded]()
    class_names = {item.label.found: item.label.name for item in items if isinstance(item, Sample)}
    with fetch(records, MAX_BYTES) as images:
        for item in items:
            if isinstance(item, Excluded):
                excluded.append(item)
                continue
            try:
                image = item.image if isinstance(item.image, bytes) else next(images)
                with time_limit():
                    rows.append(_row(item, image, space, cropper))
            except NoCropError as error:
                excluded.append(Excluded(error.kind, item.source, error.reason))
            except Exception as error:  # noqa: BLE001 (the boundary around one record)
                excluded.append(Excluded(DAMAGED, item.source, as_record_error(error, "undecodable").reason))
            if len(rows) == 256:  # at most 256 rows are Python objects
                tables.append(pa.Table.from_pylist(rows, schema=SAMPLES))
                rows = []
    samples = pa.concat_tables([*tables, pa.Table.from_pylist(rows, schema=SAMPLES)])
    return Validated(samples, excluded, class_names)


def _survivors(items: list[Sample | Excluded]) -> list[Sample | Excluded]:
    """Return the items; an image that kills the process that decodes it becomes an `Excluded`."""
    process, checked = IsolatedProcess(), list[Sample | Excluded]()
    try:
        for item in items:
            error = None
            if isinstance(item, Sample) and not isinstance(item.image, bytes):
                error = survives(process, item.image, MAX_PIXELS, MAX_BYTES, TIMEOUT_S)
            checked.append(Excluded(DAMAGED, item.source, error.reason) if error else item)
    finally:
        process.close()
    return checked


def _items(reading: Reading) -> list[Sample | Excluded]:
    """Return the items of a part. If the part cannot be read to its end, the last item is an `Excluded` with the error."""
    items: list[Sample | Excluded] = []
    try:
        items.extend(reading)  # keeps the items before the error
    except Exception as error:
        if isinstance(error, storage.STORAGE_ERRORS) and not storage.says_damage(error):
            raise
        place = f"after {items[-1].source}" if items else "the beginning"
        items.append(Excluded(DAMAGED, place, f"the rest is unreadable: {as_record_error(error, 'undecodable').reason}"))
    return items


def _row(sample: Sample, image: Fetched, space: LabelSpace, cropper: Cropper | None) -> dict[str, Any]:
    photo = decode(image, MAX_PIXELS)
    pixels = cropper(photo.pixels, sample.face) if cropper else photo.pixels
    grey = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), np.uint8)
    return {
        "sample_id": sample.source,
        "image": cv2.imencode(".png", pixels)[1].tobytes() if cropper else image,
        "label": space.classes.index(sample.label.name),
        "split": sample.split,
        "source": sample.source,
        "votes": sample.votes,
        "sha256": pixel_digest(pixels),
        "phash": perceptual_hash(grey),
        "contrast": float(grey.std()),
        "width": pixels.shape[1],
        "height": pixels.shape[0],
    }
