"""What a worker process keeps between tasks, and the alarm that ends it when one record takes too long."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import ray

from fer_pipeline.models.card import BundleFiles
from fer_pipeline.stages.label import Labeller, LabelSettings, Looker, Watch
from fer_pipeline.stages.weights import DetectorWeights


@dataclass(frozen=True)
class Parts:
    """What every worker of a run needs, sent to each node once."""

    detector: DetectorWeights
    bundle: BundleFiles
    settings: LabelSettings
    record_timeout_s: float


Loaded = TypeVar("Loaded", Labeller, Looker)
References = list["ray.ObjectRef[Parts]"]
"""The parts in a list of one, so that Ray hands tasks the reference and not a copy."""

_loaded: dict[tuple[type, str], Any] = {}
"""The labeller or looker of this process, by its class and the object it was made from."""


def load_labeller(references: References) -> Labeller:
    """Return this process's labeller, loaded once."""
    return _load(Labeller, references, lambda p, watch: Labeller(p.detector, p.bundle, p.settings, watch))


def load_looker(references: References) -> Looker:
    """Return this process's looker, loaded once; it needs no torch."""
    return _load(Looker, references, lambda p, watch: Looker(p.detector, p.bundle.card, p.settings, watch))


def _load(kind: type[Loaded], references: References, make: Callable[[Parts, Watch], Loaded]) -> Loaded:
    key = kind, references[0].hex()
    if key not in _loaded:
        parts = ray.get(references[0])
        _loaded.clear()
        _loaded[key] = make(parts, _alarm(parts.record_timeout_s))
    return _loaded[key]  # type: ignore[no-any-return]


def _alarm(limit_s: float) -> Watch:
    """Return a context that ends this process by SIGALRM when what is inside takes longer than `limit_s`.

    The kernel does it, so that native code which hangs with the interpreter's lock held is ended too; arming costs a
    system call. The driver sees the death and has the shard's records probed.
    """

    @contextmanager
    def watched() -> Iterator[None]:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    return watched
