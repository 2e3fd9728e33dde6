"""Label: a shard of the manifest in, a shard of `images` out, one row for every record whatever happens."""

import hashlib
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fer_pipeline.core.boundary import as_record_error
from fer_pipeline.core.errors import RecordError
from fer_pipeline.core.manifest import Record, records_of
from fer_pipeline.core.metrics import is_uncertain
from fer_pipeline.core.schemas import FACE_ATTRIBUTES, LABELLED
from fer_pipeline.core.stage_clock import timed
from fer_pipeline.models.bundle import Bundle
from fer_pipeline.models.card import ModelCard
from fer_pipeline.stages.align import align, empty_inputs, resize_whole
from fer_pipeline.stages.classify import Classifier, Precision
from fer_pipeline.stages.decode import Photo, Pixels, decode
from fer_pipeline.stages.detectors import DETECTORS, load_detector
from fer_pipeline.stages.detectors.detections import Detections
from fer_pipeline.stages.detectors.spec import ResolvedDetector
from fer_pipeline.stages.fetch import Fetched, fetch
from fer_pipeline.table.reuse import CARRIED


@dataclass(frozen=True)
class LabelSettings:
    """What changes a label, besides the model and the detector's weights."""

    detect_px: int
    threshold: float
    max_pixels: int
    max_bytes: int
    precision: Precision
    uncertain_below: float
    image_column: str | None = None


Poison = dict[int, tuple[str, str]]
"""Record ids that must not be touched again, with status and reason."""
Watch = Callable[[], AbstractContextManager[Any]]
"""A context around work on records, which ends what takes too long or bounds its memory."""
_unwatched: Watch = nullcontext


@dataclass
class Outcome:
    """What became of one record, its faces not yet labelled."""

    status: str
    error: str | None = None
    width: int | None = None
    height: int | None = None
    faces: Detections | None = None
    content_sha256: str | None = None
    """Of the encoded image's bytes; None for a frame, and where they were not read."""


@dataclass
class ExtractedShard:
    """A shard whose faces were found and cut: what became of each record, and all crops uint8 (n, channels, side, side)."""

    manifest: pa.Table
    outcomes: list[Outcome]
    crops: Pixels


class FaceExtractor:
    """Fetches, decodes, detects and aligns; loaded once in a process."""

    def __init__(
        self,
        detector: ResolvedDetector,
        card: ModelCard,
        settings: LabelSettings,
        watch: Watch = _unwatched,
    ) -> None:
        self.card, self.settings, self.watch = card, settings, watch
        self.bounded: Watch = _unwatched
        self.known: Container[str] = ()
        """Digests of bytes whose labels stand in the published table: they are not looked at (`CARRIED`)."""
        self.finds_faces = DETECTORS[detector.name].finds_faces
        self.detect = load_detector(detector, settings.detect_px, settings.threshold)

    def __call__(self, manifests: Sequence[pa.Table], poison: Poison | None = None) -> Generator[ExtractedShard]:
        """Yield the shards of rows of `schemas.MANIFEST`, one by one; bytes are fetched ahead across them.

        A record in `poison` is not touched: it fails as is said there. Exhaust or close it: see `fetch`.
        """
        with fetch(to_fetch(manifests, poison), self.settings.max_bytes, self.settings.image_column) as fetched:
            for manifest in manifests:
                outcomes, crops = [], [empty_inputs(0, self.card.network)]
                with self.bounded():
                    for data in _waited_for(islice(fetched, len(manifest))):
                        digest = hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else None
                        if digest and digest in self.known:
                            outcome, faces = Outcome(CARRIED), empty_inputs(0, self.card.network)
                        else:
                            outcome, faces = self._extract(data)
                        outcome.content_sha256 = digest
                        outcomes.append(outcome)
                        crops.append(faces)
                yield ExtractedShard(manifest, outcomes, np.concatenate(crops))

    def _extract(self, data: Fetched) -> tuple[Outcome, Pixels]:
        """Decode, detect and align one record: its status is decided here."""
        with self.watch():
            try:
                return self._extract_from(data)
            except Exception as error:  # noqa: BLE001 (the boundary around one record)
                return failed(error), empty_inputs(0, self.card.network)

    def _extract_from(self, data: Fetched) -> tuple[Outcome, Pixels]:
        network = self.card.network
        with timed("decode"):
            photo = decode(data, self.settings.max_pixels, self.settings.detect_px if self.finds_faces else None)
        with timed("detect"):
            faces = self.detect(photo.pixels)
        if not len(faces):
            return Outcome("no_face", None, photo.width, photo.height), empty_inputs(0, network)
        crops = cut(photo, faces, self.card, self.finds_faces)
        return Outcome("ok", None, photo.width, photo.height, faces.scaled(photo.reduction)), crops


