"""The pool of GPU actors, with doubles of them: who gets which shard, and what follows when one is lost."""

from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError

from fer_pipeline.base.errors import ClusterError
from fer_pipeline.engine.machines import Machines
from fer_pipeline.jobs.label import pool as module
from fer_pipeline.jobs.label.chunk import Chunk, Step
from fer_pipeline.jobs.label.pool import SHARDS_PER_ACTOR, GpuPool, count_actors


class Actor:
    """A GPU actor that has started, or never will."""

    def __init__(self, starts: bool = True) -> None:
        self.starts = starts
        self.device_name, self.label = self, self

    def remote(self, *shard: Any) -> Any:
        return (self, *shard)


class Given:
    """The tasks that a pool gives out."""

    def __init__(self, wait_s: float = 60.0) -> None:
        self.machines, self.given = Machines(wait_s), list[tuple[Actor, int]]()

    def add(self, chunk: Chunk, reference: Any, needs_core: bool, may_be_lost: bool) -> None:
        assert not needs_core and not may_be_lost
        self.given.append((reference[0], chunk.shards[0]))


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The GPUs of each node, and whether actors start on them."""
    state: dict[str, Any] = {"nodes": [1.0], "starts": True, "killed": []}

    class Actors:
        @staticmethod
        def options(**_: Any) -> Any:
            return Actors

        @staticmethod
        def remote(*_: Any) -> Actor:
            return Actor(state["starts"])

    def answer(asked: tuple[Actor]) -> str:
        if not asked[0].starts:
            raise ActorDiedError
        return "cuda"

    monkeypatch.setattr(module, "by_node", lambda resource: state["nodes"])
    monkeypatch.setattr(module, "GpuLabelActor", Actors)
    monkeypatch.setattr(ray, "wait", lambda asked, **_: (list(asked), []))
    monkeypatch.setattr(ray, "get", answer)
    monkeypatch.setattr(ray, "kill", state["killed"].append)
    return state


def pool_of(tasks: Given, **options: Any) -> GpuPool:
    settings = {"gpus_per_worker": 1.0, "num_gpus": None} | options
    return GpuPool(None, tasks, **settings)  # type: ignore[arg-type]


def chunk(shard: int) -> Chunk:
    return Chunk([shard], [None], Step.ON_GPU)


@pytest.mark.parametrize(
    ("nodes", "per_worker", "actors"), [([1, 2], 1, 3), ([1, 2], 2, 1), ([3], 2, 1), ([1, 2], 0.5, 6), ([], 1, 0)]
)
def test_actors_fit_on_nodes_and_shares_within_gpus(
    nodes: list[float], per_worker: float, actors: int, gpus: dict[str, Any]
) -> None:
    gpus["nodes"] = nodes
    assert count_actors(per_worker) == actors


def test_an_actor_has_a_few_shards_and_gets_the_next_when_one_is_done(gpus: dict[str, Any]) -> None:
    tasks = Given()
    pool = pool_of(tasks)
    chunks = [chunk(shard) for shard in range(SHARDS_PER_ACTOR + 1)]
    for one in chunks:
        pool.label(one)
    assert [shard for _, shard in tasks.given] == list(range(SHARDS_PER_ACTOR)) and pool.has_room
    pool.free(chunks[0])
    assert [shard for _, shard in tasks.given][-1] == SHARDS_PER_ACTOR


def test_a_gpu_that_joins_gets_an_actor_and_no_more_than_the_most(gpus: dict[str, Any]) -> None:
    pool = pool_of(Given(), num_gpus=2)
    assert pool.actors == 1 and pool.wanted() == [({"GPU": 1.0}, 2)]
    gpus["nodes"] = [1.0] * 4
    pool.grow()
    assert pool.actors == 2


def test_a_lost_actor_gets_nothing_more_and_is_ended(gpus: dict[str, Any]) -> None:
    tasks = Given()
    pool = pool_of(tasks)
    first, second = chunk(0), chunk(1)
    pool.label(first)
    pool.free(first, lost=True)
    pool.label(second)
    assert pool.actors == 0 and len(gpus["killed"]) == 1 and [shard for _, shard in tasks.given] == [0]
    pool.grow()  # its GPU is free again
    assert pool.actors == 1 and [shard for _, shard in tasks.given] == [0, 1]


def test_gpus_that_never_come_end_the_run(gpus: dict[str, Any]) -> None:
    gpus["starts"] = False
    with pytest.raises(ClusterError, match="No GPU worker starts"):
        pool = pool_of(Given())
        for _ in range(10):
            pool.grow()
    gpus["nodes"] = []
    held = pool_of(Given(wait_s=0.0))
    held.grow()
    held.label(chunk(0))
    with pytest.raises(ClusterError, match="no GPU for a worker, which other jobs may hold, for 0 s"):
        held.grow()
