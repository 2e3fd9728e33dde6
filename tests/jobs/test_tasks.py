"""How the one place that starts tasks hears of their ends, also of those that nobody tells."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import ray
from ray.exceptions import NodeDiedError

from fer_pipeline.core.errors import MisfortuneError
from fer_pipeline.jobs.label import tasks as module
from fer_pipeline.jobs.label.chunk import Chunk, Step
from fer_pipeline.jobs.label.tasks import SilentError, Tasks

Cluster = Callable[[dict[str, bool]], None]


class Reference:
    """What Ray gives for a task, as far as it is asked."""

    def __init__(self) -> None:
        self.told: Future[None] = Future()

    def future(self) -> "Future[None]":
        return self.told


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Sets which nodes there are, and whether they live."""

    def become(nodes: dict[str, bool]) -> None:
        monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": name, "Alive": alive} for name, alive in nodes.items()])

    monkeypatch.setattr(module, "cluster_cores", lambda: 2)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(module, "ANSWER_S", 0.0)
    return become


def chunk(step: Step = Step.LABEL) -> Chunk:
    return Chunk([0], [], step)


def after_one_task() -> Any:
    """Return tasks of which one has ended: how long one takes is known, and is next to nothing."""
    tasks: Any = Tasks(None)  # type: ignore[arg-type]
    first = Reference()
    tasks.hear(chunk(), first)
    first.told.set_result(None)
    assert len(tasks.ended(1.0)) == 1 and tasks._longest_s > 0
    tasks._longest_s = 1e-9
    return tasks


def test_before_any_task_has_ended_none_is_taken_for_silent(cluster: Cluster) -> None:
    cluster({"a": True, "b": True})
    tasks: Any = Tasks(None)  # type: ignore[arg-type]
    tasks.hear(chunk(), Reference())
    cluster({"a": True, "b": False})
    tasks.cores(1, [])
    assert len(tasks._running) == 1


def test_one_death_is_one_misfortune_however_many_tasks_are_silent(cluster: Cluster) -> None:
    cluster({"a": True, "b": True})
    tasks = after_one_task()
    tasks.cores(1, [])
    for _ in range(3):
        tasks.hear(chunk(), Reference())
    cluster({"a": True, "b": False})
    tasks.cores(1, [])
    assert [isinstance(error, SilentError) for _, _, error in tasks.ended(1.0)] == [False, True, True]


def test_a_cluster_that_never_gets_a_core_is_waited_for_so_long_and_no_longer(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster({"head": True})
    tasks: Any = Tasks(None, wait_s=0.0)  # type: ignore[arg-type]
    assert tasks.cores(1, []) == 2
    monkeypatch.setattr(ray, "cluster_resources", dict)
    with pytest.raises(MisfortuneError, match="run the same command again"):
        tasks.cores(1, [])


def test_a_task_of_a_machine_that_was_cut_off_is_given_up_and_its_late_answer_not_heard(cluster: Cluster) -> None:
    cluster({"a": True, "b": True})
    tasks = after_one_task()
    assert tasks.cores(1, []) == 2
    silent, classifying = Reference(), Reference()
    tasks.hear(chunk(), silent)
    tasks.hear(chunk(Step.ON_GPU), classifying)
    cluster({"a": True, "b": False})
    tasks.cores(1, [])
    ((given_up, _, error),) = tasks.ended(1.0)
    assert given_up.step is Step.LABEL and isinstance(error, NodeDiedError)
    later = Reference()
    tasks.hear(chunk(), later)
    tasks.cores(1, [])
    silent.told.set_result(None)
    later.told.set_result(None)
    assert [error for _, _, error in tasks.ended(1.0)] == [None], "the late answer is nobody's, and what began later goes on"


def test_nothing_is_given_up_while_all_nodes_live_or_the_answer_may_still_come(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster({"a": True, "b": True})
    tasks = after_one_task()
    tasks.cores(1, [])
    running = Reference()
    tasks.hear(chunk(), running)
    tasks.cores(1, [])
    monkeypatch.setattr(module, "ANSWER_S", 60.0)
    cluster({"a": True})
    tasks.cores(1, [])
    assert len(tasks._running) == 1
