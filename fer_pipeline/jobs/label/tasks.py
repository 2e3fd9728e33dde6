"""The Ray tasks that a chunk goes through, and the one place that starts them and hears how they ended."""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from queue import Empty, SimpleQueue
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import NodeDiedError

from fer_pipeline.core.processor import has_native_bf16
from fer_pipeline.jobs.demand import Bundles
from fer_pipeline.jobs.label.chunk import Chunk, Step
from fer_pipeline.jobs.label.probe import label_singly, probe
from fer_pipeline.jobs.label.worker import LabelContext, load_context, load_labeller, slow_machine
from fer_pipeline.jobs.shared import Deaths, Patience, Shared, by_node, cluster_cores
from fer_pipeline.stages.label import Poison

Ended = tuple[Chunk, Any, BaseException | None]
"""A chunk whose task ended, what the task returned, and what it raised instead."""


ANSWER_S = 15.0
"""How long a task may have to be silent, at the least, after a node has died, to be taken for one of that node's."""


class SilentError(NodeDiedError):
    """A task is silent since the death of a node that another task's NodeDiedError tells of."""


class Tasks:
    """Starts tasks and hears of their ends; neither costs more on a larger cluster."""

    def __init__(
        self, context: Shared[LabelContext], ask: Callable[[Bundles], None] | None = None, wait_s: float = math.inf
    ) -> None:
        """`ask`: tells an autoscaler what is needed. `wait_s`: how long the cluster may have no core."""
        self.context, self.ask = context, ask
        self._ended: SimpleQueue[Ended] = SimpleQueue()
        self._running: dict[Any, tuple[Chunk, float]] = {}
        """The chunk and when its task was started, by what tells its end."""
        self._longest_s, self._deaths, self._patience = 0.0, Deaths(), Patience(wait_s)

    def start(self, chunk: Chunk) -> None:
        """Start the chunk's step on the cluster's cores."""
        cores = cores_of_a_node() if chunk.whole_node else 1
        if chunk.step is Step.PROBE:
            self.hear(chunk, probe.options(name="probe a shard").remote(self.context, chunk.manifests[0], cores))
        elif chunk.step is Step.SINGLY:
            self.hear(
                chunk,
                label_singly.options(name="label one by one").remote(
                    self.context, chunk.shards[0], chunk.manifests[0], chunk.poison
                ),
            )
        else:
            task = _label.options(num_cpus=cores, name="label shards")
            self.hear(chunk, task.remote(self.context, chunk.shards, chunk.manifests, chunk.poison))

    def hear(self, chunk: Chunk, done: Any) -> None:
        """Have `ended` tell when the task behind the reference `done` has ended."""
        self._running[done] = (chunk, time.monotonic())
        done.future().add_done_callback(lambda future: self._end(done, future.exception() or future.result()))

    def _end(self, done: Any, outcome: Any) -> None:
        """Put what a task came to, or raised, where `ended` takes it; only once."""
        chunk, started = self._running.pop(done, (None, 0.0))
        if chunk is not None:
            self._longest_s = max(self._longest_s, time.monotonic() - started)
            error = outcome if isinstance(outcome, BaseException) else None
            self._ended.put((chunk, None if error else outcome, error))

    def ended(self, timeout_s: float) -> list[Ended]:
        """Return the tasks that have ended: as soon as there is one, all that there are; none after the time."""
        try:
            found = [self._ended.get(timeout=timeout_s)]
        except Empty:
            self._look()
            return []
        try:
            while True:
                found.append(self._ended.get_nowait())
        except Empty:
            return found

    def _look(self) -> None:
        """Ask Ray for tasks that have ended and did not say so: called when nothing ends, so that a run cannot hang for it."""
        running = list(self._running)
        ready = ray.wait(running, num_returns=len(running), timeout=0, fetch_local=False)[0] if running else []
        for done in ready:
            self._end(done, _outcome(done))

    def cores(self, wanted: int, gpus: Bundles) -> int:
        """Return the cores that the cluster has now, and tell its autoscaler how many there is work for, and how many GPUs."""
        self._give_up_lost()
        if self.ask:
            self.ask([*gpus, *[({"CPU": 1.0}, wanted)] * (wanted > 0)])
        if wanted:
            self._patience.look()
        return cluster_cores()

    def _give_up_lost(self) -> None:
        """Take tasks for lost that were at work when a node died and should have ended since: commits of a shard are the same."""
        died = self._deaths.last()
        if not self._longest_s or time.monotonic() - died < max(ANSWER_S, 3 * self._longest_s):
            return  # before any task has ended nobody knows how long one takes; Ray itself answers after minutes
        silent = [done for done, (chunk, started) in list(self._running.items()) if started < died and chunk.step is Step.LABEL]
        for number, done in enumerate(silent):
            said = "a node has died and the task is silent"
            kind: Any = SilentError if number else NodeDiedError  # one death is one misfortune
            self._end(done, kind(said))


def _outcome(done: Any) -> Any:
    """Return what a task that has ended came to, or what it raised."""
    try:
        return ray.get(done)
    except Exception as error:  # noqa: BLE001 (handed on)
        return error


def cores_of_a_node() -> int:
    """Return the cores of the largest node: a task that asks for them is alone wherever it runs."""
    return max(1, int(max(by_node("CPU"), default=0)))


@ray.remote(num_cpus=1, max_retries=0)
def _label(context: Shared[LabelContext], shards: list[int], manifests: list[pa.Table], poison: Poison) -> str | None:
    """Label shards and commit them one by one, each while the next is worked on; return this machine's name where it is slow."""
    labeller, run = load_labeller(context), load_context(context)
    tables = labeller(manifests, poison)
    with closing(tables), ThreadPoolExecutor(1, thread_name_prefix="commit") as committer:
        commits = [committer.submit(run.commit, shard, table) for shard, table in zip(shards, tables, strict=True)]
        for commit in commits:
            commit.result()
    return slow_machine(run.settings, has_native_bf16())
