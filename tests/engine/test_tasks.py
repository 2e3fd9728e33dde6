"""Tasks report their ends, even if no callback comes; and `fan_out` runs a function on many items."""

import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
import ray
from ray.exceptions import NodeDiedError, WorkerCrashedError

from fer_pipeline.base.errors import ClusterError
from fer_pipeline.engine import tasks as module
from fer_pipeline.engine import waiting
from fer_pipeline.engine.machines import Machines
from fer_pipeline.engine.tasks import LostError, Tasks, fan_out

Cluster = Callable[[dict[str, bool]], None]


class Reference:
    """A double of Ray's task reference, with what `Tasks` uses of it."""

    def __init__(self) -> None:
        self.told: Future[None] = Future()

    def future(self) -> "Future[None]":
        return self.told


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Sets the nodes and whether they are alive. Tasks check them at every call, and do not wait."""

    def become(nodes: dict[str, bool]) -> None:
        monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": name, "Alive": alive} for name, alive in nodes.items()])

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "wait", lambda *_, **__: ([], []))
    monkeypatch.setattr(module, "LOOK_S", -1.0)
    monkeypatch.setattr(waiting, "ANSWER_S", 0.0)
    become({"a": True, "b": True})
    return become


def after_one_task() -> "Tasks[str]":
    """Return tasks of which one has ended, so that the longest task is known and very short."""
    tasks = Tasks[str](Machines())
    first = Reference()
    tasks.add("first", first)
    first.told.set_result(None)
    assert [one.item for one in tasks.ended(1.0)] == ["first"] and tasks._silence._longest_s > 0
    tasks._silence._longest_s = 1e-9
    return tasks


def test_one_death_is_one_failure_however_many_tasks_are_silent(cluster: Cluster) -> None:
    tasks = after_one_task()
    for number in range(3):
        tasks.add(str(number), Reference())
    cluster({"a": True, "b": False})
    assert [isinstance(one.error, LostError) for one in tasks.ended(1.0)] == [False, True, True]


def test_before_any_task_has_ended_one_has_longer_to_answer(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = Tasks[str](Machines())
    tasks.add("a", Reference())
    cluster({"a": True, "b": False})
    assert tasks.ended(0.01) == []
    monkeypatch.setattr(waiting, "UNKNOWN_TASK_S", 0.0)
    assert [one.item for one in tasks.ended(1.0)] == ["a"]


def test_a_lost_task_is_told_once_and_its_late_answer_is_not_heard(cluster: Cluster) -> None:
    tasks = after_one_task()
    silent, nested, later = Reference(), Reference(), Reference()
    tasks.add("silent", silent)
    tasks.add("nested", nested, may_be_lost=False)
    cluster({"a": True, "b": False})
    (lost,) = tasks.ended(1.0)
    assert lost.item == "silent" and isinstance(lost.error, NodeDiedError)
    tasks.add("later", later)
    silent.told.set_result(None)
    later.told.set_result(None)
    assert [one.item for one in tasks.ended(1.0)] == ["later"] and len(tasks._running) == 1


def test_no_task_is_lost_while_all_nodes_live_or_the_answer_may_still_come(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = after_one_task()
    tasks.add("a", Reference())
    assert tasks.ended(0.01) == []
    monkeypatch.setattr(waiting, "ANSWER_S", 60.0)
    cluster({"a": True})
    assert tasks.ended(0.01) == [] and len(tasks._running) == 1


def test_a_cluster_that_never_gets_a_core_is_waited_for_so_long_and_no_longer(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = Tasks[str](Machines(wait_s=0.0))
    monkeypatch.setattr(ray, "cluster_resources", dict)
    assert tasks.ended(0.01) == [], "nothing needs a core"
    tasks.add("a", Reference())
    with pytest.raises(ClusterError, match="run the same command again"):
        tasks.ended(0.01)


def _square(number: int) -> int:
    return number * number


def _dies(folder: Path, number: int) -> int:
    if number == 2:
        os._exit(1)
    return number


def _is_careful(folder: Path, number: int) -> int:
    return -number


def _raises(number: int) -> int:
    raise ZeroDivisionError(f"item {number}")


def test_results_come_in_order(local_ray: None) -> None:
    assert list(fan_out(_square, range(30), machines=Machines())) == [number * number for number in range(30)]
    assert list(fan_out(_square, iter(range(3)), machines=Machines())) == [0, 1, 4]
    assert list(fan_out(_square, [], machines=Machines())) == []


def test_an_error_of_the_function_is_raised_as_it_is(local_ray: None) -> None:
    with pytest.raises(ZeroDivisionError, match="item 1"):
        list(fan_out(_raises, [1], machines=Machines()))


def test_an_item_that_kills_its_worker_is_handled_carefully_or_raises(local_ray: None, tmp_path: Path) -> None:
    assert list(fan_out(_dies, range(4), tmp_path, machines=Machines(), careful=_is_careful)) == [0, 1, -2, 3]
    with pytest.raises(WorkerCrashedError):
        list(fan_out(_dies, range(4), tmp_path, machines=Machines()))
    with pytest.raises(WorkerCrashedError):  # careful, and still it dies
        list(fan_out(_dies, range(4), tmp_path, machines=Machines(), careful=_dies))
