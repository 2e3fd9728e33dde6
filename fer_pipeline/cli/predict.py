"""Label a few images in this process, without Ray, and write annotated copies."""

import logging
import re
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import Field

from fer_pipeline.archive.files import Selection
from fer_pipeline.archive.listing import Listing
from fer_pipeline.archive.record import Record
from fer_pipeline.base import storage
from fer_pipeline.base.config import Config
from fer_pipeline.base.errors import FailureRateExceeded, UserError
from fer_pipeline.base.isolated import IsolatedProcess
from fer_pipeline.base.memory import MAX_PIXELS, MEMORY_BYTES, lift_memory_limit
from fer_pipeline.faces.classify import Precision, read_tried
from fer_pipeline.faces.decode import survives
from fer_pipeline.faces.detectors import DETECTOR_HELP, DETECTORS, DetectorName, resolve_detector
from fer_pipeline.labelling.labeller import Labeller, LabelSettings, Poison
from fer_pipeline.labelling.manifest import manifest_table
from fer_pipeline.labelling.schemas import SUCCEEDED
from fer_pipeline.models.bundle import EMBEDDED
from fer_pipeline.report.pictures import PictureLimits, PictureProcess

log = logging.getLogger(__name__)
TIMEOUT_S = 60.0
"""Time limit for decoding one image."""


class PredictConfig(Config):
    """Label the apparent expressions in a few images, and write copies with the faces marked."""

    out: str = "predictions"
    """Folder for the annotated copies."""
    model: str = EMBEDDED
    """Folder of a model bundle, NAME@ALIAS of a registry, or `embedded`."""
    detector: DetectorName = Field("auto", description=f"{DETECTOR_HELP}.")
    detector_weights: str | None = None
    """File of the detector's weights, if it is not in $FER_PIPELINE_MODELS or the cache."""
    detect_px: int = Field(640, ge=32)
    """Long side to which images are shrunk for detection, and panoramas' tiles."""
    fps: float = Field(1.0, gt=0, le=1000)
    """Frames sampled per second of video."""
    max_pixels: int = Field(MAX_PIXELS, ge=1)
    """Larger images are not decoded."""


class PredictResult(Config):
    """One entry per image, in order."""

    images: list[dict[str, Any]]
    """`uri, member, time_ms, status, error, faces`, as in `images/` of a run, and `annotated`: the path of the copy."""


def run(image: str, *more: str, config: PredictConfig = PredictConfig()) -> PredictResult:
    """Label the images (files, folders, containers or videos) and return the results.

    Raise UserError if a source does not exist or holds no images, FailureRateExceeded if no image could be labelled.
    """
    selection = Selection(fps=config.fps)
    records = [record for source in (image, *more) for record in _records(storage.normalize(source), selection)]
    bundle, detector = read_tried(config.model), resolve_detector(config.detector, config.detector_weights)
    precision: Precision = "int8" if bundle.int8 is not None else "fp32"
    settings = LabelSettings(
        detect_px=config.detect_px,
        threshold=DETECTORS[detector.name].threshold,
        max_pixels=config.max_pixels,
        max_bytes=2**31,
        precision=precision,
        uncertain_below=bundle.computing_in(precision).card.calibration.uncertain_below,
    )
    poison = _poison(records, settings)
    labeller = Labeller(detector, bundle, settings, memory_bytes=MEMORY_BYTES)
    try:
        (labelled,) = labeller([manifest_table(records, 0, 0)], poison)
    finally:
        lift_memory_limit()
    rows = labelled.to_pylist()
    out, found = storage.normalize(config.out), []
    with closing(PictureProcess(PictureLimits(settings.max_pixels, settings.max_bytes))) as process:
        for number, (row, record) in enumerate(zip(rows, records, strict=True)):
            entry = {key: row[key] for key in ("uri", "member", "time_ms", "status", "error", "faces")}
            path = storage.join(out, f"{number:04d}-{_file_stem(row)}.jpg")
            found.append(entry | {"annotated": path if _marked(process, record, row, path) else None})
            log.info("'%s': %s", row["member"] or row["uri"], _summary(row))
    if all(entry["status"] not in SUCCEEDED for entry in found):
        raise FailureRateExceeded(f"None of the {len(found)} images could be labelled: the log above says why.")
    return PredictResult(images=found)


def _marked(process: PictureProcess, record: Record, row: dict[str, Any], path: str) -> bool:
    """Write a copy of an image with its faces marked, unless the image failed; return whether it was written."""
    if row["status"] not in SUCCEEDED:
        return False
    try:
        picture = process.marked(record, row["faces"])
    except ValueError as error:
        log.warning("'%s' has no annotated copy: %s", row["member"] or row["uri"], error)
        return False
    storage.write_bytes(path, picture)
    return True


def _records(source: str, selection: Selection) -> list[Record]:
    storage.require_access(source)
    listing = Listing(source, selection)
    records = list(listing)
    listing.log_skipped()
    if not records:
        raise UserError(listing.holds_nothing())
    return records


def _poison(records: list[Record], settings: LabelSettings) -> Poison:
    """Return the records that crash or hang a decoder: each record is decoded in a separate process first."""
    process = IsolatedProcess()
    try:
        errors = {
            index: survives(process, record, settings.max_pixels, settings.max_bytes, TIMEOUT_S)
            for index, record in enumerate(records)
            if not record.error
        }
    finally:
        process.close()
    return {index: (error.status, error.reason) for index, error in errors.items() if error}


def _file_stem(row: dict[str, Any]) -> str:
    moment = "" if row["time_ms"] is None else f"-{row['time_ms']}ms"
    stem = re.sub(r"[^\w.-]", "_", Path(row["member"] or row["uri"]).stem)
    return stem[:60] + moment  # keeps file names short


def _summary(row: dict[str, Any]) -> str:
    if row["note"]:
        return f"{_summary(row | {'note': None})} ({row['note']})"
    if row["status"] == "no_face":
        return "no face"
    if row["error"]:
        return f"{row['status']}: {row['error']}"
    labels = [f"{face['expression']} {face['confidence']:.0%}" + " (uncertain)" * face["uncertain"] for face in row["faces"]]
    return f"{len(labels)} face{'s' if len(labels) > 1 else ''}: {', '.join(labels)}"
