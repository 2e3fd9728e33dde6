"""Label: a shard of the manifest in, a shard of `images` out, one row for every record whatever happens."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from fer_pipeline.core.errors import RecordError
from fer_pipeline.core.manifest import Record, records_of
from fer_pipeline.core.schemas import IMAGES
from fer_pipeline.models.card import BundleFiles
from fer_pipeline.stages.align import align
from fer_pipeline.stages.decode import Pixels, decode
from fer_pipeline.stages.detect import load_detector
from fer_pipeline.stages.detections import Detections
from fer_pipeline.stages.fetch import fetch
from fer_pipeline.stages.weights import DetectorWeights


@dataclass(frozen=True)
class LabelSettings:
    """What changes a label, besides the model and the detector's weights."""

    detect_px: int
    threshold: float
    max_pixels: int
    max_bytes: int
    precision: Literal["fp32", "bf16"]
    uncertain_below: float


@dataclass
class Outcome:
    """What became of one record."""

    status: str
    error: str | None = None
    width: int | None = None
    height: int | None = None
    faces: Detections | None = None
    crops: Pixels | None = None


class Labeller:
    """The detector and the classifier, loaded once in a process."""

    def __init__(self, detector: DetectorWeights, bundle: BundleFiles, settings: LabelSettings) -> None:
        from fer_pipeline.stages.classify import Classifier  # imports torch, which takes seconds: only where faces are labelled

        self.settings, self.card = settings, bundle.card
        self.whole = detector.name == "none"
        self.detect = load_detector(detector, settings.detect_px, settings.threshold)
        self.classify = Classifier(bundle, settings.precision)

    def __call__(self, manifest: pa.Table) -> pa.Table:
        """Return the rows of `schemas.IMAGES` for rows of `schemas.MANIFEST`, in their order."""
        records = records_of(manifest)
        outcomes = [self._look(data) for data in fetch(records, self.settings.max_bytes)]
        crops = [outcome.crops for outcome in outcomes if outcome.crops is not None]
        probabilities = self.classify(np.concatenate(crops)) if crops else np.zeros((0, 0), np.float32)
        rows, done = [], 0
        ids = manifest.select(["record_id", "shard"]).to_pylist()
        for identity, record, outcome in zip(ids, records, outcomes, strict=True):
            count = len(outcome.faces) if outcome.faces else 0
            faces = self._faces(outcome.faces, probabilities[done : done + count]) if outcome.faces else []
            rows.append(identity | _row(record, outcome) | {"faces": faces})
            done += count
        return pa.Table.from_pylist(rows, schema=IMAGES)

    def _look(self, data: bytes | RecordError) -> Outcome:
        """Decode, detect and align one record: its status is decided here."""
        try:
            if isinstance(data, RecordError):
                raise data
            photo = decode(data, self.settings.max_pixels, None if self.whole else self.settings.detect_px)
        except RecordError as error:
            return Outcome(error.status, error.reason)
        faces = self.detect(photo.pixels)
        if not len(faces):
            return Outcome("no_face", None, photo.width, photo.height)
        crops = align(photo.pixels, faces, self.card.network, self.card.framing, self.whole)
        return Outcome("ok", None, photo.width, photo.height, faces.scaled(photo.reduction), crops)

    def _faces(self, faces: Detections, probabilities: Any) -> list[dict[str, Any]]:
        classes = self.card.label_space.classes
        rows = []
        for index in range(len(faces)):
            x, y, w, h = faces.boxes_xywh[index].tolist()
            best = int(probabilities[index].argmax())
            confidence = float(probabilities[index, best])
            rows.append(
                {
                    "face_id": index,
                    "x": x,
                    "y": y,
                    "w": w,
                    "h": h,
                    "detection_score": float(faces.scores[index]),
                    "landmarks": None if faces.landmarks is None else faces.landmarks[index].ravel().tolist(),
                    "expression": classes[best],
                    "confidence": confidence,
                    "probabilities": probabilities[index].tolist(),
                    "uncertain": confidence < self.settings.uncertain_below,
                }
            )
        return rows


def _row(record: Record, outcome: Outcome) -> dict[str, Any]:
    return {
        "uri": record.uri,
        "member": record.member,
        "time_ms": record.time_ms,
        "size_bytes": record.size_bytes,
        "etag": record.etag,
        "width": outcome.width,
        "height": outcome.height,
        "status": outcome.status,
        "error": outcome.error,
    }
