"""The pool of GPU actors that classify the crops of CPU tasks and commit their shards."""

import logging
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError

from fer_pipeline.core.errors import UserError
from fer_pipeline.core.run import RunFolder, RunRecord
from fer_pipeline.jobs.label.worker import LabelContext
from fer_pipeline.jobs.shared import Shared
from fer_pipeline.stages.label import ExtractedShard, label

log = logging.getLogger(__name__)


@ray.remote(num_cpus=0, max_restarts=-1)
class _ClassifierActor:
    """A classifier on one GPU, or a share of one. It asks for no core: CPU tasks could starve it, or it them."""

    def __init__(self, context: Shared[LabelContext], folder: RunFolder, record: RunRecord) -> None:
        import torch

        from fer_pipeline.stages.classify import Classifier

        self.context, self.folder, self.record = context.get(), folder, record
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.classify = Classifier(self.context.bundle, self.context.settings.precision, self.device)

    def device_name(self) -> str:
        return self.device

    def commit(self, shard: ExtractedShard) -> None:
        """Label one shard and commit it."""
        settings, card = self.context.settings, self.context.bundle.card
        table = label(shard, self.classify(shard.crops), card, settings.uncertain_below)
        self.folder.commit(self.record, shard.manifest["shard"][0].as_py(), table)


def count_actors(gpus_per_worker: float) -> int:
    """Return how many actors the cluster's GPUs allow; raise UserError where it is none.

    Ray places an actor on one node, and a share of a GPU within one GPU.
    """
    if gpus_per_worker > 1 and gpus_per_worker != int(gpus_per_worker):
        raise UserError(f"--gpus-per-worker {gpus_per_worker:g} is neither a share of one GPU nor a whole number of them.")
    by_node = [node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]]
    if gpus_per_worker <= 1:
        count = sum(int(gpus) for gpus in by_node) * int(1 / gpus_per_worker + 1e-9)
    else:
        count = sum(int(gpus // gpus_per_worker) for gpus in by_node)
    if not count:
        raise UserError(
            f"--gpus-per-worker {gpus_per_worker:g} asks for more than any node of the cluster has ({max(by_node):g} GPUs): "
            "leave it out to use CPUs."
        )
    return count


class ClassifierPool:
    """As many actors as the cluster's GPUs allow; each shard goes to the one with the least to do."""

    def __init__(self, context: Shared[LabelContext], folder: RunFolder, record: RunRecord, gpus_per_worker: float) -> None:
        """Start the actors."""
        count = count_actors(gpus_per_worker)
        actor = _ClassifierActor.options(num_gpus=gpus_per_worker)  # type: ignore[attr-defined]
        self.actors = [actor.remote(context, folder, record) for _ in range(count)]
        self.given: dict[Any, int] = {}
        self.lost: dict[int, Any] = {}
        """Actors that do not answer, with the call that will say when they do again."""
        devices = set(ray.get([one.device_name.remote() for one in self.actors]))
        log.info("%d classifiers on %s", count, " and ".join(sorted(devices)))
        if "cpu" in devices:
            log.warning("A GPU was reserved but torch sees no CUDA device there: faces are classified on its CPU")

    def classify(self, shard: Any) -> Any:
        """Return a reference that is ready when the shard is committed; `shard` refers to its extracted faces."""
        fit = [index for index in range(len(self.actors)) if self._is_back(index)] or range(len(self.actors))
        busy = list(self.given.values())
        least = min(fit, key=busy.count)
        reference = self.actors[least].commit.remote(shard)
        self.given[reference] = least
        return reference

    def take_back(self, reference: Any) -> int | None:
        """Return which actor a reference, now ended, was given to; None where it is not one of the pool's."""
        return self.given.pop(reference, None)

    def lose(self, actor: int) -> None:
        """Give an actor that died or cannot be reached nothing more until it answers: dead, it would have least to do."""
        self.lost[actor] = self.actors[actor].device_name.remote()

    def _is_back(self, actor: int) -> bool:
        if actor not in self.lost:
            return True
        if ray.wait([self.lost[actor]], timeout=0)[0]:
            try:
                ray.get(self.lost[actor])
            except (ActorDiedError, ActorUnavailableError):
                self.lose(actor)
            else:
                del self.lost[actor]
        return actor not in self.lost
