"""The two idioms of the jobs: an object that all tasks need, and a function applied to many items."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import ray

from fer_pipeline.core.errors import MisfortuneError
from fer_pipeline.core.memory import lift_memory_limit

Value = TypeVar("Value")
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")

LOOK_S, SILENT_S = 2.0, 60.0
"""How often nodes are counted while a task is waited for; how long one may be silent after a death before it is done again."""
TASKS_AHEAD = 4
"""Tasks in work or waiting, for each core of the cluster."""

_loaded: dict[tuple[str, str], Any] = {}
"""What this process has made of shared objects, by the object and the function that made it."""


@dataclass(frozen=True)
class Shared(Generic[Value]):
    """An object in Ray's store that every task of a job needs; it is sent to each node once."""

    reference: "ray.ObjectRef[Value]"

    def get(self) -> Value:
        """Return the object."""
        return ray.get(self.reference)

    def load(self, make: Callable[[Value], Loaded]) -> Loaded:
        """Return what `make` makes of the object, made once in this process; what other objects were made into is dropped."""
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


def by_node(resource: str) -> list[float]:
    """Return how much of a resource, such as CPU or GPU, each living node has in all."""
    return [float(node["Resources"].get(resource, 0)) for node in ray.nodes() if node["Alive"]]


def cluster_cores() -> int:
    """Return the cores that the cluster has now; at least 1."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


class Patience:
    """Waits for a cluster's first core so long, and no longer."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s, self._seen = wait_s, time.monotonic()

    def look(self) -> None:
        """Raise MisfortuneError where the cluster has had no core for `wait_s`."""
        if ray.cluster_resources().get("CPU", 0) >= 1:
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > self.wait_s:
            raise MisfortuneError(f"The cluster has had no core for {self.wait_s:g} s: run the same command again to continue.")


class Deaths:
    """When a node of the cluster was last seen to have died.

    A machine that is cut off says nothing, and Ray waits minutes for the answers of its tasks, though it calls the node dead much
    sooner: so jobs do such tasks again. One that lives, and is late, does its work for nothing.
    """

    def __init__(self) -> None:
        self._alive, self._last = frozenset[str](), 0.0
        self.last()

    def last(self) -> float:
        """Return the time (`time.monotonic`) of the last death that a call has seen; 0: none."""
        alive = frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])
        if self._alive - alive:
            self._last = time.monotonic()
        self._alive = alive
        return self._last


def fan_out(
    function: Callable[..., Result],
    items: Iterable[Any],
    *arguments: Any,
    wait_s: float,
    num_gpus: float = 0.0,
    careful: Callable[..., Result] | None = None,
) -> Iterator[Result]:
    """Yield `function(*arguments, item)` for each item, in order: a task of one core each, a bounded number of them ahead.

    A task whose worker or node dies is run again by Ray, and one that is silent after a node has died, by us: it may run twice at
    once. Where it dies each time, `careful` is run in its place. An exception of the function is raised as it is. Raise
    MisfortuneError where the cluster has had no core for `wait_s`.
    """
    task, deaths = _task(function, num_gpus), Deaths()
    waiting: deque[Any] = deque()
    rest = iter(items)
    while True:
        room = max(0, TASKS_AHEAD * cluster_cores() - len(waiting))  # the cluster may have grown, or shrunk
        waiting += [(item, time.monotonic(), task.remote(*arguments, item)) for item in islice(rest, room)]
        if not waiting:
            return
        item, began, reference = waiting.popleft()
        patience = Patience(wait_s)
        while not ray.wait([reference], timeout=LOOK_S)[0]:
            patience.look()
            died = deaths.last()
            if began < died < time.monotonic() - SILENT_S:
                began, reference = time.monotonic(), task.remote(*arguments, item)
        try:
            yield _result(reference)
        except ray.exceptions.WorkerCrashedError:
            if careful is None:
                raise
            yield _result(_task(careful, num_gpus).remote(*arguments, item))


def _task(function: Callable[..., Any], num_gpus: float) -> Any:
    """Return a function as a task of one core that Ray's pages name in words."""
    name = function.__name__.strip("_").replace("_", " ")
    return ray.remote(num_cpus=1, num_gpus=num_gpus)(function).options(name=name)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
