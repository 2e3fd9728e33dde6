"""The probe: each record of a shard is labelled alone, in an actor that may die of it, to find those that kill."""

import time
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, WorkerCrashedError

from fer_pipeline.jobs.label.worker import LabelContext, load_labeller
from fer_pipeline.jobs.shared import Shared
from fer_pipeline.stages.label import Poison

STRIKES = 2
"""Deaths alone that condemn a record: one may have been its machine's."""


@ray.remote(num_cpus=1, max_restarts=0)
class _ProbeActor:
    """Labels one record at a time, for no other result than to survive it."""

    def __init__(self, context: Shared[LabelContext]) -> None:
        self.context = context

    def limit_s(self) -> float:
        """Load what is needed; return the time that a record has."""
        load_labeller(self.context)
        return float(self.context.get().record_timeout_s)

    def label(self, manifest: pa.Table) -> None:
        list(load_labeller(self.context)([manifest]))


@ray.remote(num_cpus=0, max_retries=0)
def probe(context: Shared[LabelContext], manifest: pa.Table) -> Poison:
    """Return the records of a shard that kill the process that labels them (`crashed`) or never end (`timed_out`)."""
    poison: dict[int, tuple[str, str]] = {}
    actor, limit_s = _new_actor(context)
    for index, record_id in enumerate(manifest["record_id"].to_pylist()):
        for _ in range(STRIKES):
            started = time.monotonic()
            try:
                ray.get(actor.label.remote(manifest.slice(index, 1)))
                poison.pop(record_id, None)
                break
            except (ActorDiedError, ActorUnavailableError, OutOfMemoryError, WorkerCrashedError):
                took_s = time.monotonic() - started
                actor, _ = _new_actor(context)
                if took_s >= limit_s:
                    poison[record_id] = ("timed_out", f"it took longer than {limit_s:g} s")
                    break
                poison[record_id] = ("crashed", "the process that decodes or labels it dies of it")
    ray.kill(actor)  # at once: its core may be the cluster's only one
    return poison


def _new_actor(context: Shared[LabelContext]) -> tuple[Any, float]:
    actor = _ProbeActor.remote(context)  # type: ignore[attr-defined]
    return actor, ray.get(actor.limit_s.remote())
