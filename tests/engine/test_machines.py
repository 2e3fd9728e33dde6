"""Every job waits for machines, and requests them, in the same way."""

from typing import Any

import pytest
import ray

from fer_pipeline.base.errors import ClusterError, UserError
from fer_pipeline.engine import demand, machines
from fer_pipeline.engine.demand import Demand
from fer_pipeline.engine.machines import Machines
from fer_pipeline.engine.waiting import Waiting


class Noted(Demand):
    """Records what a job requests, without an autoscaler."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []

    def ask(self, bundles: demand.Bundles) -> None:
        self.asked.append(bundles)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """Sets the GPUs of each node, and the number and size of nodes that an autoscaler can start."""
    found: dict[str, list[float]] = {"nodes": [], "types": []}
    monkeypatch.setattr(machines, "by_node", lambda resource: found["nodes"])

    class Type:
        def __init__(self, gpus: float) -> None:
            self.resources, self.max_count = {"GPU": gpus}, 2

    monkeypatch.setattr(machines, "node_types", lambda: [Type(gpus) for gpus in found["types"]])
    return found


def test_gpus_that_are_there_are_not_asked_for(gpus: dict[str, list[float]]) -> None:
    gpus["nodes"] = [1.0, 2.0]
    asked = Noted()
    Machines(0, asked).wait_for_gpus(2, "--use-gpu", on_one_node=True)
    Machines(0, asked).wait_for_gpus(3, "--use-gpu", on_one_node=False)
    assert asked.asked == []


@pytest.mark.parametrize(("wanted", "on_one_node"), [(3, True), (5, False)])
def test_gpus_that_no_machine_could_bring_are_refused_at_once(
    wanted: int, on_one_node: bool, gpus: dict[str, list[float]]
) -> None:
    gpus["types"] = [2.0]
    with pytest.raises(UserError, match=rf"--use-gpu needs {wanted} GPUs, more than .* can start"):
        Machines(60, Noted()).wait_for_gpus(wanted, "--use-gpu", on_one_node)
    with pytest.raises(UserError, match="leave out --use-gpu"):
        Machines(60).wait_for_gpus(1, "--use-gpu", on_one_node)  # on this machine none can come


@pytest.mark.parametrize(("on_one_node", "bundles"), [(True, [({"GPU": 2.0}, 1)]), (False, [({"GPU": 1.0}, 2)])])
def test_gpus_that_may_come_are_asked_for_and_waited_for(
    on_one_node: bool, bundles: demand.Bundles, gpus: dict[str, list[float]]
) -> None:
    gpus["types"], asked = [2.0], Noted()
    with pytest.raises(ClusterError, match=r"fewer than 2 GPUs.* for 0 s"):
        Machines(0, asked).wait_for_gpus(2, "--use-gpu", on_one_node)
    assert asked.asked == [bundles]


def _where() -> str:
    return str(ray.get_runtime_context().get_task_name())


def test_a_worker_answers_where_work_is_done_elsewhere_and_this_process_where_it_is_done_here(local_ray: None) -> None:
    asked = Noted()
    assert Machines(60, asked).on_a_worker(_where, 7) == "_where" and asked.asked == [[({"CPU": 1.0}, 7)]]
    assert Machines(60).on_a_worker(lambda: "here", 7) == "here"


def test_what_is_needed_now_and_then_is_missed_only_while_it_is_needed() -> None:
    has, is_there = [True], Waiting(0.0, lambda: has[0], "nothing")
    is_there.check()
    has[0] = False
    is_there.check(is_needed=False)
    with pytest.raises(ClusterError, match=r"has had nothing for 0 s.*--wait-s"):
        is_there.check()


def test_the_ledger_sums_up_what_living_jobs_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[list[dict[str, float]]] = []
    monkeypatch.setattr(demand, "request_resources", lambda bundles: requests.append(bundles))
    monkeypatch.setattr("threading.Thread.start", lambda self: None)
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    ledger = demand._Ledger()
    ledger.ask("one", [({"CPU": 1.0}, 2)])
    ledger.ask("two", [({"GPU": 1.0}, 1)])
    ledger.ask("two", [({"GPU": 1.0}, 1)])  # repeated, and not sent again
    assert requests == [[{"CPU": 1.0}] * 2, [{"CPU": 1.0}] * 2 + [{"GPU": 1.0}]]
    now[0] = demand.FORGET_S + 1  # both are silent since, but for one of them
    ledger.ask("two", [({"GPU": 1.0}, 1)])
    assert requests[-1] == [{"GPU": 1.0}]
    ledger.ask("two", [])
    assert requests[-1] == []
