"""Label a shard on a GPU: threads fetch, decode and cut, the device detects and classifies all of the shard's images at once."""

import hashlib
from collections.abc import Callable, Container, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa

from fer_pipeline.core.boundary import as_record_error
from fer_pipeline.core.stage_clock import timed
from fer_pipeline.models.bundle import Bundle
from fer_pipeline.sources.formats.spec import Frame
from fer_pipeline.stages.align import align, empty_inputs, resize_whole
from fer_pipeline.stages.classify import Classifier
from fer_pipeline.stages.decode import Photo, Pixels, decode
from fer_pipeline.stages.detectors import DETECTORS, load_batch_detector
from fer_pipeline.stages.detectors.bounded import shrink
from fer_pipeline.stages.detectors.detections import Detections
from fer_pipeline.stages.detectors.spec import ResolvedDetector
from fer_pipeline.stages.fetch import Fetched, fetch
from fer_pipeline.stages.label import ExtractedShard, LabelSettings, Outcome, label, to_fetch
from fer_pipeline.table.reuse import CARRIED

Result = TypeVar("Result")


class StuckError(RuntimeError):
    """A thread has worked on one image for longer than a record may take. It cannot be ended: its process must be."""


@dataclass
class Prepared:
    """One record before detection: a photo and its small form, or else what became of it."""

    outcome: Outcome
    photo: Photo | None = None
    small: Pixels | None = None
    factor: float = 1.0
    """How many of the photo's pixels one of `small` stands for."""


class DeviceLabeller:
    """Labels whole shards by a device and so many threads. Several threads may call it: one prepares while another computes."""

    def __init__(
        self,
        detector: ResolvedDetector,
        bundle: Bundle,
        settings: LabelSettings,
        device: str,
        threads: int,
        record_timeout_s: float,
        known: Container[str] = (),
    ) -> None:
        """`known`: see `FaceExtractor.known`."""
        self.card, self.settings, self.known, self.record_timeout_s = bundle.card, settings, known, record_timeout_s
        self.finds_faces = DETECTORS[detector.name].finds_faces
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        self.device_thread = ThreadPoolExecutor(1, thread_name_prefix="device")  # torch keeps settings by thread
        loading = partial(load_batch_detector, detector, settings.threshold, device, settings.precision)
        self.detect = self._on_device("load", loading)
        self.classify = self._on_device("load", partial(Classifier, bundle, settings.precision, device))

    def __call__(self, manifest: pa.Table) -> pa.Table:
        """Return rows of `schemas.LABELLED` for rows of `schemas.MANIFEST`. Raise StuckError where an image never ends."""
        with fetch(to_fetch([manifest]), self.settings.max_bytes, self.settings.image_column) as fetched:
            prepared = self._results([self._begin_preparing(data) for data in fetched])
        looked_at = [one for one in prepared if one.small is not None]
        found = self._on_device("detect", partial(self.detect, [one.small for one in looked_at if one.small is not None]))
        cut = self._results([self._begin(self._cut, one, faces) for one, faces in zip(looked_at, found, strict=True)])
        crops = np.concatenate([empty_inputs(0, self.card.network), *cut])
        probabilities = self._on_device("classify", partial(self.classify, crops))
        shard = ExtractedShard(manifest, [one.outcome for one in prepared], crops)
        return label(shard, probabilities, self.card, self.settings.uncertain_below)

    def _on_device(self, stage: str, function: Callable[[], Result]) -> Result:
        """Call a function in the device's thread, and count its time to a stage."""

        def call() -> Result:
            with timed(stage):
                return function()

        return self.device_thread.submit(call).result()

    def _begin_preparing(self, data: Fetched) -> "Future[Prepared]":
        """Have a record prepared by a thread; a video's frame at once: they are decoded in turn, and only while it is open."""
        if not isinstance(data, Frame):
            return self._begin(self._prepare, data)
        done: Future[Prepared] = Future()
        done.set_result(self._prepare(data))
        return done

    def _begin(self, function: Callable[..., Result], *arguments: object) -> "Future[Result]":
        return self.threads.submit(function, *arguments)

    def _results(self, began: Sequence["Future[Result]"]) -> list[Result]:
        """Wait for all; raise StuckError where none of those that are left ends within the time that a record has."""
        left: Iterable[Future[Result]] = began
        while left:
            done, left = wait(left, self.record_timeout_s, FIRST_COMPLETED)
            if not done:
                raise StuckError(f"an image takes longer than {self.record_timeout_s:g} s")
        return [one.result() for one in began]

    def _prepare(self, data: Fetched) -> Prepared:
        """Decode and shrink one record: its status is decided here, or by what is found in it."""
        digest = hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else None
        if digest and digest in self.known:
            return Prepared(Outcome(CARRIED, content_sha256=digest))
        size_px = self.settings.detect_px
        try:
            with timed("decode"):
                photo = decode(data, self.settings.max_pixels, size_px if self.finds_faces else None)
                small, factor = shrink(photo.pixels, size_px) if self.finds_faces else (photo.pixels, 1.0)
        except Exception as error:  # noqa: BLE001 (the boundary around one record)
            failed = as_record_error(error, "undecodable")
            return Prepared(Outcome(failed.status, failed.reason, content_sha256=digest))
        outcome = Outcome("no_face", None, photo.width, photo.height, content_sha256=digest)
        return Prepared(outcome, photo, small, factor)

    def _cut(self, one: Prepared, found: Detections) -> Pixels:
        """Cut the faces that were found in the small form out of the photo; complete its outcome."""
        assert one.photo
        if not len(found):
            return empty_inputs(0, self.card.network)
        faces = found.scaled(one.factor)
        with timed("align"):
            if self.finds_faces:
                crops = align(one.photo.pixels, faces, self.card.network, self.card.framing)
            else:
                crops = resize_whole(one.photo.pixels, self.card.network)[None]
        one.outcome.status, one.outcome.faces = "ok", faces.scaled(one.photo.reduction)
        return crops
