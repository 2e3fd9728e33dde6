"""The pool of GPU actors. Each labels whole shards on a GPU, or a share of one, and the cores of its node."""

import logging
import math
import os
from collections import deque
from typing import Any

import pyarrow as pa
import ray

from fer_pipeline.base.errors import ClusterError
from fer_pipeline.base.isolated import alarm
from fer_pipeline.base.storage import reason
from fer_pipeline.engine.demand import Bundles
from fer_pipeline.engine.machines import by_node
from fer_pipeline.engine.tasks import Shared
from fer_pipeline.engine.waiting import Waiting
from fer_pipeline.jobs.label.chunk import Chunk, Committed
from fer_pipeline.jobs.label.tasks import ChunkTasks
from fer_pipeline.jobs.label.worker import LabelContext
from fer_pipeline.labelling.device_labeller import DeviceLabeller

log = logging.getLogger(__name__)

SHARDS_PER_ACTOR = 3
"""One shard is read and decoded while another is computed and a third is committed."""
MOST_FAILURES = 5
"""Actors in a row that may fail to start before the run ends."""


@ray.remote(num_cpus=0, max_restarts=0)
class GpuLabelActor:
    """A labeller on one GPU, or a share of one, and the same share of its machine's cores. It reserves no cores in Ray: the only
    other work there is the few shards whose actor died.
    """

    def __init__(self, context: Shared[LabelContext], gpus: float) -> None:
        import torch

        self.run = run = context.get()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        watch = alarm(run.record_timeout_s)
        self.labeller = DeviceLabeller(
            run.detector, run.bundle, run.settings, self.device, cores_beside(gpus), watch, run.decided, run.faces_of
        )

    def device_name(self) -> str:
        return self.device

    def label(self, manifest: pa.Table) -> Committed:
        """Label and commit one shard. If the device cannot, end this process, so that cores label the shard."""
        try:
            table = self.labeller(manifest)
        except RuntimeError as error:
            shard = manifest["shard"][0].as_py()
            log.error("Cores will label shard %d, because the device failed: %s", shard, reason(error)[:300])
            os._exit(1)
        self.run.commit(manifest, table)
        return Committed()


def cores_beside(gpus: float) -> int:
    """Return the share of this node's cores that goes with this number of its GPUs; at least 1."""
    own = ray.get_runtime_context().get_node_id()
    node: dict[str, float] = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == own)
    return max(1, int(node.get("CPU", 0) * gpus / max(node.get("GPU", 0), gpus)))


def count_actors(gpus_per_worker: float) -> int:
    """Return how many actors the cluster's GPUs allow now; 0 if no node has enough.

    Ray places an actor on one node, and a share of a GPU within one GPU.
    """
    if gpus_per_worker <= 1:
        return sum(map(int, by_node("GPU"))) * int(1 / gpus_per_worker + 1e-9)
    return sum(int(gpus // gpus_per_worker) for gpus in by_node("GPU"))


class GpuPool:
    """As many actors as the cluster's GPUs allow, also GPUs that join later; each takes the next waiting shard.

    The pool does not wait for an actor that cannot start, because another job holds its GPU, while it has another actor.
    """

    def __init__(self, context: Shared[LabelContext], tasks: ChunkTasks, gpus_per_worker: float, num_gpus: float | None) -> None:
        """`num_gpus`: maximum GPUs to use."""
        self.context, self.tasks, self.gpus_per_worker = context, tasks, gpus_per_worker
        self.most = None if num_gpus is None else max(1, int(num_gpus / gpus_per_worker + 1e-9))
        self._waiting = Waiting(tasks.machines.wait_s, lambda: self.actors > 0, "no GPU for a worker, which other jobs may hold,")
        self.coming: dict[Any, Any] = {}
        """Actors that have not started yet, by the reference to their answer."""
        self.actors = 0
        """Number of started actors."""
        self.free_slots: deque[Any] = deque()
        """Each actor once for each further shard that it can take."""
        self.ready: deque[Chunk] = deque()
        """Shards that no actor has taken."""
        self.given: dict[int, Any] = {}
        """The actor that has a shard, by shard."""
        self.gone: set[Any] = set()
        self.failures = 0
        """Actors in a row that did not start."""
        self.grow()

    def wanted(self) -> Bundles:
        """Return what to request from an autoscaler: the maximum GPUs of the pool, or one actor's if it has no maximum."""
        together = max(1.0, self.gpus_per_worker)
        return [({"GPU": together}, math.ceil((self.most or 1) * self.gpus_per_worker / together))]

    def grow(self) -> None:
        """Start an actor on each GPU that has none; add those that have started. Raise ClusterError if none starts."""
        wanted = count_actors(self.gpus_per_worker)
        wanted = wanted if self.most is None else min(wanted, self.most)
        for _ in range(wanted - self.actors - len(self.coming)):
            options = {"num_gpus": self.gpus_per_worker, "max_concurrency": SHARDS_PER_ACTOR}
            actor = GpuLabelActor.options(**options).remote(self.context, self.gpus_per_worker)  # type: ignore[attr-defined]
            self.coming[actor.device_name.remote()] = actor
        answers, _ = ray.wait(list(self.coming), num_returns=len(self.coming), timeout=0) if self.coming else ([], [])
        for answer in answers:
            self._add_actor(answer, self.coming.pop(answer))
        self._waiting.check(bool(self.ready))

    def _add_actor(self, answer: Any, actor: Any) -> None:
        try:
            device = ray.get(answer)
        except ray.exceptions.RayError as error:
            self.failures += 1
            log.warning("A GPU worker did not start: %s", reason(error)[:300])
            if self.failures > MOST_FAILURES and not self.actors:
                raise ClusterError(f"No GPU worker starts; the last error: {reason(error)[:300]}.") from error
            return
        self.actors, self.failures = self.actors + 1, 0
        log.info("%d GPU workers, the last on %s", self.actors, device)
        if device == "cpu":
            log.warning("A GPU worker labels on its cores: it has reserved a GPU, but torch sees no CUDA device there")
        for _ in range(SHARDS_PER_ACTOR):
            self._give(actor)

    @property
    def has_room(self) -> bool:
        """Whether the pool can take another shard."""
        return len(self.ready) + len(self.given) < 2 * SHARDS_PER_ACTOR * max(1, self.actors)

    def label(self, chunk: Chunk) -> None:
        """Have a shard labelled and committed as soon as an actor is free."""
        self.ready.append(chunk)
        while self.free_slots and self.ready:
            actor = self.free_slots.popleft()
            if actor not in self.gone:
                self._give(actor)

    def free(self, chunk: Chunk, lost: bool = False) -> None:
        """Give the actor that had a shard the next one; if the actor is `lost`, remove it."""
        actor = self.given.pop(chunk.shards[0], None)
        if actor is None:
            return
        if lost and actor not in self.gone:
            self.gone.add(actor)
            ray.kill(actor)  # an actor that is alive but unreachable would keep its GPU
            self.actors -= 1
        if actor not in self.gone:
            self._give(actor)

    def _give(self, actor: Any) -> None:
        """Give an actor the next shard, or remember that it is free."""
        if not self.ready:
            self.free_slots.append(actor)
            return
        chunk = self.ready.popleft()
        self.given[chunk.shards[0]] = actor
        self.tasks.add(chunk, actor.label.remote(chunk.manifests[0]), needs_core=False, may_be_lost=False)
