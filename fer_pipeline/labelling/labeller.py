"""Label a shard: rows of the manifest in, rows of `images` out, exactly one for each record whatever happens."""

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fer_pipeline.archive.capture import UNKNOWN, Capture
from fer_pipeline.archive.fetch import Fetched, fetch
from fer_pipeline.archive.formats.spec import Frame
from fer_pipeline.archive.record import Record, records_of
from fer_pipeline.base.boundary import as_record_error
from fer_pipeline.base.errors import RecordError
from fer_pipeline.base.memory import bounded_memory
from fer_pipeline.base.stage_clock import timed
from fer_pipeline.faces.align import align, empty_inputs, resize_whole
from fer_pipeline.faces.attributes import FACE_ATTRIBUTES
from fer_pipeline.faces.classify import Answers, Classifier, Precision
from fer_pipeline.faces.decode import Photo, decode
from fer_pipeline.faces.detectors import DETECTORS, load_detector
from fer_pipeline.faces.detectors.detections import Detections, Detector
from fer_pipeline.faces.detectors.spec import ResolvedDetector
from fer_pipeline.faces.detectors.views import View, merged, views_of
from fer_pipeline.faces.phash import colours_of, perceptual_hash
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.faces.quality import FaceQuality, Measured, is_measured, measured, qualities_of
from fer_pipeline.labelling.schemas import LABELLED
from fer_pipeline.models.bundle import Bundle
from fer_pipeline.models.card import ModelCard
from fer_pipeline.models.metrics import is_uncertain


@dataclass(frozen=True)
class LabelSettings:
    """The settings that change a label, besides the model and the detector's weights."""

    detect_px: int
    threshold: float
    max_pixels: int
    max_bytes: int
    precision: Precision
    uncertain_below: float
    image_column: str | None = None
    min_quality: float | None = None
    """Labels of faces of a lower quality are uncertain."""


Poison = dict[int, tuple[str, str]]
"""Status and reason of records that must not be opened again, by record id."""
Watch = Callable[[], AbstractContextManager[Any]]
"""Returns a context for work on records, which limits its time or its memory."""


@dataclass(frozen=True)
class KnownFaces:
    """The faces of an image or a frame that the same detector found earlier under the same settings."""

    content_sha256: str | None
    """Digest of the bytes that it saw; None for a frame."""
    size_px: tuple[int, int]
    faces: Detections
    """In the full size of the image."""


FacesOf = Callable[[pa.Table], Sequence[KnownFaces | None]]
"""Takes rows of `schemas.MANIFEST`. Returns the faces of each record that has known ones."""
Decided = Callable[[str], str | None]
"""Takes the digest of a record's bytes. Returns `CARRIED` or `BLOCKED` if the bytes need no labelling, else None."""


def undecided(content_sha256: str) -> None:
    """Return None: all bytes are labelled."""


def no_known_faces(manifest: pa.Table) -> Sequence[KnownFaces | None]:
    """Return None for each record: all faces are detected."""
    return [None] * len(manifest)


@dataclass
class Outcome:
    """The outcome of one record, before its faces are labelled."""

    status: str
    error: str | None = None
    width: int | None = None
    height: int | None = None
    faces: Detections | None = None
    content_sha256: str | None = None
    """Digest of the encoded image's bytes; None for a frame, and if they were not read."""
    note: str | None = None
    """What is wrong with a file that was labelled all the same."""
    capture: Capture = UNKNOWN
    phash: str | None = None
    colours: str | None = None
    """Of a frame."""
    measured: Measured | None = None
    """The pictures of the faces."""


@dataclass
class Prepared:
    """A record before detection: its photo and the views for detection or its known faces; only its outcome if it has failed."""

    outcome: Outcome
    photo: Photo | None = None
    views: list[View] = field(default_factory=list)
    known: Detections | None = None