def failed(error: Exception) -> Outcome:
    """Return what becomes of a record that raised this."""
    its_own = as_record_error(error, "undecodable")
    return Outcome(its_own.status, its_own.reason)


def cut(photo: Photo, faces: Detections, card: ModelCard, finds_faces: bool) -> Pixels:
    """Return the crops of a photo's faces (n, channels, side, side); of a detector that finds none, the photo as one."""
    with timed("align"):
        if finds_faces:
            return align(photo.pixels, faces, card.network, card.framing)
        return resize_whole(photo.pixels, card.network)[None]


class Labeller:
    """A face extractor and a classifier, in one process."""

    def __init__(
        self,
        detector: ResolvedDetector,
        bundle: Bundle,
        settings: LabelSettings,
        watch: Watch = _unwatched,
    ) -> None:
        self.card, self.settings = bundle.card, settings
        self.extract = FaceExtractor(detector, bundle.card, settings, watch)
        self.classify = Classifier(bundle, settings.precision)

    def __call__(self, manifests: Sequence[pa.Table], poison: Poison | None = None) -> Generator[pa.Table]:
        """Yield, shard by shard, rows of `schemas.LABELLED` for rows of `schemas.MANIFEST`, in their order.

        Exhaust or close it: see `fetch`.
        """
        with closing(self.extract(manifests, poison)) as shards:
            for shard in shards:
                with timed("classify"):
                    probabilities = self.classify(shard.crops)
                yield label(shard, probabilities, self.card, self.settings.uncertain_below)


def label(shard: ExtractedShard, probabilities: NDArray[np.float32], card: ModelCard, uncertain_below: float) -> pa.Table:
    """Return rows of `schemas.LABELLED` for a shard, given the probabilities (n, classes) of its crops."""
    if not np.isfinite(probabilities).all():
        raise RuntimeError(f"the model '{card.name}' answers with probabilities that are not finite: no label can be trusted")
    rows, done = [], 0
    for (identity, record), outcome in zip(_numbered(shard.manifest), shard.outcomes, strict=True):
        count = len(outcome.faces) if outcome.faces else 0
        labels = probabilities[done : done + count]
        faces = _faces(outcome.faces, labels, card.label_space.classes, uncertain_below) if outcome.faces else []
        rows.append({"record_id": identity[0], "shard": identity[1]} | _row(record, outcome) | {"faces": faces})
        done += count
    return pa.Table.from_pylist(rows, schema=LABELLED)


def to_fetch(manifests: Sequence[pa.Table], poison: Poison | None = None) -> Iterator[Record | RecordError]:
    """Yield the records of rows of `schemas.MANIFEST`, and what is said of those in `poison` in their place."""
    return (_without_poison(row, record, poison or {}) for table in manifests for row, record in _numbered(table))


def _waited_for(fetched: Iterator[Fetched]) -> Iterator[Fetched]:
    """Yield what was fetched; the time that it keeps us waiting is the stage `fetch`."""
    while True:
        with timed("fetch"):
            data = next(fetched, None)
        if data is None:
            return
        yield data


def _numbered(manifest: pa.Table) -> Iterator[tuple[tuple[int, int], Record]]:
    """Yield each row's record id and shard, and its record."""
    identities = zip(manifest["record_id"].to_pylist(), manifest["shard"].to_pylist(), strict=True)
    return zip(identities, records_of(manifest), strict=True)


def _without_poison(identity: tuple[int, int], record: Record, poison: Poison) -> Record | RecordError:
    return RecordError(*poison[identity[0]]) if identity[0] in poison else record


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
                **{name: _value(faces.attributes.get(name), index) for name in FACE_ATTRIBUTES},
                "expression": classes[best],
                "confidence": confidence,
                "probabilities": probabilities[index].tolist(),
                "uncertain": bool(is_uncertain(confidence, uncertain_below)),
            }
        )
    return rows


def _value(values: NDArray[Any] | None, index: int) -> Any:
    """Return a face's attribute as a column holds it: a number, or its numbers in a row; None where it is not known."""
    return None if values is None else values[index].ravel().tolist() if values.ndim > 1 else values[index].item()


def _row(record: Record, outcome: Outcome) -> dict[str, Any]:
    return {
        "uri": record.uri,
        "member": record.member,
        "time_ms": record.time_ms,
        "size_bytes": record.size_bytes,
        "etag": record.etag,
        "content_sha256": outcome.content_sha256,
        "width": outcome.width,
        "height": outcome.height,
        "status": outcome.status,
        "error": outcome.error,
        "attempt": record.attempt,
    }
