"""The pool of GPU actors that classify the crops of CPU tasks and commit their shards."""

import logging
import math
import time
from collections import deque
from typing import Any

import ray

from fer_pipeline.core.errors import MisfortuneError, UserError
from fer_pipeline.core.stage_clock import timed
from fer_pipeline.core.storage import reason
from fer_pipeline.jobs.demand import Bundles
from fer_pipeline.jobs.label.chunk import Chunk
from fer_pipeline.jobs.label.tasks import Tasks
from fer_pipeline.jobs.label.worker import LabelContext
from fer_pipeline.jobs.shared import Shared, by_node
from fer_pipeline.stages.label import ExtractedShard, label

log = logging.getLogger(__name__)

SHARDS_PER_ACTOR = 2
"""One in work and one at hand."""
MOST_FAILURES = 5
"""Of actors in a row to come up, before the run ends."""


@ray.remote(num_cpus=0, max_restarts=0)
class ClassifierActor:
    """A classifier on one GPU, or a share of one. It asks for no core: CPU tasks could starve it, or it them."""

    def __init__(self, context: Shared[LabelContext]) -> None:
        import torch

        from fer_pipeline.stages.classify import Classifier

        self.context = context.get()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.classify = Classifier(self.context.bundle, self.context.settings.precision, self.device)

    def device_name(self) -> str:
        return self.device

    def commit(self, shard: ExtractedShard) -> None:
        """Label one shard and commit it."""
        settings, card = self.context.settings, self.context.bundle.card
        with timed("classify"):
            probabilities = self.classify(shard.crops)
        table = label(shard, probabilities, card, settings.uncertain_below)
        self.context.commit(shard.manifest["shard"][0].as_py(), table)


def count_actors(gpus_per_worker: float) -> int:
    """Return how many actors the cluster's GPUs allow now; 0 where none has enough.

    Ray places an actor on one node, and a share of a GPU within one GPU.
    """
    if gpus_per_worker <= 1:
        return sum(map(int, by_node("GPU"))) * int(1 / gpus_per_worker + 1e-9)
    return sum(int(gpus // gpus_per_worker) for gpus in by_node("GPU"))


class ClassifierPool:
    """As many actors as the cluster's GPUs allow, those that come later too; each takes the next shard that is ready.

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
        self.ready: deque[tuple[Chunk, Any]] = deque()
        """Extracted shards that no actor has taken."""
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
            actor = ClassifierActor.options(num_gpus=self.gpus_per_worker).remote(self.context)  # type: ignore[attr-defined]
            self.coming[actor.device_name.remote()] = actor
        came, _ = ray.wait(list(self.coming), num_returns=len(self.coming), timeout=0) if self.coming else ([], [])
        for answer in came:
            self._take_in(answer, self.coming.pop(answer))
        if not self.actors and time.monotonic() - self.began > self.wait_s:
            raise UserError(
                f"No GPU could be had within {self.wait_s:g} s: {count_actors(self.gpus_per_worker)} classifiers of "
                f"{self.gpus_per_worker:g} GPUs would fit the cluster, other jobs may hold them. "
                "Wait longer (--wait-s), or leave --gpus-per-worker out to use CPUs."
            )

    def _take_in(self, answer: Any, actor: Any) -> None:
        try:
            device = ray.get(answer)
        except ray.exceptions.RayError as error:
            self.failures += 1
            log.warning("A classifier did not come up: %s", reason(error)[:300])
            if self.failures > MOST_FAILURES and not self.actors:
                raise MisfortuneError(f"No classifier comes up, the last for this: {reason(error)[:300]}.") from error
            return
        self.actors, self.failures = self.actors + 1, 0
        log.info("%d classifiers, the last on %s", self.actors, device)
        if device == "cpu":
            log.warning("A GPU was reserved but torch sees no CUDA device there: faces are classified on its CPU")
        for _ in range(SHARDS_PER_ACTOR):
            self._give(actor)

    def classify(self, chunk: Chunk, faces: Any) -> None:
        """Have a shard's faces, behind a reference, classified and committed, as soon as an actor is free."""
        self.ready.append((chunk, faces))
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
        chunk, faces = self.ready.popleft()
        self.given[chunk.shards[0]] = actor
        self.tasks.hear(chunk, actor.commit.remote(faces))
