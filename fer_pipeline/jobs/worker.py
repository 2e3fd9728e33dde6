"""What a worker process keeps between tasks, and the alarm that ends it when one record takes too long."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from fer_pipeline.models.card import BundleFiles
from fer_pipeline.stages.label import Labeller, LabelSettings, Looker
from fer_pipeline.stages.weights import DetectorWeights


@dataclass(frozen=True)
class Parts:
    """What every worker of a run needs, sent to each node once."""

    detector: DetectorWeights
    bundle: BundleFiles
    settings: LabelSettings
    record_timeout_s: float


References = list["ray.ObjectRef[Parts]"]
"""The parts in a list of one, so that Ray hands tasks the reference and not a copy."""

_loaded: dict[tuple[str, str], Any] = {}
"""The labeller or looker of this process, by kind and the object it was made from."""


def load_labeller(references: References) -> Labeller:
    """Return this process's labeller, loaded once."""
    if ("labeller", references[0].hex()) not in _loaded:
        parts = ray.get(references[0])
        labeller = Labeller(parts.detector, parts.bundle, parts.settings, _alarm(parts.record_timeout_s))
        _keep("labeller", references, labeller)
    return _loaded["labeller", references[0].hex()]  # type: ignore[no-any-return]


def load_looker(references: References) -> Looker:
    """Return this process's looker, loaded once; it needs no torch."""
    if ("looker", references[0].hex()) not in _loaded:
        parts = ray.get(references[0])
        looker = Looker(parts.detector, parts.bundle.card, parts.settings, _alarm(parts.record_timeout_s))
        _keep("looker", references, looker)
    return _loaded["looker", references[0].hex()]  # type: ignore[no-any-return]


def _keep(kind: str, references: References, loaded: Any) -> None:
    _loaded.clear()
    _loaded[kind, references[0].hex()] = loaded


def _alarm(limit_s: float) -> Any:
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
