"""The pool of GPU actors, each of which labels whole shards with a GPU, or a share of one, and the cores beside it."""

import logging
import math
import os
import time
from collections import deque
from typing import Any

import pyarrow as pa
import ray

from fer_pipeline.core.errors import MisfortuneError, UserError
from fer_pipeline.core.isolated import alarm
from fer_pipeline.core.storage import reason
from fer_pipeline.jobs.demand import Bundles
from fer_pipeline.jobs.label.chunk import Chunk
from fer_pipeline.jobs.label.tasks import Tasks
from fer_pipeline.jobs.label.worker import LabelContext
from fer_pipeline.jobs.shared import Shared, by_node
from fer_pipeline.stages.device_label import DeviceLabeller

log = logging.getLogger(__name__)

SHARDS_PER_ACTOR = 3
"""One is read and decoded, one computed, one committed."""
MOST_FAILURES = 5
"""Of actors in a row to come up, before the run ends."""


@ray.remote(num_cpus=0, max_restarts=0)
class GpuLabelActor:
    """A labeller on one GPU, or a share of one, and that share of its machine's cores. It asks Ray for none of them: nothing but
    the few shards that an actor died with is labelled beside it.
    """

    def __init__(self, context: Shared[LabelContext], gpus: float) -> None:
        import torch

        self.run = run = context.get()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        watch = alarm(run.record_timeout_s)
        self.labeller = DeviceLabeller(run.detector, run.bundle, run.settings, self.device, cores_beside(gpus), watch, run.known)

    def device_name(self) -> str:
        return self.device

    def label(self, shard: int, manifest: pa.Table) -> None:
        """Label one shard and commit it; die of what the device cannot do, so that cores see to the shard."""
        try:
            table = self.labeller(manifest)
        except RuntimeError as error:
            log.error("Shard %d is left to cores: %s", shard, reason(error)[:300])
            os._exit(1)
        self.run.commit(shard, table)


def cores_beside(gpus: float) -> int:
    """Return the cores of this node that go with so many of its GPUs."""
    own = ray.get_runtime_context().get_node_id()
    node: dict[str, float] = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == own)
    return max(1, int(node.get("CPU", 0) * gpus / max(node.get("GPU", 0), gpus)))


def count_actors(gpus_per_worker: float) -> int:
    """Return how many actors the cluster's GPUs allow now; 0 where none has enough.

    Ray places an actor on one node, and a share of a GPU within one GPU.
    """
    if gpus_per_worker <= 1:
        return sum(map(int, by_node("GPU"))) * int(1 / gpus_per_worker + 1e-9)
    return sum(int(gpus // gpus_per_worker) for gpus in by_node("GPU"))


class GpuPool:
    """As many actors as the cluster's GPUs allow, those that come later too; each takes the next shard that waits.

    An actor that does not come up, because another job holds its GPU, is not waited for as long as there is another.
    """

    def __init__(
        self, context: Shared[LabelContext], tasks: Tasks, gpus_per_worker: float, num_gpus: float | None, wait_s: float
    ) -> None:
        """`num_gpus`: most GPUs to take. `wait_s`: how long the first actor is waited for."""
        self.context, self.tasks, self.gpus_per_worker = context, tasks, gpus_per_worker
        self.most = None if num_gpus is None else max(1, int(num_gpus / gpus_per_worker + 1e-9))
        self.wait_s, self.began = wait_s, time.monotonic()
        self.coming: dict[Any, Any] = {}
        """Actors that are not up yet, by the reference to their answer."""
        self.actors = 0
        """How many are up."""
        self.free_slots: deque[Any] = deque()
        """An actor stands here as often as it can take another shard."""
        self.ready: deque[Chunk] = deque()
        """Shards that no actor has taken."""
        self.given: dict[int, Any] = {}
        """The actor that has a shard."""
        self.gone: set[Any] = set()
        self.failures = 0
        """Actors in a row that did not come up."""
        self.grow()

    def wanted(self) -> Bundles:
        """Return what to ask an autoscaler for: all the GPUs that the pool may take, or else one actor's."""
        together = max(1.0, self.gpus_per_worker)
        return [({"GPU": together}, math.ceil((self.most or 1) * self.gpus_per_worker / together))]

    def grow(self) -> None:
        """Ask for an actor on each GPU that has none; take those that came up. Raise UserError where none ever does."""
        wanted = count_actors(self.gpus_per_worker)
        wanted = wanted if self.most is None else min(wanted, self.most)
        for _ in range(wanted - self.actors - len(self.coming)):
            options = {"num_gpus": self.gpus_per_worker, "max_concurrency": SHARDS_PER_ACTOR}
            actor = GpuLabelActor.options(**options).remote(self.context, self.gpus_per_worker)  # type: ignore[attr-defined]
            self.coming[actor.device_name.remote()] = actor
        came, _ = ray.wait(list(self.coming), num_returns=len(self.coming), timeout=0) if self.coming else ([], [])
        for answer in came:
            self._take_in(answer, self.coming.pop(answer))
        if self.ready and not self.actors and time.monotonic() - self.began > self.wait_s:
            raise UserError(
                f"No GPU could be had within {self.wait_s:g} s: {count_actors(self.gpus_per_worker)} workers of "
                f"{self.gpus_per_worker:g} GPUs would fit the cluster, other jobs may hold them. "
                "Wait longer (--wait-s), or leave --gpus-per-worker out to use CPUs."
            )

    def _take_in(self, answer: Any, actor: Any) -> None:
        try:
            device = ray.get(answer)
        except ray.exceptions.RayError as error:
            self.failures += 1
            log.warning("A GPU worker did not come up: %s", reason(error)[:300])
            if self.failures > MOST_FAILURES and not self.actors:
                raise MisfortuneError(f"No GPU worker comes up, the last for this: {reason(error)[:300]}.") from error
            return
        self.actors, self.failures = self.actors + 1, 0
        log.info("%d GPU workers, the last on %s", self.actors, device)
        if device == "cpu":
            log.warning("A GPU was reserved but torch sees no CUDA device there: its shards are labelled by its cores")
        for _ in range(SHARDS_PER_ACTOR):
            self._give(actor)

    @property
    def has_room(self) -> bool:
        """Whether another shard is to be kept at hand."""
        return len(self.ready) + len(self.given) < 2 * SHARDS_PER_ACTOR * max(1, self.actors)

    def label(self, chunk: Chunk) -> None:
        """Have a shard labelled and committed, as soon as an actor is free."""
        self.ready.append(chunk)
        while self.free_slots and self.ready:
            actor = self.free_slots.popleft()
            if actor not in self.gone:
                self._give(actor)

    def free(self, chunk: Chunk, lost: bool = False) -> None:
        """Take back the actor that had a shard, and give it the next one; not where it is `lost`."""
        actor = self.given.pop(chunk.shards[0], None)
        if actor is None:
            return
        if lost and actor not in self.gone:
            self.gone.add(actor)
            ray.kill(actor)  # one that lives, and cannot be reached, would keep its GPU
            self.actors -= 1
            self.began = time.monotonic()
        if actor not in self.gone:
            self._give(actor)

    def _give(self, actor: Any) -> None:
        """Give an actor the next shard, or remember that it is free."""
        if not self.ready:
            self.free_slots.append(actor)
            return
        chunk = self.ready.popleft()
        self.given[chunk.shards[0]] = actor
        self.tasks.hear(chunk, actor.label.remote(chunk.shards[0], chunk.manifests[0]))
