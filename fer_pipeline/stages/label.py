"""Label: a shard of the manifest in, a shard of `images` out, one row for every record whatever happens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fer_pipeline.core.errors import RecordError
from fer_pipeline.core.manifest import Record, records_of
from fer_pipeline.core.schemas import LABELLED
from fer_pipeline.models.card import BundleFiles, ModelCard
from fer_pipeline.stages.align import align
from fer_pipeline.stages.decode import Pixels, decode
from fer_pipeline.stages.detect import load_detector
from fer_pipeline.stages.detections import Detections
from fer_pipeline.stages.fetch import Fetched, fetch
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
    image_column: str | None = None


Condemned = Mapping[int, tuple[str, str]]
"""Record ids that must not be touched again, with status and reason."""
Watch = Callable[[], AbstractContextManager[Any]]
"""Opened around the work on one record, to see that it ends."""
_unwatched: Watch = nullcontext


@dataclass
class Outcome:
    """What became of one record, its faces not yet labelled."""

    status: str
    error: str | None = None
    width: int | None = None
    height: int | None = None
    faces: Detections | None = None


@dataclass
class Looked:
    """A shard that was looked at: what became of each record, and all faces' crops uint8 (n, channels, side, side)."""

    manifest: pa.Table
    outcomes: list[Outcome]
    crops: Pixels


class Looker:
    """Fetches, decodes, detects and aligns; loaded once in a process."""

    def __init__(self, detector: DetectorWeights, card: ModelCard, settings: LabelSettings, watch: Watch = _unwatched) -> None:
        self.card, self.settings, self.watch = card, settings, watch
        self.whole = detector.name == "none"
        self.detect = load_detector(detector, settings.detect_px, settings.threshold)

    def __call__(self, manifests: Sequence[pa.Table], condemned: Condemned | None = None) -> Iterator[Looked]:
        """Yield the shards of rows of `schemas.MANIFEST`, one by one; bytes are fetched ahead across them.

        A `condemned` record is not touched: it fails as is said there.
        """
        records = (_spared(row, record, condemned or {}) for table in manifests for row, record in _numbered(table))
        fetched = fetch(records, self.settings.max_bytes, self.settings.image_column)
        for manifest in manifests:
            outcomes, crops = [], [self._no_crops()]
            for data in islice(fetched, len(manifest)):
                outcome, faces = self._look(data)
                outcomes.append(outcome)
                crops.append(faces)
            yield Looked(manifest, outcomes, np.concatenate(crops))
        fetched.close()

    def _look(self, data: Fetched) -> tuple[Outcome, Pixels]:
        """Decode, detect and align one record: its status is decided here."""
        with self.watch():
            try:
                photo = decode(data, self.settings.max_pixels, None if self.whole else self.settings.detect_px)
            except RecordError as error:
                return Outcome(error.status, error.reason), self._no_crops()
            faces = self.detect(photo.pixels)
            if not len(faces):
                return Outcome("no_face", None, photo.width, photo.height), self._no_crops()
            crops = align(photo.pixels, faces, self.card.network, self.card.framing, self.whole)
        return Outcome("ok", None, photo.width, photo.height, faces.scaled(photo.reduction)), crops

    def _no_crops(self) -> Pixels:
        network = self.card.network
        return np.empty((0, network.channels, network.image_px, network.image_px), np.uint8)


class Labeller:
    """A looker and the classifier, in one process."""

    def __init__(
        self, detector: DetectorWeights, bundle: BundleFiles, settings: LabelSettings, watch: Watch = _unwatched
    ) -> None:
        from fer_pipeline.stages.classify import Classifier  # imports torch, which takes seconds: only where faces are labelled

        self.card, self.settings = bundle.card, settings
        self.look = Looker(detector, bundle.card, settings, watch)
        self.classify = Classifier(bundle, settings.precision)

    def __call__(self, manifests: Sequence[pa.Table], condemned: Condemned | None = None) -> Iterator[pa.Table]:
        """Yield, shard by shard, rows of `schemas.LABELLED` for rows of `schemas.MANIFEST`, in their order."""
        for looked in self.look(manifests, condemned):
            yield label(looked, self.classify(looked.crops), self.card, self.settings.uncertain_below)


def label(looked: Looked, probabilities: NDArray[np.float32], card: ModelCard, uncertain_below: float) -> pa.Table:
    """Return rows of `schemas.LABELLED` for a shard, given the probabilities (n, classes) of its crops."""
    rows, done = [], 0
    for (identity, record), outcome in zip(_numbered(looked.manifest), looked.outcomes, strict=True):
        count = len(outcome.faces) if outcome.faces else 0
        labels = probabilities[done : done + count]
        faces = _faces(outcome.faces, labels, card.label_space.classes, uncertain_below) if outcome.faces else []
        rows.append({"record_id": identity[0], "shard": identity[1]} | _row(record, outcome) | {"faces": faces})
        done += count
    return pa.Table.from_pylist(rows, schema=LABELLED)


def _numbered(manifest: pa.Table) -> Iterator[tuple[tuple[int, int], Record]]:
    """Yield each row's record id and shard, and its record."""
    identities = zip(manifest["record_id"].to_pylist(), manifest["shard"].to_pylist(), strict=True)
    return zip(identities, records_of(manifest), strict=True)


def _spared(identity: tuple[int, int], record: Record, condemned: Condemned) -> Record | RecordError:
    return RecordError(*condemned[identity[0]]) if identity[0] in condemned else record


def _faces(
    faces: Detections, probabilities: NDArray[np.float32], classes: Sequence[str], uncertain_below: float
) -> list[dict[str, Any]]:
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
                "uncertain": confidence < uncertain_below,
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
