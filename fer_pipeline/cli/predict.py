"""Label a few images in this process, without Ray, and write annotated copies."""

import logging
import re
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import Field

from fer_pipeline.api.prediction import Predictor, listed
from fer_pipeline.archive.files import Selection
from fer_pipeline.archive.record import Record
from fer_pipeline.base import storage
from fer_pipeline.base.config import Config
from fer_pipeline.base.errors import FailureRateExceeded
from fer_pipeline.base.memory import MAX_PIXELS, MEMORY_BYTES
from fer_pipeline.cli.readable import labels_of
from fer_pipeline.faces.detectors import DETECTOR_HELP, DetectorName
from fer_pipeline.labelling.schemas import SUCCEEDED
from fer_pipeline.models.bundle import EMBEDDED
from fer_pipeline.report.pictures import PictureLimits, PictureProcess

log = logging.getLogger(__name__)


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
    records = [record for source in (image, *more) for record in listed(storage.normalize(source), selection)]
    options = config.model, config.detector, config.detector_weights, config.detect_px, config.max_pixels
    predictor = Predictor(*options, memory_bytes=MEMORY_BYTES)
    log.info("Detector: %s (%s)", predictor.detector.name, predictor.detector.origin)
    settings, labelled = predictor.settings, predictor.rows(records)
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
    count = len(row["faces"])
    return f"{count} face{'s' if count > 1 else ''}: {labels_of(row['faces'])}"
