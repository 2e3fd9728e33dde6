"""The dispatcher gives shards to plain Ray tasks, detects every death of a worker, and decides how to continue.

On a CPU cluster a task labels a few shards end to end and commits each. With GPUs an actor of the pool labels one shard; if the
actor dies, cores label that shard. A task that dies with its machine is retried elsewhere, and no record is blamed. A shard that
kills its worker while it is alone in the task is probed record by record, and labelled without the records that kill. Healthy
shards pay nothing for this, and no step costs more on a larger cluster.
"""

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.base import storage
from fer_pipeline.base.errors import ClusterError
from fer_pipeline.engine.failures import Failure, cause_of, failure_of, is_actor_lost
from fer_pipeline.engine.tasks import LOOK_S, LostError
from fer_pipeline.jobs.label.chunk import Chunk, Committed, Probed, Step
from fer_pipeline.jobs.label.pool import GpuPool
from fer_pipeline.jobs.label.tasks import ChunkTasks
from fer_pipeline.labelling.manifest import read_shards, shuffled_files
from fer_pipeline.labelling.run import RunFolder, RunRecord

log = logging.getLogger(__name__)

SHARDS_PER_TASK = 8
MOST_DEATHS = 4
"""Deaths of workers that had a shard alone, after which its records are labelled one by one."""
MOST_MEMORY_KILLS = 2
"""Memory kills of workers that had a shard alone, after which it is probed."""
TOLERATED_LOSSES = 100
"""Tasks that machines may lose: this many, or one per core if that is more, plus two for each task that ended well."""
OTHERS_S = 30.0
"""Interval at which it checks what other drivers of the run have committed; longer if the check is slow."""


