"""Label a shard on a GPU: threads fetch, decode and cut, the device detects and classifies all of the shard's images at once."""

import hashlib
from collections import deque
from collections.abc import Callable, Container, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa

from fer_pipeline.core.stage_clock import timed
from fer_pipeline.models.bundle import Bundle
from fer_pipeline.sources.formats.spec import Frame
from fer_pipeline.stages.align import empty_inputs
from fer_pipeline.stages.classify import Classifier
from fer_pipeline.stages.decode import Photo, Pixels, decode
from fer_pipeline.stages.detectors import DETECTORS, load_batch_detector
from fer_pipeline.stages.detectors.bounded import shrink
from fer_pipeline.stages.detectors.detections import Detections
from fer_pipeline.stages.detectors.spec import ResolvedDetector
from fer_pipeline.stages.fetch import Fetched, fetch
from fer_pipeline.stages.label import ExtractedShard, LabelSettings, Outcome, Watch, cut, failed, label, to_fetch
from fer_pipeline.table.reuse import CARRIED

Result = TypeVar("Result")

MOST_BYTES = 512 * 1024**2
"""Of decoded photos that wait for detection together, in each call."""


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
        watch: Watch = nullcontext,
        known: Container[str] = (),
    ) -> None:
        """`watch`: around every piece of work, in any thread. `known`: see `FaceExtractor.known`."""
        self.card, self.settings, self.watch, self.known = bundle.card, settings, watch, known
        self.finds_faces = DETECTORS[detector.name].finds_faces
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        self.ahead = 2 * threads
        self.device_thread = ThreadPoolExecutor(1, thread_name_prefix="device")  # torch keeps settings by thread
        loading = partial(load_batch_detector, detector, settings.threshold, device, settings.precision)
        self.detect = self.device_thread.submit(loading).result()
        self.classify = self.device_thread.submit(partial(Classifier, bundle, settings.precision, device)).result()

    def __call__(self, manifest: pa.Table) -> pa.Table:
        """Return rows of `schemas.LABELLED` for rows of `schemas.MANIFEST`."""
        outcomes, crops = list[Outcome](), [empty_inputs(0, self.card.network)]
        with fetch(to_fetch([manifest]), self.settings.max_bytes, self.settings.image_column) as fetched:
            for together in _within(MOST_BYTES, self._prepared(fetched)):
                crops += self._found(together)
                outcomes += [one.outcome for one in together]
        faces = np.concatenate(crops)
        probabilities = self._on_device("classify", partial(self.classify, faces))
        return label(ExtractedShard(manifest, outcomes, faces), probabilities, self.card, self.settings.uncertain_below)

    def _prepared(self, fetched: Iterator[Fetched]) -> Iterator[Prepared]:
        """Yield the records in order, as threads have prepared them; only so many ahead, since photos are large."""
        waiting: deque[Future[Prepared]] = deque()
        for data in fetched:
            waiting.append(self.threads.submit(self._prepare, data))
            if isinstance(data, Frame):  # a video's frames are decoded in turn, and only while it is open
                wait(waiting)
            while len(waiting) > self.ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _found(self, together: list[Prepared]) -> list[Pixels]:
        """Detect faces in photos all at once, and cut them; the photos are let go."""
        looked_at = [one for one in together if one.small is not None]
        found = self._on_device("detect", partial(self.detect, [one.small for one in looked_at if one.small is not None]))
        return list(self.threads.map(self._cut, looked_at, found))

    def _on_device(self, stage: str, function: Callable[[], Result]) -> Result:
        """Call a function in the device's thread, and count its time to a stage."""

        def call() -> Result:
            with self.watch(), timed(stage):
                return function()

        return self.device_thread.submit(call).result()

    def _prepare(self, data: Fetched) -> Prepared:
        """Decode and shrink one record: its status is decided here, or by what is found in it."""
        digest = hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else None
        if digest and digest in self.known:
            return Prepared(Outcome(CARRIED, content_sha256=digest))
        size_px = self.settings.detect_px
        try:
            with self.watch(), timed("decode"):
                photo = decode(data, self.settings.max_pixels, size_px if self.finds_faces else None)
                small, factor = shrink(photo.pixels, size_px) if self.finds_faces else (photo.pixels, 1.0)
        except Exception as error:  # noqa: BLE001 (the boundary around one record)
            return Prepared(replace(failed(error), content_sha256=digest))
        outcome = Outcome("no_face", None, photo.width, photo.height, content_sha256=digest)
        return Prepared(outcome, photo, small, factor)

    def _cut(self, one: Prepared, found: Detections) -> Pixels:
        """Cut the faces that were found in the small form out of the photo, which is let go; complete the outcome."""
        photo, one.photo, one.small = one.photo, None, None
        crops = empty_inputs(0, self.card.network)
        if photo is None or not len(found):
            return crops
        try:
            with self.watch():
                faces = found.scaled(one.factor)
                crops = cut(photo, faces, self.card, self.finds_faces)
        except Exception as error:  # noqa: BLE001 (the boundary around one record)
            one.outcome = replace(failed(error), content_sha256=one.outcome.content_sha256)
            return crops
        one.outcome.status, one.outcome.faces = "ok", faces.scaled(photo.reduction)
        return crops


def _within(most_bytes: int, prepared: Iterator[Prepared]) -> Iterator[list[Prepared]]:
    """Yield records in groups whose photos take so many bytes together, or one more photo than that."""
    group: list[Prepared] = []
    size = 0
    for one in prepared:
        group.append(one)
        size += one.photo.pixels.nbytes if one.photo else 0
        if size > most_bytes:
            yield group
            group, size = [], 0
    yield group