class FaceExtractor:
    """Decodes records, detects their faces and cuts them; labelling on cores and on devices share it."""

    def __init__(
        self,
        detector: ResolvedDetector,
        card: ModelCard,
        settings: LabelSettings,
        watch: Watch = nullcontext,
        decided: Decided = undecided,
    ) -> None:
        """`watch` is entered around `extract`. `decided`: tells which bytes need no labelling."""
        self.card, self.settings, self.watch, self.decided = card, settings, watch, decided
        self.detector, self.finds_faces = detector, DETECTORS[detector.name].finds_faces

    @cached_property
    def detect(self) -> Detector:
        """The detector on one core, loaded at its first use."""
        return load_detector(self.detector, self.settings.detect_px, self.settings.threshold)

    @property
    def no_crops(self) -> Pixels:
        """The crops of a record without faces, uint8 (0, channels, side, side)."""
        return empty_inputs(0, self.card.network)

    def extract(self, data: Fetched, known: KnownFaces | None = None) -> tuple[Outcome, Pixels]:
        """Return the outcome of one record, and the crops of its faces, uint8 (n, channels, side, side)."""
        with self.watch():
            record = self.prepare(data, known)
            if record.photo is None:
                return record.outcome, self.no_crops
            try:
                with timed("detect"):
                    found = [self.detect(view.pixels) for view in record.views]
            except Exception as error:  # noqa: BLE001 (the boundary around one record)
                return _failed(error, record.outcome.content_sha256), self.no_crops
            crops = self.cut(record, found)
            return record.outcome, crops

    def prepare(self, data: Fetched, known: KnownFaces | None = None) -> Prepared:
        """Decode and shrink one record; the outcome of a decided or undecodable record is final.

        Faces that are known of the same bytes, or the same frame, are not detected again.
        """
        digest = hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else None
        if status := digest and self.decided(digest):
            return Prepared(Outcome(status, content_sha256=digest))
        size_px = self.settings.detect_px
        try:
            with timed("decode"):
                photo = decode(data, self.settings.max_pixels, size_px if self.finds_faces else None)
                phash = perceptual_hash(photo.pixels).hex()
                colours = colours_of(photo.pixels).hex() if isinstance(data, Frame) else None
                is_known = known is not None and (known.content_sha256, known.size_px) == (digest, (photo.width, photo.height))
                views = [] if is_known else self._views(photo)
        except Exception as error:  # noqa: BLE001 (the boundary around one record)
            return Prepared(_failed(error, digest))
        outcome = Outcome("no_face", None, photo.width, photo.height, None, digest, photo.note, photo.capture, phash, colours)
        return Prepared(outcome, photo, views, known.faces if known and is_known else None)

    def _views(self, photo: Photo) -> list[View]:
        if not self.finds_faces:
            return [View(photo.pixels, 1.0)]
        return views_of(photo.pixels, photo.reduction, self.settings.detect_px)

    def cut(self, record: Prepared, found: Sequence[Detections]) -> Pixels:
        """Return the crops of the faces that are known or were found in each view, uint8 (n, channels, side, side).

        Complete the record's outcome, and release its photo. A detector that finds no faces gives the photo as one crop.
        """
        photo, views, record.photo, record.views = record.photo, record.views, None, []
        if photo is None:
            return self.no_crops
        try:
            with timed("align"):
                faces = merged(views, found).scaled(photo.reduction) if record.known is None else record.known
                if not len(faces):
                    return self.no_crops
                if self.finds_faces:
                    # From the full size as it is written, so that faces that are read again are cut alike.
                    placed = faces.scaled(1 / photo.reduction)
                    crops = align(photo.pixels, placed, self.card.network, self.card.framing)
                else:
                    crops = resize_whole(photo.pixels, self.card.network)[None]
                grey = crops[:, 0] if self.finds_faces and is_measured(self.card.network, self.card.framing) else None
                pictures = measured(photo.pixels, faces, photo.reduction, grey)
        except Exception as error:  # noqa: BLE001 (the boundary around one record)
            record.outcome = _failed(error, record.outcome.content_sha256)
            return self.no_crops
        record.outcome.status, record.outcome.faces, record.outcome.measured = "ok", pictures.faces, pictures
        return crops


def _failed(error: Exception, content_sha256: str | None) -> Outcome:
    """Return the outcome of a record that raised an error; raise the error if the record is not at fault."""
    fault = as_record_error(error, "undecodable")
    return Outcome(fault.status, fault.reason, content_sha256=content_sha256)


