"""Ingest: what a layout names becomes validated rows of samples."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from fer_pipeline.core import storage
from fer_pipeline.core.boundary import as_record_error
from fer_pipeline.core.isolated import IsolatedProcess
from fer_pipeline.core.labels import LabelSpace
from fer_pipeline.core.schemas import SAMPLES
from fer_pipeline.sources.layouts.layout import DAMAGED, Excluded, Reading, Sample
from fer_pipeline.stages.crops import Cropper, NoCrop, perceptual_hash, pixel_digest
from fer_pipeline.stages.decode import decode, survives
from fer_pipeline.stages.fetch import Fetched, fetch

MAX_PIXELS = 100_000_000
MAX_BYTES = 100_000_000
ROWS_PER_TABLE = 256
TIMEOUT_S = 60.0
"""Time that decoding one image, and cutting its face, may take."""


def validate(
    reading: Reading,
    space: LabelSpace,
    cropper: Cropper | None,
    watch: Callable[[], AbstractContextManager[None]] = nullcontext,
    careful: bool = False,
) -> tuple[pa.Table, list[Excluded]]:
    """Return the samples that decode as rows of `schemas.SAMPLES`, and the records that are none.

    Without a cropper images are kept as they came, encoded; with one their face's crop is, as PNG. `watch` is opened around the
    work on one record. `careful` decodes every image in another process first, for a part that killed a worker.
    """
    items = _items(reading)
    if careful:
        items = _survivors(items)
    records = (item.image for item in items if isinstance(item, Sample) and not isinstance(item.image, bytes))
    tables, rows, excluded = [], list[dict[str, Any]](), list[Excluded]()
    with fetch(records, MAX_BYTES) as images:
        for item in items:
            if isinstance(item, Excluded):
                excluded.append(item)
                continue
            try:
                image = item.image if isinstance(item.image, bytes) else next(images)
                with watch():
                    rows.append(_row(item, image, space, cropper))
            except NoCrop as none:
                excluded.append(Excluded(none.kind, item.source, none.reason))
            except Exception as error:  # noqa: BLE001 (the boundary around one record)
                excluded.append(Excluded(DAMAGED, item.source, as_record_error(error, "undecodable").reason))
            if len(rows) == ROWS_PER_TABLE:
                tables.append(pa.Table.from_pylist(rows, schema=SAMPLES))
                rows = []
    return pa.concat_tables([*tables, pa.Table.from_pylist(rows, schema=SAMPLES)]), excluded


def _survivors(items: list[Sample | Excluded]) -> list[Sample | Excluded]:
    """Return the items with those that kill the process that decodes them excluded."""
    process, found = IsolatedProcess(), list[Sample | Excluded]()
    try:
        for item in items:
            error = None
            if isinstance(item, Sample) and not isinstance(item.image, bytes):
                error = survives(process, item.image, MAX_PIXELS, MAX_BYTES, TIMEOUT_S)
            found.append(Excluded(DAMAGED, item.source, error.reason) if error else item)
    finally:
        process.close()
    return found


def _items(reading: Reading) -> list[Sample | Excluded]:
    """Return what a part of a dataset holds; one that breaks off ends with a record that says so."""
    items: list[Sample | Excluded] = []
    try:
        items.extend(reading)  # keeps what came before the error
    except Exception as error:
        if isinstance(error, storage.STORAGE_ERRORS) and not storage.says_damage(error):
            raise
        place = f"behind {items[-1].source}" if items else "the beginning"
        items.append(Excluded(DAMAGED, place, f"the file breaks off: {as_record_error(error, 'undecodable').reason}"))
    return items


def _row(sample: Sample, image: Fetched, space: LabelSpace, cropper: Cropper | None) -> dict[str, Any]:
    photo = decode(image, MAX_PIXELS)
    pixels = cropper(photo.pixels, sample.face) if cropper else photo.pixels
    grey = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), np.uint8)
    return {
        "sample_id": sample.source,
        "image": cv2.imencode(".png", pixels)[1].tobytes() if cropper else image,
        "label": space.classes.index(sample.label),
        "split": sample.split,
        "source": sample.source,
        "votes": sample.votes,
        "sha256": pixel_digest(pixels),
        "phash": perceptual_hash(grey),
        "contrast": float(grey.std()),
        "width": pixels.shape[1],
        "height": pixels.shape[0],
    }
