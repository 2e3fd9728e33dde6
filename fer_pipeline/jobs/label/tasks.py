"""The Ray tasks that process a chunk, and the one place that starts them."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pyarrow as pa
import ray

from fer_pipeline.base.processor import has_native_bf16
from fer_pipeline.engine.demand import Bundles
from fer_pipeline.engine.machines import Machines, by_node, cluster_cores
from fer_pipeline.engine.tasks import Shared, Tasks
from fer_pipeline.jobs.label.chunk import Chunk, Committed, Step
from fer_pipeline.jobs.label.probe import label_singly, probe
from fer_pipeline.jobs.label.worker import LabelContext, load_context, load_labeller, slow_machine
from fer_pipeline.labelling.labeller import Poison


class ChunkTasks(Tasks[Chunk]):
    """Running tasks and their chunks; no call costs more on a larger cluster."""

    def __init__(self, context: Shared[LabelContext], machines: Machines) -> None:
        super().__init__(machines)
        self.context = context

    def start(self, chunk: Chunk) -> None:
        """Start the chunk's step on the cluster's cores."""
        cores = max(1, int(max(by_node("CPU"), default=0))) if chunk.whole_node else 1  # it is alone wherever it runs
        if chunk.step is Step.PROBE:
            task: Any = probe.options(name="probe a shard").remote(self.context, chunk.manifests[0], cores)
        elif chunk.step is Step.SINGLY:
            singly = label_singly.options(name="label one by one")
            task = singly.remote(self.context, chunk.manifests[0], chunk.poison)
        else:
            label = _label.options(num_cpus=cores, name="label shards")
            task = label.remote(self.context, chunk.manifests, chunk.poison)
        self.add(chunk, task, may_be_lost=chunk.step is Step.LABEL)

    def cores(self, chunks: int, gpus: Bundles) -> int:
        """Return the cores that the cluster has now; request one core per chunk, and GPUs, from the autoscaler."""
        self.machines.need([*gpus, *[({"CPU": 1.0}, chunks)] * (chunks > 0)])
        return cluster_cores()


@ray.remote(num_cpus=1, max_retries=0)
def _label(context: Shared[LabelContext], manifests: list[pa.Table], poison: Poison) -> Committed:
    """Label shards and commit them one by one, each while the next is labelled."""
    labeller, run = load_labeller(context), load_context(context)
    tables = labeller(manifests, poison)
    with closing(tables), ThreadPoolExecutor(1, thread_name_prefix="commit") as committer:
        commits = [committer.submit(run.commit, *one) for one in zip(manifests, tables, strict=True)]
        for commit in commits:
            commit.result()
    return Committed(slow_machine(run.settings, has_native_bf16()))
