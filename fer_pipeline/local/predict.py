"""Label a few images at once, in this process and without Ray: what was found, and annotated copies."""

import logging
import re
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import Field

from fer_pipeline.core import storage
from fer_pipeline.core.config import Config
from fer_pipeline.core.errors import FailureRateExceeded, UserError
from fer_pipeline.core.isolated import IsolatedProcess
from fer_pipeline.core.manifest import Record, manifest_table
from fer_pipeline.core.memory import MEMORY_BYTES, bounded_memory, lift_memory_limit
from fer_pipeline.core.schemas import FINE
from fer_pipeline.models.bundle import EMBEDDED
from fer_pipeline.report.pictures import PictureLimits, PictureProcess
from fer_pipeline.sources.files import Selection
from fer_pipeline.sources.listing import Listing
from fer_pipeline.stages.classify import Precision, read_tried
from fer_pipeline.stages.decode import survives
from fer_pipeline.stages.detectors import DETECTOR_HELP, DETECTORS, DetectorName, resolve_detector
from fer_pipeline.stages.label import Labeller, LabelSettings, Poison

log = logging.getLogger(__name__)
TIMEOUT_S = 60.0
"""Time that decoding one image may take."""
STEM_CHARACTERS = 60
"""Of an image's name in the name of its annotated copy."""


class PredictConfig(Config):
    """Label the apparent expressions in a few images, and write copies with the faces marked."""

    out: str = "predictions"
    """Folder of the annotated copies."""
    model: str = EMBEDDED
    """Folder of a model bundle, NAME@ALIAS of a registry, or `embedded`."""
    detector: DetectorName = Field("auto", description=f"{DETECTOR_HELP}.")
    detector_weights: str | None = None
    """File of the detector's weights, where it is not in $FER_PIPELINE_MODELS or the cache."""
    detect_px: int = Field(640, ge=32)
    """Long side to which images are shrunk for detection."""
    fps: float = Field(1.0, gt=0, le=1000)
    """Frames sampled from a second of video."""
    max_pixels: int = Field(100_000_000, ge=1)
    """Larger images are not decoded."""


class PredictResult(Config):
    """One entry for each image, in order."""

    images: list[dict[str, Any]]
    """`uri, member, time_ms, status, error, faces`, as in `images/` of a run, and `annotated`: where the copy is."""


def run(image: str, *more: str, config: PredictConfig = PredictConfig()) -> PredictResult:
    """Label the images (files, folders, containers or videos) and return what was found.

    Raise UserError where one does not exist or holds no images, FailureRateExceeded where not one could be labelled.
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
    labeller = Labeller(detector, bundle, settings)
    labeller.extract.bounded = bounded_memory(MEMORY_BYTES)
    try:
        (labelled,) = labeller([manifest_table(records, 0, 0)], poison)
    finally:
        lift_memory_limit()
    rows = labelled.to_pylist()
    out, found = storage.normalize(config.out), []
    with closing(PictureProcess(PictureLimits(settings.max_pixels, settings.max_bytes))) as process:
        for number, (row, record) in enumerate(zip(rows, records, strict=True)):
            entry = {key: row[key] for key in ("uri", "member", "time_ms", "status", "error", "faces")}
            path = storage.join(out, f"{number:04d}-{_stem(row)}.jpg")
            found.append(entry | {"annotated": path if _marked(process, record, row, path) else None})
            log.info("'%s': %s", row["member"] or row["uri"], _sentence(row))
    if all(entry["status"] not in FINE for entry in found):
        raise FailureRateExceeded(f"None of the {len(found)} images could be labelled: the lines above say why.")
    return PredictResult(images=found)


def _marked(process: PictureProcess, record: Record, row: dict[str, Any], path: str) -> bool:
    """Write a copy of an image with its faces marked, where it was looked at; tell whether there is one."""
    if row["status"] not in FINE:
        return False
    try:
        picture = process.marked(record, row["faces"])
    except ValueError as error:
        log.warning("'%s' has no copy with its faces marked: %s", row["member"] or row["uri"], error)
        return False
    storage.write_bytes(path, picture)
    return True


def _records(source: str, selection: Selection) -> list[Record]:
    storage.require_access(source)
    records = list(Listing(source, selection))
    if not records:
        raise UserError(f"'{source}' holds no images.")
    return records


def _poison(records: list[Record], settings: LabelSettings) -> Poison:
    """Return the records that kill the process that decodes them: each is decoded in another one first."""
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


def _stem(row: dict[str, Any]) -> str:
    moment = "" if row["time_ms"] is None else f"-{row['time_ms']}ms"
    stem = re.sub(r"[^\w.-]", "_", Path(row["member"] or row["uri"]).stem)
    return stem[:STEM_CHARACTERS] + moment


def _sentence(row: dict[str, Any]) -> str:
    if row["status"] == "no_face":
        return "no face"
    if row["error"]:
        return f"{row['status']}: {row['error']}"
    labels = [f"{face['expression']} {face['confidence']:.0%}" + " (uncertain)" * face["uncertain"] for face in row["faces"]]
    return f"{len(labels)} face{'s' if len(labels) > 1 else ''}: {', '.join(labels)}"
