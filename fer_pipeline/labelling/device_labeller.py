"""Label a shard on a GPU: threads fetch, decode and cut; the device detects and classifies many images at once."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from fer_pipeline.archive.fetch import Fetched, fetch
from fer_pipeline.archive.formats.spec import Frame
from fer_pipeline.base.read_ahead import read_ahead
from fer_pipeline.base.stage_clock import timed
from fer_pipeline.faces.classify import Classifier
from fer_pipeline.faces.detectors import load_batch_detector
from fer_pipeline.faces.detectors.spec import ResolvedDetector
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.labelling.labeller import (
    Decided,
    FaceExtractor,
    FacesOf,
    KnownFaces,
    LabelSettings,
    Outcome,
    Prepared,
    Watch,
    label_rows,
    no_known_faces,
    to_fetch,
    undecided,
)
from fer_pipeline.models.bundle import Bundle

Result = TypeVar("Result")

MOST_BYTES = 512 * 1024**2
"""Most bytes of decoded photos in one batch of detection; a batch may exceed it by one photo."""


class DeviceLabeller:
    """Labels whole shards with a device and some threads. Several threads may call it: one prepares while another computes."""

    def __init__(
        self,
        detector: ResolvedDetector,
        bundle: Bundle,
        settings: LabelSettings,
        device: str,
        threads: int,
        watch: Watch = nullcontext,
        decided: Decided = undecided,
        faces_of: FacesOf = no_known_faces,
    ) -> None:
        """`watch` is entered around each piece of work, in any thread. `decided`: see `FaceExtractor`."""
        self.card, self.settings, self.watch, self.faces_of = bundle.card, settings, watch, faces_of
        self.faces = FaceExtractor(detector, bundle.card, settings, decided=decided)
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        self.ahead = 2 * threads
        self.device_thread = ThreadPoolExecutor(1, thread_name_prefix="device")  # torch keeps settings by thread
        loading = partial(load_batch_detector, detector, settings.threshold, device, settings.precision)
        self.detect = self.device_thread.submit(loading).result()
        self.classify = self.device_thread.submit(partial(Classifier, bundle, settings.precision, device)).result()

    def __call__(self, manifest: pa.Table) -> pa.Table:
        """Return rows of `schemas.LABELLED` for rows of `schemas.MANIFEST`."""
        outcomes, crops = list[Outcome](), [self.faces.no_crops]
        with fetch(to_fetch([manifest]), self.settings.max_bytes, self.settings.image_column) as fetched:
            known = zip(fetched, self.faces_of(manifest), strict=True)
            prepared = (future.result() for _, future in read_ahead(known, self._prepare, self.ahead))  # photos are large
            for batch in _batches(MOST_BYTES, prepared):
                crops += self._detect_and_cut(batch)
                outcomes += [one.outcome for one in batch]
        answers = self._on_device("classify", partial(self.classify.label, np.concatenate(crops)))
        return label_rows(manifest, outcomes, answers, self.faces)

    def _prepare(self, record: tuple[Fetched, KnownFaces | None]) -> "Future[Prepared]":
        """Prepare a record in a thread. Wait for a frame: a video decodes frames one at a time, and only while it is open."""
        data, known = record
        future = self.threads.submit(self._watched, self.faces.prepare, data, known)
        if isinstance(data, Frame):
            future.exception()
        return future

    def _watched(self, work: Callable[..., Result], *arguments: Any) -> Result:
        with self.watch():
            return work(*arguments)

    def _detect_and_cut(self, batch: list[Prepared]) -> list[Pixels]:
        """Return the crops of the faces in a batch of photos; release the photos."""
        decoded = [one for one in batch if one.photo]
        found = iter(self._on_device("detect", partial(self.detect, [view.pixels for one in decoded for view in one.views])))
        by_photo = [list(islice(found, len(one.views))) for one in decoded]
        return list(self.threads.map(partial(self._watched, self.faces.cut), decoded, by_photo))

    def _on_device(self, stage: str, function: Callable[[], Result]) -> Result:
        """Call a function in the device's thread, and add its time to a stage."""

        def call() -> Result:
            with self.watch(), timed(stage):
                return function()

        return self.device_thread.submit(call).result()


def _batches(most_bytes: int, prepared: Iterator[Prepared]) -> Iterator[list[Prepared]]:
    """Yield records in batches; a batch ends with the photo with which it exceeds `most_bytes`."""
    batch: list[Prepared] = []
    size = 0
    for one in prepared:
        batch.append(one)
        size += one.photo.pixels.nbytes if one.photo else 0
        if size > most_bytes:
            yield batch
            batch, size = [], 0
    yield batch
