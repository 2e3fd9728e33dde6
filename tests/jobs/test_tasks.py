"""How the one place that starts tasks hears of their ends, also of those that nobody tells."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import ray
from ray.exceptions import NodeDiedError

from fer_pipeline.jobs.label import tasks as module
from fer_pipeline.jobs.label.chunk import Chunk, Step
from fer_pipeline.jobs.label.tasks import Tasks

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
    monkeypatch.setattr(module, "ANSWER_S", 0.0)
    return become


def chunk(step: Step = Step.LABEL) -> Chunk:
    return Chunk([0], [], step)


def test_a_task_of_a_machine_that_was_cut_off_is_given_up_and_its_late_answer_not_heard(cluster: Cluster) -> None:
    cluster({"a": True, "b": True})
    tasks: Any = Tasks(None)  # type: ignore[arg-type]
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
    tasks: Any = Tasks(None)  # type: ignore[arg-type]
    tasks.cores(1, [])
    running = Reference()
    tasks.hear(chunk(), running)
    tasks.cores(1, [])
    monkeypatch.setattr(module, "ANSWER_S", 60.0)
    cluster({"a": True})
    tasks.cores(1, [])
    assert len(tasks._running) == 1
