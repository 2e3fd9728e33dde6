"""The dispatcher: hands shards to plain Ray tasks, so that the driver sees every death of a worker and decides what follows.

On a CPU cluster a task labels a few shards end to end and commits each. With GPUs an actor of the pool does so with one shard;
those that an actor died with are labelled by cores. What dies with its machine is done again elsewhere, and counts
against nobody. A shard that killed its worker while it was alone in the task is probed record by record, and labelled again
without the records that kill. Healthy shards pay nothing for it, and no step costs more on a larger cluster.
"""

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing

import pyarrow as pa
import pyarrow.compute as pc
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfDiskError,
    OutOfMemoryError,
    RayTaskError,
    RuntimeEnvSetupError,
    WorkerCrashedError,
)

from fer_pipeline.core import storage
from fer_pipeline.core.boundary import FULL_DISK
from fer_pipeline.core.errors import MisfortuneError
from fer_pipeline.core.manifest import read_shards, shuffled_files
from fer_pipeline.core.run import RunFolder, RunRecord
from fer_pipeline.jobs.label.chunk import Chunk, Step
from fer_pipeline.jobs.label.pool import GpuPool
from fer_pipeline.jobs.label.tasks import SilentError, Tasks

log = logging.getLogger(__name__)

MISFORTUNES = (
    ActorUnavailableError, LocalRayletDiedError, NodeDiedError, ObjectLostError, OutOfDiskError, RuntimeEnvSetupError
)  # fmt: skip
"""What befalls a machine, not the records that it was given."""
ACTOR_LOST = (ActorDiedError, ActorUnavailableError, OutOfMemoryError)
SHARDS_PER_TASK = 8
MOST_DEATHS = 4
"""After more deaths of workers that held one shard alone, its records are labelled one by one."""
MOST_MEMORY_KILLS = 2
"""After so many of them while it was alone, a shard is probed."""
LOST_AT_LEAST = 100
"""Tasks that may be lost to misfortune, or as many as the cluster has cores; beyond, two for each that ended well."""
LOOK_AGAIN_S = 2.0
"""How often the cluster's size is looked at."""
OTHERS_S = 30.0
"""How often it is looked what other drivers of the run have committed; seldom, where looking takes long."""