class Labeller:
    """Labels shards on one core. Load it once per process."""

    def __init__(
        self,
        detector: ResolvedDetector,
        bundle: Bundle,
        settings: LabelSettings,
        watch: Watch = nullcontext,
        decided: Decided = undecided,
        memory_bytes: int | None = None,
        faces_of: FacesOf = no_known_faces,
    ) -> None:
        """`memory_bytes`: memory that records may use beyond what the loaded process has. For the rest see `FaceExtractor`."""
        self.card, self.settings, self.faces_of = bundle.card, settings, faces_of
        self.faces = FaceExtractor(detector, bundle.card, settings, watch, decided)
        self.classify = Classifier(bundle, settings.precision)
        assert self.faces.detect  # load it
        self.bounded: Watch = bounded_memory(memory_bytes) if memory_bytes else nullcontext

    def __call__(self, manifests: Sequence[pa.Table], poison: Poison | None = None) -> Generator[pa.Table]:
        """Yield, shard by shard, rows of `schemas.LABELLED` for rows of `schemas.MANIFEST`, in their order.

        Bytes are fetched ahead across shards. A record in `poison` is not opened: it fails with the status and reason given
        there. Exhaust or close the generator: see `fetch`.
        """
        with fetch(to_fetch(manifests, poison), self.settings.max_bytes, self.settings.image_column) as fetched:
            for manifest in manifests:
                yield self.label(manifest, fetched)

    def label(self, manifest: pa.Table, fetched: Iterator[Fetched]) -> pa.Table:
        """Return rows of `schemas.LABELLED` for rows of `schemas.MANIFEST`, whose bytes or frames come next in `fetched`."""
        outcomes, crops, known = list[Outcome](), [self.faces.no_crops], self.faces_of(manifest)
        with self.bounded():
            for data, its_faces in zip(_waited_for(islice(fetched, len(manifest))), known, strict=True):
                outcome, faces = self.faces.extract(data, its_faces)
                outcomes.append(outcome)
                crops.append(faces)
        with timed("classify"):
            answers = self.classify.label(np.concatenate(crops))
        return label_rows(manifest, outcomes, answers, self.faces)


def label_rows(manifest: pa.Table, outcomes: list[Outcome], answers: Answers, extractor: FaceExtractor) -> pa.Table:
    """Return rows of `schemas.LABELLED` for a shard, from its records' outcomes and what the model says of its faces."""
    card, settings, probabilities, further = extractor.card, extractor.settings, answers.probabilities, answers.further
    if not (np.isfinite(probabilities).all() and (further is None or np.isfinite(further).all())):
        raise RuntimeError(f"the model '{card.name}' returns values that are not finite: use another model")
    gain = DETECTORS[extractor.detector.name].pitch_gain
    qualities = iter(qualities_of([outcome.measured for outcome in outcomes if outcome.measured], gain))
    rows, done = [], 0
    for (identity, record), outcome in zip(_numbered(manifest), outcomes, strict=True):
        count = len(outcome.faces) if outcome.faces else 0
        labels = probabilities[done : done + count]
        pictures = next(qualities) if outcome.measured else []
        faces = _faces(outcome.faces, labels, card.label_space.classes, settings, pictures) if outcome.faces else []
        row = {"record_id": identity[0], "shard": identity[1]} | _row(record, outcome)
        outputs = None if further is None else further[done : done + count].tolist()
        rows.append(row | {"faces": faces, "qualities": [vars(one) for one in pictures], "outputs": outputs})
        done += count
    return pa.Table.from_pylist(rows, schema=LABELLED)


def to_fetch(manifests: Sequence[pa.Table], poison: Poison | None = None) -> Iterator[Record | RecordError]:
    """Yield the records of rows of `schemas.MANIFEST`; for records in `poison`, yield their RecordError."""
    return (_without_poison(row, record, poison or {}) for table in manifests for row, record in _numbered(table))


def _waited_for(fetched: Iterator[Fetched]) -> Iterator[Fetched]:
    """Yield what was fetched; the time that the consumer waits for it counts as the stage `fetch`."""
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
    faces: Detections,
    probabilities: NDArray[np.float32],
    classes: Sequence[str],
    settings: LabelSettings,
    qualities: Sequence[FaceQuality],
) -> list[dict[str, Any]]:
    rows = []
    for index in range(len(faces)):
        x, y, w, h = faces.boxes_xywh[index].tolist()
        best = int(probabilities[index].argmax())
        confidence = float(probabilities[index, best])
        is_poor = qualities[index].quality < (settings.min_quality or 0.0)
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
                "uncertain": is_poor or bool(is_uncertain(confidence, settings.uncertain_below)),
            }
        )
    return rows


def _value(values: NDArray[Any] | None, index: int) -> Any:
    """Return a face's attribute for its column: a number or a flat list of numbers; None if it is unknown."""
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
        "taken_at": outcome.capture.taken_at,
        "camera": outcome.capture.camera,
        "phash": outcome.phash,
        "colours": outcome.colours,
        "status": outcome.status,
        "error": outcome.error,
        "note": outcome.note,
        "attempt": record.attempt,
    }
