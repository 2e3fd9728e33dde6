"""Label a few images in this process, without Ray: files, encoded bytes and arrays."""

import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from fer_pipeline.archive.capture import UNKNOWN
from fer_pipeline.archive.fetch import Fetched, fetch
from fer_pipeline.archive.files import Selection
from fer_pipeline.archive.formats.spec import Frame
from fer_pipeline.archive.listing import Listing
from fer_pipeline.archive.record import Record
from fer_pipeline.base import storage
from fer_pipeline.base.errors import RecordError, UserError
from fer_pipeline.base.isolated import IsolatedProcess
from fer_pipeline.base.memory import MAX_PIXELS, lift_memory_limit
from fer_pipeline.faces.classify import Precision, read_tried
from fer_pipeline.faces.decode import survives
from fer_pipeline.faces.detectors import DETECTORS, resolve_detector
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.labelling.labeller import Labeller, LabelSettings
from fer_pipeline.labelling.manifest import manifest_table
from fer_pipeline.labelling.schemas import FAILED
from fer_pipeline.models.bundle import EMBEDDED
from fer_pipeline.table.flat import TO_FIND, flat_faces
from fer_pipeline.table.rows import require_free_columns

TIMEOUT_S = 60.0
"""Time limit for decoding one image."""
Channels = Literal["rgb", "bgr"]


class Predictor:
    """A model and a detector, loaded once, that label records, encoded bytes and BGR pixels."""

    def __init__(
        self,
        model: str = EMBEDDED,
        detector: str = "auto",
        detector_weights: str | None = None,
        detect_px: int = 640,
        max_pixels: int = MAX_PIXELS,
        memory_bytes: int | None = None,
    ) -> None:
        """`memory_bytes`: limit of what images may take beyond what this process has; for a process of its own.

        Raise UserError if the model or the detector cannot be had.
        """
        bundle, found = read_tried(model), resolve_detector(detector, detector_weights)
        require_free_columns(bundle.card)
        precision: Precision = "int8" if bundle.int8 is not None else "fp32"
        self.detector, self.classes = found, bundle.card.label_space.classes
        self.outputs = tuple(one.column for one in bundle.card.further)
        self.settings = LabelSettings(
            detect_px=detect_px,
            threshold=DETECTORS[found.name].threshold,
            max_pixels=max_pixels,
            max_bytes=2**31,
            precision=precision,
            uncertain_below=bundle.computing_in(precision).card.calibration.uncertain_below,
        )
        self.labeller, self.is_limited = Labeller(found, bundle, self.settings, memory_bytes=memory_bytes), bool(memory_bytes)

    def rows(self, items: Sequence[Record | bytes | Pixels]) -> pa.Table:
        """Return a row of `schemas.LABELLED` for each item. A record that would crash or hang this process fails."""
        records = [one if isinstance(one, Record) else Record(f"image {index}") for index, one in enumerate(items)]
        poison = self._poison(items)
        files = (poison.get(index, one) for index, one in enumerate(items) if isinstance(one, Record))
        try:
            with fetch(files, self.settings.max_bytes) as fetched:
                data = (next(fetched) if isinstance(one, Record) else _as_fetched(one) for one in items)
                return self.labeller.label(manifest_table(records, 0, 0), data)
        finally:
            if self.is_limited:
                lift_memory_limit()

    def _poison(self, items: Sequence[Any]) -> dict[int, RecordError]:
        """Return the errors of records that crash or hang a decoder: each is decoded in another process first."""
        process, limits = IsolatedProcess(), (self.settings.max_pixels, self.settings.max_bytes, TIMEOUT_S)
        try:
            errors = {
                index: survives(process, one, *limits)
                for index, one in enumerate(items)
                if isinstance(one, Record) and not one.error
            }
        finally:
            process.close()
        return {index: error for index, error in errors.items() if error}