class Dispatcher:
    """Works off a run's pending shards; one for each driver of the run."""

    def __init__(
        self,
        folder: RunFolder,
        record: RunRecord,
        tasks: Tasks,
        pool: GpuPool | None = None,
        again: frozenset[int] = frozenset(),
        resumed: bool = False,
    ) -> None:
        """`again` are shards whose committed rows are to be replaced. `resumed`: another driver may be at work on the run."""
        self.folder, self.record, self.tasks, self.pool, self.resumed = folder, record, tasks, pool, resumed
        self.again = set(again)
        self.waiting: deque[Chunk] = deque()
        self.left = self.running = self.done = self.lost = 0
        self.lost_records = 0
        self.committed: set[int] = set()
        """Also by other drivers, as far as is known."""
        self.slow: set[str] = set()
        """Machines that emulate the run's arithmetic."""
        self._cores, self._looked, self._others_looked, self._others_s = 0, 0.0, time.monotonic(), 0.0

    def label(self, pending: Sequence[int], advance: Callable[[int], None]) -> int:
        """Label and commit the shards; return the number of records labelled here. Each is counted once, whatever dies.

        `advance` is told the number of records as they are done, here or by others. Raise MisfortuneError where the cluster
        loses more than it does.
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
        """Wait for tasks to end and see to what follows; yield the numbers of records that are done by them."""
        dead = []
        for chunk, result, error in self.tasks.ended(LOOK_AGAIN_S):
            self.running -= 1
            if error is not None:
                if chunk.step is Step.ON_GPU and self.pool:
                    self.pool.free(chunk, lost=isinstance(error, ACTOR_LOST))
                dead.append((chunk, error))
            elif count := self._after_step(chunk, result):
                self.done += 1
                self.again.difference_update(chunk.shards)
                yield count
        yield from self._after_deaths(dead)

    def _look(self) -> None:
        """See, from time to time, how large the cluster is and what others have done."""
        now = time.monotonic()
        if now - self._looked > LOOK_AGAIN_S:
            work, gpus = (0, self.pool.wanted()) if self.pool else (self.left + self.running, [])
            self._cores, self._looked = self.tasks.cores(work, gpus), now
            if self.pool:
                self.pool.grow()
        if now - self._others_looked > max(OTHERS_S, 20 * self._others_s):
            self.committed = self.folder.committed() - self.again
            self._others_looked = time.monotonic()
            self._others_s = self._others_looked - now

    def _fresh(self, pending: Sequence[int], advance: Callable[[int], None]) -> Generator[Chunk]:
        """Yield the pending shards in chunks: smaller ones towards the end, so that all cores finish together."""
        # Drivers that share a run begin at different places.
        order = shuffled_files(pending, random.Random()) if self.resumed else pending
        manifests = read_shards(self.folder.manifest_prefix(self.record.run_id), order)
        shards: list[int] = []
        tables: list[pa.Table] = []
        for shard, table in manifests:
            readable = table.filter(pc.is_null(table["error"]))
            storage.require_below(pc.unique(readable["uri"]).to_pylist(), self.record.source, f"The run in '{self.folder.url}'")
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
        """Keep two tasks for each core in work or waiting in the cluster, or the pool supplied."""
        while chunk := self._next(fresh):
            self._start(chunk)

    def _next(self, fresh: Iterator[Chunk]) -> Chunk | None:
        has_room = self.pool.has_room if self.pool else self.running < 2 * self._cores + 1
        if self.waiting and (has_room or self.pool):  # with a pool it is cores that do again what was lost
            return self.waiting.popleft()
        return next(fresh, None) if has_room else None

    def _start(self, chunk: Chunk) -> None:
        self.running += 1
        if chunk.step is Step.ON_GPU and self.pool:
            self.pool.label(chunk)
        else:
            self.tasks.start(chunk)

    def _after_step(self, chunk: Chunk, result: object) -> int:
        """Take a chunk whose step ended well; return the number of records that are done by it."""
        if chunk.step is Step.PROBE:
            assert isinstance(result, dict)
            chunk.poison, chunk.memory_kills = result, 0
            self._again(chunk)
            return 0
        if chunk.step is Step.ON_GPU and self.pool:
            self.pool.free(chunk)
        if isinstance(result, str) and result not in self.slow:
            self.slow.add(result)
            log.warning("%s emulates bf16, in which this run computes: same labels, but slower", result)
        return chunk.records

    def _again(self, chunk: Chunk) -> None:
        """Have a chunk labelled once more: by a way that cannot fail for its records' sake, where others did too often."""
        if chunk.deaths > MOST_DEATHS:
            chunk.step = Step.SINGLY
        else:
            chunk.step = Step.ON_GPU if self.pool and not chunk.off_gpu else Step.LABEL
        self.waiting.append(chunk)

    def _after_deaths(self, dead: list[tuple[Chunk, BaseException]]) -> Iterator[int]:
        """Put back what dead workers did not commit; yield the numbers of records that they did."""
        several = [shard for chunk, _ in dead for shard in chunk.shards]
        committed = self.folder.committed_of(several) - self.again if several else set()
        for chunk, error in dead:
            shards = ", ".join(map(str, chunk.shards))
            log.info("A task with shard %s was lost: %s", shards, type(error).__name__, extra={"shards": chunk.shards})
            whose = self._whose(chunk, error)
            left = [index for index, shard in enumerate(chunk.shards) if shard not in committed]
            self.lost_records += sum(len(chunk.manifests[index]) for index in left)
            if len(left) < len(chunk.shards):
                yield sum(len(table) for shard, table in zip(chunk.shards, chunk.manifests, strict=True) if shard in committed)
            if len(chunk.shards) == 1 and left:
                whose(chunk)
            else:
                for index in left:
                    self._again(chunk.alone(index))

    def _whose(self, chunk: Chunk, error: BaseException) -> Callable[[Chunk], None]:
        """Return what follows for a shard that was alone with what happened; raise what is neither its fault nor misfortune."""
        if chunk.step is Step.ON_GPU and isinstance(error, ACTOR_LOST):
            self._count_misfortune(error)
            return self._after_actors_death
        if isinstance(error, OutOfMemoryError):
            self._count_misfortune(error)
            return self._after_memory_kill
        if isinstance(error, WorkerCrashedError):
            if chunk.step is Step.SINGLY:  # in which no record kills the task itself
                self._count_misfortune(error)
            return self._after_death
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(error, (*MISFORTUNES, ActorDiedError)) or getattr(cause, "errno", None) in FULL_DISK:
            if not isinstance(error, SilentError):
                self._count_misfortune(cause)
            return self._after_misfortune
        raise cause from error

    def _count_misfortune(self, error: BaseException) -> None:
        self.lost += 1
        if self.lost > max(LOST_AT_LEAST, self._cores) + 2 * self.done:
            raise MisfortuneError(
                f"The cluster lost {self.lost} tasks while {self.done} ended, the last by {storage.reason(error)[:300]}: "
                "see what befalls its machines, then run the same command again to continue."
            )

    def _after_misfortune(self, chunk: Chunk) -> None:
        if chunk.step is Step.PROBE:
            self._probe(chunk)
        else:
            self._again(chunk)

    def _after_actors_death(self, chunk: Chunk) -> None:
        """An actor of the pool died with the shard, of it or of a neighbour: cores find out."""
        chunk.off_gpu = True
        self._again(chunk)

    def _after_death(self, chunk: Chunk) -> None:
        chunk.deaths += 1
        if chunk.poison or chunk.deaths > MOST_DEATHS:
            self._again(chunk)
        else:
            self._probe(chunk)

    def _after_memory_kill(self, chunk: Chunk) -> None:
        """Its machine's memory ran out: the shard's fault only where it was alone on it, and happens again."""
        chunk.memory_kills += 1
        if chunk.memory_kills > MOST_MEMORY_KILLS:
            self._after_death(chunk)
        else:
            self._again(chunk)

    def _probe(self, chunk: Chunk) -> None:
        chunk.step = Step.PROBE
        self.waiting.append(chunk)