class Dispatcher:
    """Labels a run's pending shards; each driver of the run has one."""

    def __init__(
        self,
        folder: RunFolder,
        record: RunRecord,
        tasks: ChunkTasks,
        pool: GpuPool | None = None,
        redo: frozenset[int] = frozenset(),
        resumed: bool = False,
    ) -> None:
        """`redo`: committed shards to label again. `resumed`: other drivers may work on the run, too."""
        self.folder, self.record, self.tasks, self.pool, self.resumed = folder, record, tasks, pool, resumed
        self.redo = set(redo)
        self.waiting: deque[Chunk] = deque()
        self.left = self.running = self.done = self.lost = 0
        self.lost_records = 0
        self.committed: set[int] = set()
        """Shards that any driver has committed, as far as this one knows."""
        self.slow: set[str] = set()
        """Machines that must emulate the run's arithmetic."""
        self._cores, self._looked, self._others_looked, self._others_s = 0, 0.0, time.monotonic(), 0.0

    def label(self, pending: Sequence[int], advance: Callable[[int], None]) -> int:
        """Label and commit the shards; return the number of records labelled here. Each counts once, whatever dies.

        Call `advance` with the number of records that are done, here or by other drivers. Raise ClusterError if the cluster
        loses too many tasks.
        """
        self.left, labelled = len(pending), 0
        with closing(self._fresh(pending, advance)) as fresh:
            while True:
                self._look()
                self._fill(fresh)
                if not self.running:
                    return labelled
                for count in self._ended():
                    labelled += count
                    advance(count)

    def _ended(self) -> Iterator[int]:
        """Wait for tasks to end and handle them; yield the numbers of records that they committed."""
        dead = []
        for ended in self.tasks.ended(LOOK_S):
            self.running -= 1
            chunk, on_gpu = ended.item, ended.item.step is Step.ON_GPU
            if on_gpu and self.pool:
                self.pool.free(chunk, lost=ended.error is not None and is_actor_lost(ended.error))
            if ended.error is not None:
                dead.append((chunk, ended.error))
            elif count := self._after_step(chunk, ended.result):
                self.done += 1
                self.redo.difference_update(chunk.shards)
                yield count
        yield from self._after_deaths(dead)

    def _look(self) -> None:
        """Update, at intervals, the cluster's size and what other drivers have committed."""
        now = time.monotonic()
        if now - self._looked > LOOK_S:
            work, gpus = (0, self.pool.wanted()) if self.pool else (self.left + self.running, [])
            self._cores, self._looked = self.tasks.cores(work, gpus), now
            if self.pool:
                self.pool.grow()
        if now - self._others_looked > max(OTHERS_S, 20 * self._others_s):
            self.committed = self.folder.committed() - self.redo
            self._others_looked = time.monotonic()
            self._others_s = self._others_looked - now

    def _fresh(self, pending: Sequence[int], advance: Callable[[int], None]) -> Generator[Chunk]:
        """Yield the pending shards in chunks, smaller ones towards the end, so that all cores finish together."""
        # Drivers that share a run start at different places.
        order = shuffled_files(pending, random.Random()) if self.resumed else pending
        manifests = read_shards(self.folder.manifest_prefix(self.record.run_id), order)
        shards: list[int] = []
        tables: list[pa.Table] = []
        for shard, table in manifests:
            readable = table.filter(pc.is_null(table["error"]))
            storage.require_below(pc.unique(readable["uri"]).to_pylist(), self.record.roots, f"The run in '{self.folder.url}'")
            self.left -= 1
            if shard in self.committed:
                advance(len(table))
            else:
                shards.append(shard)
                tables.append(table)
            # Guided self-scheduling (Polychronopoulos & Kuck, 1987).
            size = 1 if self.pool else max(1, min(SHARDS_PER_TASK, (self.left + len(shards)) // (2 * self._cores)))
            if shards and (len(shards) >= size or not self.left):
                yield Chunk(shards, tables, Step.ON_GPU if self.pool else Step.LABEL)
                shards, tables = [], []

    def _fill(self, fresh: Iterator[Chunk]) -> None:
        """Start chunks until the cluster has two tasks per core, running or waiting, or the pool is full."""
        while chunk := self._next(fresh):
            self._start(chunk)

    def _next(self, fresh: Iterator[Chunk]) -> Chunk | None:
        has_room = self.pool.has_room if self.pool else self.running < 2 * self._cores + 1
        if self.waiting and (has_room or self.pool):  # with a pool, cores retry lost shards
            return self.waiting.popleft()
        return next(fresh, None) if has_room else None

    def _start(self, chunk: Chunk) -> None:
        self.running += 1
        if chunk.step is Step.ON_GPU and self.pool:
            self.pool.label(chunk)
        else:
            self.tasks.start(chunk)

    def _after_step(self, chunk: Chunk, result: Committed | Probed) -> int:
        """Handle a chunk whose step succeeded; return the number of records that it committed."""
        if isinstance(result, Probed):
            chunk.poison, chunk.memory_kills = result.poison, 0
            self._retry(chunk)
            return 0
        if result.slow_machine and result.slow_machine not in self.slow:
            self.slow.add(result.slow_machine)
            log.warning("%s emulates bf16, the arithmetic of this run: its labels are the same, but slower", result.slow_machine)
        return chunk.records

    def _retry(self, chunk: Chunk) -> None:
        """Label a chunk again; if it failed too often, record by record, which its records cannot make fail."""
        if chunk.deaths > MOST_DEATHS:
            chunk.step = Step.SINGLY
        else:
            chunk.step = Step.ON_GPU if self.pool and not chunk.off_gpu else Step.LABEL
        self.waiting.append(chunk)

    def _after_deaths(self, dead: list[tuple[Chunk, BaseException]]) -> Iterator[int]:
        """Retry or probe the shards that dead workers did not commit; yield the numbers of records that they committed."""
        affected = [shard for chunk, _ in dead for shard in chunk.shards]
        committed = self.folder.committed_of(affected) - self.redo if affected else set()
        for chunk, error in dead:
            shards = ", ".join(map(str, chunk.shards))
            log.info("A task with shard %s was lost: %s", shards, type(error).__name__, extra={"shards": chunk.shards})
            failure = failure_of(error)
            if failure is Failure.BUG:
                raise cause_of(error) from error
            self._count_loss(chunk, failure, error)
            left = [index for index, shard in enumerate(chunk.shards) if shard not in committed]
            self.lost_records += sum(len(chunk.manifests[index]) for index in left)
            if len(left) < len(chunk.shards):
                yield sum(len(table) for shard, table in zip(chunk.shards, chunk.manifests, strict=True) if shard in committed)
            if len(chunk.shards) == 1 and left:
                chunk.off_gpu |= chunk.step is Step.ON_GPU and is_actor_lost(error)  # cores show which shard killed it
                self._after_death(chunk, failure)
            else:
                for index in left:
                    self._retry(chunk.alone(index))

    def _count_loss(self, chunk: Chunk, failure: Failure, error: BaseException) -> None:
        """Count a task that its machine lost; raise ClusterError if machines lose too many.

        A dead worker does not count if its records may have killed it. One node's death counts once.
        """
        may_be_the_records = failure is Failure.PROCESS and chunk.step in (Step.LABEL, Step.PROBE)
        if may_be_the_records or isinstance(error, LostError):
            return
        self.lost += 1
        if self.lost > max(TOLERATED_LOSSES, self._cores) + 2 * self.done:
            raise ClusterError(
                f"The cluster lost {self.lost} tasks and finished {self.done}; the last error: "
                f"{storage.reason(cause_of(error))[:300]}. "
                "Check its machines, then run the same command again to continue."
            )

    def _after_death(self, chunk: Chunk, failure: Failure) -> None:
        """Retry or probe a shard that was alone in a task that failed."""
        if chunk.step is Step.ON_GPU:
            self._retry(chunk)
        elif failure is Failure.MACHINE:
            self._probe(chunk) if chunk.step is Step.PROBE else self._retry(chunk)
        elif failure is Failure.MEMORY and chunk.memory_kills < MOST_MEMORY_KILLS:
            chunk.memory_kills += 1
            self._retry(chunk)
        else:
            chunk.memory_kills += failure is Failure.MEMORY
            chunk.deaths += 1
            if chunk.poison or chunk.deaths > MOST_DEATHS:
                self._retry(chunk)
            else:
                self._probe(chunk)

    def _probe(self, chunk: Chunk) -> None:
        chunk.step = Step.PROBE
        self.waiting.append(chunk)
