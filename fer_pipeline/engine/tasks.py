"""Ray tasks: objects that they share, tasks whose ends are reported, and a function that runs on many items."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import NodeDiedError

from fer_pipeline.base.memory import lift_memory_limit
from fer_pipeline.engine.failures import Failure, cause_of, failure_of
from fer_pipeline.engine.machines import Machines, cluster_cores
from fer_pipeline.engine.waiting import Silence, waiting_for_cores

Value = TypeVar("Value")
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")
Item = TypeVar("Item")

LOOK_S = 2.0
"""Interval at which a job checks its cluster while its tasks run."""
MOST_LOSSES = 5
"""Nodes that may die with an item before its error is raised."""
TASKS_PER_CORE = 4
"""Tasks of `fan_out` that run or wait, for each core of the cluster."""

_loaded: dict[tuple[str, str], Any] = {}
"""What this process has loaded from shared objects, by the object and the function that loaded it."""


@dataclass(frozen=True)
class Shared(Generic[Value]):
    """An object in Ray's store that all tasks of a job need; Ray sends it to each node once."""

    reference: "ray.ObjectRef[Value]"

    def get(self) -> Value:
        """Return the object."""
        return ray.get(self.reference)

    def load(self, make: Callable[[Value], Loaded]) -> Loaded:
        """Return `make(object)`, which is called once per process; results for other objects are dropped."""
        key = self.reference.hex(), make.__qualname__
        if key not in _loaded:
            for other in [other for other in _loaded if other[0] != key[0]]:
                del _loaded[other]
            lift_memory_limit()
            _loaded[key] = make(self.get())
        return _loaded[key]  # type: ignore[no-any-return]


def share(value: Value) -> Shared[Value]:
    """Put an object into Ray's store for all tasks."""
    return Shared(ray.put(value))


class LostError(NodeDiedError):
    """A task has been silent since a node died."""


@dataclass(frozen=True)
class Ended(Generic[Item]):
    """A task that has ended: its item, and its result or its error."""

    item: Item
    result: Any = None
    error: BaseException | None = None


@dataclass(frozen=True)
class _Running(Generic[Item]):
    """A task that has not ended."""

    item: Item
    started: float
    needs_core: bool
    may_be_lost: bool


class Tasks(Generic[Item]):
    """Running tasks, each with its item. Reports the end of each task, whatever happens to its machine."""

    def __init__(self, machines: Machines) -> None:
        self.machines = machines
        self._ended: SimpleQueue[Ended[Item]] = SimpleQueue()
        self._running: dict[Any, _Running[Item]] = {}
        """By the reference of a task."""
        self._silence, self._waiting, self._looked = Silence(), waiting_for_cores(machines.wait_s), time.monotonic()

    def add(self, item: Item, reference: Any, needs_core: bool = True, may_be_lost: bool = True) -> None:
        """Have `ended` report the end of a task.

        `needs_core`: the task, or one that it starts, waits for a core. `may_be_lost`: it counts as lost if it is silent for too
        long after a node has died.
        """
        self._running[reference] = _Running(item, time.monotonic(), needs_core, may_be_lost)
        reference.future().add_done_callback(lambda future: self._end(reference, future.exception() or future.result()))

    def _end(self, reference: Any, outcome: Any) -> None:
        """Pass a task's result, or its error, to `ended`, once."""
        running = self._running.pop(reference, None)
        if running:
            self._silence.learn(time.monotonic() - running.started)
            is_error = isinstance(outcome, BaseException)
            self._ended.put(Ended(running.item, error=outcome) if is_error else Ended(running.item, outcome))

    def ended(self, timeout_s: float) -> list[Ended[Item]]:
        """Return the tasks that have ended since the last call; wait up to `timeout_s` for the first.

        Raise ClusterError if tasks wait for a core and the cluster has had none for too long.
        """
        if time.monotonic() - self._looked > LOOK_S:
            self._look()
        try:
            found = [self._ended.get(timeout=timeout_s)]
        except Empty:
            self._find_unreported()
            return []
        while not self._ended.empty():
            found.append(self._ended.get_nowait())
        return found

    def _look(self) -> None:
        """Check whether the cluster has cores, and which tasks are lost."""
        self._looked = time.monotonic()
        running = list(self._running.items())
        self._waiting.check(any(one.needs_core for _, one in running))
        self._silence.look()
        lost = [reference for reference, one in running if one.may_be_lost and self._silence.has_lost(one.started)]
        for number, reference in enumerate(lost):
            kind: Any = LostError if number else NodeDiedError  # the death of one node counts as one failure
            self._end(reference, kind("a node has died and the task is silent"))

    def _find_unreported(self) -> None:
        """Ask Ray for tasks that ended without a callback; called when no task ends, so that a job cannot hang."""
        running = list(self._running)
        ready = ray.wait(running, num_returns=len(running), timeout=0, fetch_local=False)[0] if running else []
        for reference in ready:
            self._end(reference, _outcome(reference))


def _outcome(reference: Any) -> Any:
    """Return the result, or the error, of a task that has ended."""
    try:
        return ray.get(reference)
    except Exception as error:  # noqa: BLE001 (the caller handles it)
        return error


def fan_out(
    function: Callable[..., Result],
    items: Iterable[Any],
    *arguments: Any,
    machines: Machines,
    num_gpus: float = 0.0,
    careful: Callable[..., Result] | None = None,
) -> Iterator[Result]:
    """Yield `function(*arguments, item)` for each item, in order. Each call is a task of one core; a bounded number run ahead.

    Ray retries a task whose worker or node dies. A lost task is retried, too, so it may run twice at once. If the worker dies
    each time, `careful` runs instead. Raise the function's own error; ClusterError if the cluster has had no core for too long.
    """
    task, rest = _task(function, num_gpus), enumerate(items)
    tasks, results, losses = Tasks[tuple[int, Any, bool]](machines), dict[int, Result](), Counter[int]()
    total = len(items) if isinstance(items, Sized) else 0
    begun = ended_well = given = 0
    resources = {"CPU": 1.0} | ({"GPU": num_gpus} if num_gpus else {})
    try:
        while True:
            needed = max(total, begun) - ended_well
            machines.need([(resources, needed)] if needed else [])
            room = max(0, TASKS_PER_CORE * cluster_cores() - (begun - given))  # the cluster grows and shrinks
            for index, item in islice(rest, room):
                tasks.add((index, item, False), task.remote(*arguments, item))
                begun += 1
            while given in results:
                yield results.pop(given)
                given += 1
            if given == begun:
                if room:
                    return
                continue
            for ended in tasks.ended(LOOK_S):
                index, item, was_careful = ended.item
                losses[index] += isinstance(ended.error, NodeDiedError) and not isinstance(ended.error, LostError)
                if ended.error is None:
                    results[index] = ended.result
                    ended_well += 1
                elif isinstance(ended.error, NodeDiedError) and losses[index] <= MOST_LOSSES:
                    tasks.add((index, item, was_careful), task.remote(*arguments, item))
                elif failure_of(ended.error) is not Failure.BUG and careful and not was_careful:
                    tasks.add((index, item, True), _task(careful, num_gpus).remote(*arguments, item))
                else:
                    raise cause_of(ended.error) from ended.error
    finally:
        machines.need([])


def _task(function: Callable[..., Any], num_gpus: float) -> Any:
    """Return a function as a task of one core, with a readable name for Ray's dashboard."""
    name = function.__name__.strip("_").replace("_", " ")
    return ray.remote(num_cpus=1, num_gpus=num_gpus)(function).options(name=name)