class _Array:
    """An image in memory, as a video of one frame."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels
        self.size_px, self.capture = (pixels.shape[1], pixels.shape[0]), UNKNOWN

    def at(self, time_ms: int) -> Pixels:
        return self.pixels


def _as_fetched(item: bytes | Pixels) -> Fetched:
    return item if isinstance(item, bytes) else Frame(_Array(item), 0)


def listed(source: str, selection: Selection) -> list[Record]:
    """Return the records of a file, a folder, a container or a video. Raise UserError if there are none."""
    storage.require_access(source)
    listing = Listing(source, selection)
    records = list(listing)
    listing.log_skipped()
    if not records:
        raise UserError(listing.holds_nothing())
    return records


@lru_cache(2)
def _loaded(*arguments: Any) -> Predictor:
    return Predictor(*arguments)


def predict(
    images: Any,
    *,
    channels: Channels | None = None,
    model: str = EMBEDDED,
    detector: str = "auto",
    detector_weights: str | None = None,
    detect_px: int = 640,
    fps: float = 1.0,
) -> pa.Table:
    """Label images in memory and return one row for each face; write nothing.

    `images`: one image or a list of them. An image is a path or a URL (of a file, a folder, a container or a video), the bytes of
    a file, or an upright uint8 array (h, w, 3) or (h, w); `channels` says whether arrays are "rgb" (Pillow, scikit-image) or
    "bgr" (OpenCV). Column `input` is the position in the list; docs/python.md lists the others. An image without a face has no
    row; one that cannot be read has none, and a warning. The model stays loaded for the next call. Raise UserError if a path does
    not exist, an array is none, or the model or the detector cannot be had.
    """
    if not (isinstance(detect_px, int) and detect_px >= 32 and 0 < fps <= 1000):
        raise UserError(f"detect_px must be at least 32, and fps above 0 and at most 1000: they are {detect_px!r} and {fps!r}.")
    given = list(images) if isinstance(images, list | tuple) else [images]
    items, inputs, sources = list[Record | bytes | Pixels](), list[int](), list[str]()
    for index, one in enumerate(given):
        found = list(_items(one, f"Image {index}", channels, Selection(fps=fps)))
        items += found
        inputs += [index] * len(found)
        sources += [storage.normalize(str(one)) if isinstance(one, str | Path) else ""] * len(found)
    predictor = _loaded(str(model), detector, detector_weights and str(detector_weights), detect_px)
    rows = predictor.rows(items)
    names = ",".join(predictor.outputs) or None
    rows = rows.append_column("output_names", pa.array([names] * len(rows), pa.string()))
    rows = rows.append_column("input", pa.array(inputs, pa.int32())).append_column("source", pa.array(sources, pa.string()))
    for row in rows.select(["uri", "member", "status", "error"]).to_pylist():
        if row["status"] in FAILED:
            name = f"{row['uri']}{'/' + row['member'] if row['member'] else ''}"
            warnings.warn(f"'{name}' has no label: {row['status']}, {row['error']}", stacklevel=2)
    faces = flat_faces(rows, predictor.classes, "", predictor.outputs)
    return faces.select(["input", *(name for name in faces.column_names if name not in ("input", "folder", *TO_FIND))])


def _items(given: Any, name: str, channels: Channels | None, selection: Selection) -> Iterator[Record | bytes | Pixels]:
    if isinstance(given, bytes):
        yield given
    elif isinstance(given, str | Path) and str(given):
        yield from listed(storage.normalize(str(given)), selection)
    elif isinstance(given, np.ndarray):
        yield _as_bgr(given, name, channels)
    else:
        raise UserError(
            f"{name} is {type(given).__name__} {str(given)[:40]!r}: give a path, the bytes of a file, or a NumPy array."
        )


def _as_bgr(array: Any, name: str, channels: Channels | None) -> Pixels:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape or array.shape[2:] not in ((), (3,)):
        raise UserError(f"{name} has the type {array.dtype} and the shape {array.shape}: give uint8 of (h, w, 3) or (h, w).")
    if array.ndim == 2:
        return np.repeat(array[:, :, None], 3, axis=2)
    if channels not in ("rgb", "bgr"):
        raise UserError('The order of an array\'s channels is not said: give channels="rgb" (Pillow) or channels="bgr" (OpenCV).')
    return np.ascontiguousarray(array[:, :, ::-1] if channels == "rgb" else array)
