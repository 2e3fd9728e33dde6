"""The probe: each record of a shard is labelled alone, in an actor that may die of it."""

import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, WorkerCrashedError

from fer_pipeline.jobs.label.worker import LabelContext, load_context, load_labeller
from fer_pipeline.jobs.shared import Shared
from fer_pipeline.stages.label import Poison

STRIKES = 2
"""Deaths alone, on machines that lived on, that condemn a record."""
STARTS = 5
"""Attempts to start a process, each of which may lose its machine."""
DEATHS = (ActorDiedError, ActorUnavailableError, OutOfMemoryError, WorkerCrashedError)


@ray.remote(num_cpus=1, max_restarts=0)
class ProbeActor:
    """Labels one record at a time."""

    def __init__(self, context: Shared[LabelContext]) -> None:
        self.context = context

    def begin(self) -> tuple[float, str]:
        """Load what is needed; return the time that a record has, and the node that this is."""
        load_labeller(self.context)
        return load_context(self.context).record_timeout_s, ray.get_runtime_context().get_node_id()

    def label(self, manifest: pa.Table, poison: Poison) -> pa.Table:
        (table,) = load_labeller(self.context)([manifest], poison)
        return table


@ray.remote(num_cpus=0, max_retries=0)
def probe(context: Shared[LabelContext], manifest: pa.Table, cores: int) -> Poison:
    """Return the records of a shard that kill the process that labels them (`crashed`) or never end (`timed_out`).

    `cores` is what a record has for itself: all of a machine's, where it is to be alone on it.
    """
    poison: Poison = {}
    for _ in _labelled_alone(context, manifest, poison, cores):
        pass
    return poison


@ray.remote(num_cpus=0, max_retries=0)
def label_singly(context: Shared[LabelContext], shard: int, manifest: pa.Table, poison: Poison) -> None:
    """Label and commit a shard whose records kill together, though none does alone: each in a process of its own."""
    found = dict(poison)
    tables = list(_labelled_alone(context, manifest, found, 1, processes_of_their_own=True))
    load_context(context).commit(shard, pa.concat_tables(tables).unify_dictionaries())


def _labelled_alone(
    context: Shared[LabelContext], manifest: pa.Table, poison: Poison, cores: int, processes_of_their_own: bool = False
) -> Iterator[pa.Table]:
    """Yield the rows of each record, labelled alone; those that kill are put into `poison`, with status and reason."""
    actor, limit_s, node = _new_actor(context, cores)
    for index, record_id in enumerate(manifest["record_id"].to_pylist()):
        strikes, one = 0, manifest.slice(index, 1)
        while True:
            started = time.monotonic()
            try:
                yield ray.get(actor.label.remote(one, poison))
                break
            except DEATHS as error:
                took_s = time.monotonic() - started
                its_own = _is_alive(node) and not isinstance(error, ActorUnavailableError)
                strikes += its_own
                actor, _, node = _new_actor(context, cores)
                if its_own and took_s >= limit_s:
                    poison[record_id] = ("timed_out", f"it took longer than {limit_s:g} s")
                elif strikes == STRIKES:
                    poison[record_id] = ("crashed", "the process that decodes or labels it dies of it")
        if processes_of_their_own:
            ray.kill(actor)
            actor, limit_s, node = _new_actor(context, cores)
    ray.kill(actor)  # at once: its core may be the cluster's only one


def _is_alive(node: str) -> bool:
    """Tell whether a node is still there: one that left took its actors with it, whatever they did."""
    return any(one["NodeID"] == node and one["Alive"] for one in ray.nodes())


def _new_actor(context: Shared[LabelContext], cores: int) -> tuple[Any, float, str]:
    for start in range(STARTS):
        actor = ProbeActor.options(num_cpus=cores).remote(context)  # type: ignore[attr-defined]
        try:
            return actor, *ray.get(actor.begin.remote())
        except DEATHS:  # its node left meanwhile
            if start == STARTS - 1:
                raise
    raise AssertionError
