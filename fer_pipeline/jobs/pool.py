"""The pool of GPU actors that classify the crops of CPU tasks and commit their shards."""

import logging
from typing import Any

import ray

from fer_pipeline.core.errors import UserError
from fer_pipeline.core.run import RunFolder, RunRecord
from fer_pipeline.jobs.worker import References
from fer_pipeline.stages.label import Looked, label

log = logging.getLogger(__name__)


@ray.remote(num_cpus=0, max_restarts=-1)
class _Classifying:
    """A classifier on one GPU, or a share of one. It asks for no core: CPU tasks could starve it, or it them."""

    def __init__(self, parts: References, folder: RunFolder, record: RunRecord) -> None:
        import torch

        from fer_pipeline.stages.classify import Classifier

        self.parts, self.folder, self.record = ray.get(parts[0]), folder, record
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.classify = Classifier(self.parts.bundle, self.parts.settings.precision, self.device)

    def device_name(self) -> str:
        return self.device

    def commit(self, looked: Looked) -> None:
        """Label one shard and commit it."""
        settings, card = self.parts.settings, self.parts.bundle.card
        table = label(looked, self.classify(looked.crops), card, settings.uncertain_below)
        self.folder.commit(self.record, looked.manifest["shard"][0].as_py(), table)


def count_actors(gpus_per_worker: float) -> int:
    """Return how many actors the cluster's GPUs allow; raise UserError where it is none."""
    gpus = ray.cluster_resources().get("GPU", 0)
    if gpus < gpus_per_worker:
        raise UserError(
            f"--gpus-per-worker {gpus_per_worker:g} asks for more than the {gpus:g} GPUs of the cluster: "
            "leave it out to use CPUs."
        )
    return int(gpus / gpus_per_worker)


class ClassifierPool:
    """As many actors as the cluster's GPUs allow; each shard goes to the one with the least to do."""

    def __init__(self, parts: References, folder: RunFolder, record: RunRecord, gpus_per_worker: float) -> None:
        """Start the actors."""
        count = count_actors(gpus_per_worker)
        actor = _Classifying.options(num_gpus=gpus_per_worker)  # type: ignore[attr-defined]
        self.actors = [actor.remote(parts, folder, record) for _ in range(count)]
        self.given: dict[Any, int] = {}
        devices = set(ray.get([one.device_name.remote() for one in self.actors]))
        log.info("%d classifiers on %s", count, " and ".join(sorted(devices)))
        if "cpu" in devices:
            log.warning("A GPU was reserved but torch sees no CUDA device there: faces are classified on its CPU")

    def classify(self, looked: Any) -> Any:
        """Return a reference that is ready when the shard that `looked` refers to is committed."""
        busy = list(self.given.values())
        least = min(range(len(self.actors)), key=busy.count)
        reference = self.actors[least].commit.remote(looked)
        self.given[reference] = least
        return reference

    def gave(self, reference: Any) -> bool:
        """Tell whether a reference, now ended, is one of the pool's."""
        return self.given.pop(reference, None) is not None
