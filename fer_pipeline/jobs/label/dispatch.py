"""The dispatcher: hands shards to plain Ray tasks, so that the driver sees every death of a worker and decides what follows.

On a CPU cluster a task labels a few shards end to end and commits each. With GPUs a CPU task extracts the faces of
one shard, and an actor of the pool classifies and commits them. A shard that killed its worker while it was alone in the task is
probed record by record, and labelled again without the records that kill. Healthy shards pay nothing for it.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayTaskError,
    WorkerCrashedError,
)

from fer_pipeline.core.manifest import read_shards
from fer_pipeline.core.run import RunFolder, RunRecord
from fer_pipeline.jobs.label.pool import ClassifierPool
from fer_pipeline.jobs.label.probe import probe
from fer_pipeline.jobs.label.worker import LabelContext, load_extractor, load_labeller
from fer_pipeline.jobs.shared import Shared, cluster_cores
from fer_pipeline.stages.label import ExtractedShard, Poison

log = logging.getLogger(__name__)

ACTOR_LOST = (ActorDiedError, ActorUnavailableError)
DEATHS = (*ACTOR_LOST, NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError)
SHARDS_PER_TASK = 8
MOST_DEATHS = 4
"""After more deaths of workers that held one shard alone, the shard's records are given up."""
LOOK_AGAIN_S = 5.0
"""How often the cluster's size is looked at."""


@dataclass
class Chunk:
    """The shards of one task, with their manifest rows."""

    shards: list[int]
    manifests: list[pa.Table]
    poison: Poison = field(default_factory=dict)
    """What the probe found, by record id."""
    deaths: int = 0
    """Workers that died with it."""
    probing: bool = False

    @property
    def records(self) -> int:
        return sum(map(len, self.manifests))

    def alone(self, index: int) -> "Chunk":
        return Chunk([self.shards[index]], [self.manifests[index]], self.poison, self.deaths)


class Dispatcher:
    """Works off a run's pending shards; one for each run."""

    def __init__(self, folder: RunFolder, record: RunRecord, context: Shared[LabelContext], gpus_per_worker: float) -> None:
        self.folder, self.record, self.context = folder, record, context
        self.pool = ClassifierPool(self.context, folder, record, gpus_per_worker) if gpus_per_worker else None
        self.waiting: deque[Chunk] = deque()
        self.running: dict[Any, Chunk] = {}
        self.extracting: set[Any] = set()
        """The running tasks whose shards go to the pool next."""

    def label(self, pending: Sequence[int]) -> Iterator[int]:
        """Yield the number of records done as tasks end. Each record is counted once, whatever dies."""
        manifests = read_shards(self.folder.manifest_prefix(self.record.run_id), pending)
        left = len(pending)
        while left or self.waiting or self.running:
            cores = cluster_cores()
            while (left or self.waiting) and len(self.running) < 2 * cores + 1:
                if self.waiting:
                    self._start(self.waiting.popleft())
                    continue
                # Guided self-scheduling (Polychronopoulos & Kuck, 1987): single shards at the end, all cores finish together.
                size = 1 if self.pool else max(1, min(SHARDS_PER_TASK, left // (2 * cores)))
                shards, tables = zip(*(next(manifests) for _ in range(min(size, left))), strict=True)
                self._start(Chunk(list(shards), list(tables)))
                left -= len(shards)
            ended, _ = ray.wait(list(self.running), num_returns=1, timeout=LOOK_AGAIN_S, fetch_local=False)
            for reference in ended:
                yield self._end(reference, self.running.pop(reference))

    def _start(self, chunk: Chunk) -> None:
        if chunk.probing:
            reference: Any = probe.remote(self.context, chunk.manifests[0])
        elif self.pool and chunk.deaths <= MOST_DEATHS:
            reference = _extract.remote(self.context, chunk.manifests[0], chunk.poison)
            self.extracting.add(reference)
        else:
            reference = _label.remote(self.context, self.folder, self.record, chunk.shards, chunk.manifests, chunk.poison)
        self.running[reference] = chunk

    def _end(self, reference: Any, chunk: Chunk) -> int:
        """Take a task's result; return the number of records that are done by it."""
        actor = self.pool.take_back(reference) if self.pool else None
        if self.pool and actor is None and reference in self.extracting:
            self.extracting.remove(reference)  # where the task died, the actor's call fails alike
            self.running[self.pool.classify(reference)] = chunk
            return 0
        try:
            found = ray.get(reference)
        except ACTOR_LOST as error:
            if self.pool is None or actor is None:
                return self._after_death(chunk, error)
            self.pool.lose(actor)
            chunk.deaths += 1  # after too many of them the shard is labelled on a core
            self.waiting.append(chunk)
            return 0
        except DEATHS as error:
            return self._after_death(chunk, error)
        except RayTaskError as error:
            raise error.as_instanceof_cause() from None
        if chunk.probing:
            chunk.poison, chunk.probing = found, False
            self.waiting.append(chunk)
            return 0
        return chunk.records

    def _after_death(self, chunk: Chunk, error: Exception) -> int:
        """Put back what the dead worker did not commit; return the number of records that it did."""
        log.info("A worker died with shard %s: %s", ", ".join(map(str, chunk.shards)), type(error).__name__)
        chunk.deaths += 1
        done = 0
        for index, shard in enumerate(chunk.shards):
            one = chunk.alone(index)
            if self.folder.is_committed(shard):
                done += one.records
                continue
            if len(chunk.shards) == 1:
                one.probing = not one.poison
                if one.deaths > (2 * MOST_DEATHS if self.pool else MOST_DEATHS):
                    one.poison, one.probing = _given_up(one), False
            self.waiting.append(one)
        return done


def _given_up(chunk: Chunk) -> Poison:
    reason = f"its shard's worker died {chunk.deaths} times, though none of the shard's records kills one alone"
    return dict.fromkeys(chunk.manifests[0]["record_id"].to_pylist(), ("crashed", reason)) | chunk.poison


@ray.remote(num_cpus=1, max_retries=0)
def _label(
    context: Shared[LabelContext],
    folder: RunFolder,
    record: RunRecord,
    shards: list[int],
    manifests: list[pa.Table],
    poison: Poison,
) -> None:
    """Label shards and commit them one by one, each while the next is worked on."""
    labeller = load_labeller(context)
    with ThreadPoolExecutor(1, thread_name_prefix="commit") as committer:
        tables = labeller(manifests, poison)
        commits = [committer.submit(folder.commit, record, shard, table) for shard, table in zip(shards, tables, strict=True)]
        for commit in commits:
            commit.result()


@ray.remote(num_cpus=1, max_retries=0)
def _extract(context: Shared[LabelContext], manifest: pa.Table, poison: Poison) -> ExtractedShard:
    """Return one shard's faces, not yet labelled: what a GPU actor classifies."""
    return next(load_extractor(context)([manifest], poison))
