"""The probe labels each record of a shard alone, in an actor that the record may kill."""

import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError

from fer_pipeline.engine.failures import Failure, failure_of
from fer_pipeline.engine.tasks import Shared
from fer_pipeline.jobs.label.chunk import Committed, Probed
from fer_pipeline.jobs.label.worker import LabelContext, load_context, load_labeller
from fer_pipeline.labelling.labeller import Poison

MOST_DEATHS = 2
"""Deaths of a process with one record alone, on a machine that stayed alive, after which the record is marked."""
MOST_STARTS = 5
"""Attempts to start a process; its machine may be lost in each."""


@ray.remote(num_cpus=1, max_restarts=0)
class ProbeActor:
    """Labels one record at a time."""

    def __init__(self, context: Shared[LabelContext]) -> None:
        self.context = context

    def begin(self) -> tuple[float, str]:
        """Load the labeller; return the time limit of a record, in seconds, and this node's id."""
        load_labeller(self.context)
        return load_context(self.context).record_timeout_s, ray.get_runtime_context().get_node_id()

    def label(self, manifest: pa.Table, poison: Poison) -> pa.Table:
        (table,) = load_labeller(self.context)([manifest], poison)
        return table


@ray.remote(num_cpus=0, max_retries=0)
def probe(context: Shared[LabelContext], manifest: pa.Table, cores: int) -> Probed:
    """Return the records of a shard that kill the process that labels them (`crashed`) or never end (`timed_out`).

    `cores`: cores to reserve for the process; all of a machine's if it must be alone there.
    """
    poison: Poison = {}
    for _ in _labelled_alone(context, manifest, poison, cores):
        pass
    return Probed(poison)


@ray.remote(num_cpus=0, max_retries=0)
def label_singly(context: Shared[LabelContext], manifest: pa.Table, poison: Poison) -> Committed:
    """Label and commit a shard, each record in a process of its own: its records kill only together."""
    found = dict(poison)
    tables = list(_labelled_alone(context, manifest, found, 1, processes_of_their_own=True))
    load_context(context).commit(manifest, pa.concat_tables(tables).unify_dictionaries())
    return Committed()


def _labelled_alone(
    context: Shared[LabelContext], manifest: pa.Table, poison: Poison, cores: int, processes_of_their_own: bool = False
) -> Iterator[pa.Table]:
    """Yield the rows of each record, labelled alone; add records that kill to `poison`, with status and reason."""
    actor, limit_s, node = _new_actor(context, cores)
    for index, record_id in enumerate(manifest["record_id"].to_pylist()):
        deaths, losses, one = 0, 0, manifest.slice(index, 1)
        while True:
            started = time.monotonic()
            try:
                yield ray.get(actor.label.remote(one, poison))
                break
            except RayError as error:
                failure, took_s = failure_of(error), time.monotonic() - started
                if failure is Failure.BUG or isinstance(error, RayTaskError):  # the process lives on
                    raise
                its_own = failure is not Failure.MACHINE and _is_alive(node)
                deaths, losses = deaths + its_own, losses + (not its_own)
                if losses > MOST_STARTS:
                    raise
                actor, _, node = _new_actor(context, cores)
                if its_own and took_s >= limit_s:
                    poison[record_id] = ("timed_out", f"it took longer than {limit_s:g} s")
                elif deaths == MOST_DEATHS:
                    poison[record_id] = ("crashed", "it kills the process that decodes or labels it")
        if processes_of_their_own:
            ray.kill(actor)
            actor, limit_s, node = _new_actor(context, cores)
    ray.kill(actor)  # at once: its core may be the cluster's only one


def _is_alive(node: str) -> bool:
    """Tell whether a node is alive. If it is not, its actors died with it, and no record is to blame."""
    return any(one["NodeID"] == node and one["Alive"] for one in ray.nodes())


def _new_actor(context: Shared[LabelContext], cores: int) -> tuple[Any, float, str]:
    for start in range(MOST_STARTS):
        actor = ProbeActor.options(num_cpus=cores).remote(context)  # type: ignore[attr-defined]
        try:
            return actor, *ray.get(actor.begin.remote())
        except RayError as error:  # its node left meanwhile
            if failure_of(error) is Failure.BUG or isinstance(error, RayTaskError) or start == MOST_STARTS - 1:
                raise
    raise AssertionError
