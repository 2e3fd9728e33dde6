"""What a labelling worker keeps between tasks, and the alarm that ends it when one record takes too long."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fer_pipeline.core.isolated import limit_memory
from fer_pipeline.jobs.shared import Shared
from fer_pipeline.models.bundle import Bundle
from fer_pipeline.stages.detectors.spec import ResolvedDetector
from fer_pipeline.stages.label import FaceExtractor, Labeller, LabelSettings, Watch


@dataclass(frozen=True)
class LabelContext:
    """What every worker of a run needs."""

    detector: ResolvedDetector
    bundle: Bundle
    settings: LabelSettings
    record_timeout_s: float
    record_memory_bytes: int


def load_labeller(context: Shared[LabelContext]) -> Labeller:
    """Return this process's labeller, loaded once."""
    return context.load(_make_labeller)


def load_extractor(context: Shared[LabelContext]) -> FaceExtractor:
    """Return this process's face extractor, loaded once; it needs no torch."""
    return context.load(_make_extractor)


def _make_labeller(context: LabelContext) -> Labeller:
    labeller = Labeller(context.detector, context.bundle, context.settings, _alarm(context.record_timeout_s))
    limit_memory(context.record_memory_bytes)
    return labeller


def _make_extractor(context: LabelContext) -> FaceExtractor:
    extractor = FaceExtractor(context.detector, context.bundle.card, context.settings, _alarm(context.record_timeout_s))
    limit_memory(context.record_memory_bytes)
    return extractor


def _alarm(limit_s: float) -> Watch:
    """Return a context that ends this process by SIGALRM when what is inside takes longer than `limit_s`.

    The kernel sends the signal, so native code that hangs with the interpreter's lock held is ended too. Arming the timer costs
    one system call. The driver sees the death of the process and has the shard's records probed.
    """

    @contextmanager
    def watched() -> Iterator[None]:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    return watched
