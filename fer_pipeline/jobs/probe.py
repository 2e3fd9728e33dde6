"""Find the records that kill: each of a shard's is labelled alone, in an actor that may die of it."""

import time
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, WorkerCrashedError

from fer_pipeline.jobs.worker import References, load_labeller

Verdicts = dict[int, tuple[str, str]]
"""Record id to status and reason of the records that must not be touched again."""
STRIKES = 2
"""Deaths alone that condemn a record: one may have been its machine's."""


@ray.remote(num_cpus=1, max_restarts=0)
class _Subject:
    """Labels one record at a time, for no other result than to survive it."""

    def __init__(self, parts: References) -> None:
        self.parts = parts

    def limit_s(self) -> float:
        """Load what is needed; return the time that a record has."""
        load_labeller(self.parts)
        return float(ray.get(self.parts[0]).record_timeout_s)

    def label(self, manifest: pa.Table) -> None:
        list(load_labeller(self.parts)([manifest]))


@ray.remote(num_cpus=0, max_retries=0)
def probe(parts: References, manifest: pa.Table) -> Verdicts:
    """Return the records of a shard that kill the process that labels them (`crashed`) or never end (`timed_out`)."""
    verdicts: Verdicts = {}
    subject, limit_s = _new_subject(parts)
    for index, record_id in enumerate(manifest["record_id"].to_pylist()):
        for _ in range(STRIKES):
            started = time.monotonic()
            try:
                ray.get(subject.label.remote(manifest.slice(index, 1)))
                verdicts.pop(record_id, None)
                break
            except (ActorDiedError, ActorUnavailableError, OutOfMemoryError, WorkerCrashedError):
                took_s = time.monotonic() - started
                subject, _ = _new_subject(parts)
                if took_s >= limit_s:
                    verdicts[record_id] = ("timed_out", f"it took longer than {limit_s:g} s")
                    break
                verdicts[record_id] = ("crashed", "the process that decodes or labels it dies of it")
    ray.kill(subject)  # at once: its core may be the cluster's only one
    return verdicts


def _new_subject(parts: References) -> tuple[Any, float]:
    subject = _Subject.remote(parts)  # type: ignore[attr-defined]
    return subject, ray.get(subject.limit_s.remote())
