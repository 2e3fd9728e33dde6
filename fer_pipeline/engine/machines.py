"""The cluster that a job is connected to: what it has, and how the job gets more."""

import logging
from collections.abc import Callable
from typing import TypeVar

import ray

from fer_pipeline.base.errors import UserError
from fer_pipeline.engine.demand import Bundles, Demand
from fer_pipeline.engine.private_ray import node_types
from fer_pipeline.engine.waiting import Waiting, wait_for, waiting_for_cores

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


def by_node(resource: str) -> list[float]:
    """Return the total of a resource, such as CPU or GPU, on each node that is alive."""
    return [float(node["Resources"].get(resource, 0)) for node in ray.nodes() if node["Alive"]]


def cluster_cores() -> int:
    """Return the cores that the cluster has now, or 1 if it has none."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


class Machines:
    """The machines of a job. Through this object, every job waits for machines and requests them from an autoscaler."""

    def __init__(self, wait_s: float = float("inf"), demand: Demand | None = None) -> None:
        """`wait_s`: seconds that the cluster may lack what the job needs. `demand`: None if the job runs only on this machine."""
        self.wait_s, self._demand = wait_s, demand

    @property
    def is_local(self) -> bool:
        """Whether all work runs on this machine."""
        return self._demand is None

    def need(self, bundles: Bundles) -> None:
        """Tell the autoscaler what the job needs from now on; an empty list means that it needs no machines."""
        if self._demand:
            self._demand.ask(bundles)

    def on_a_worker(self, function: Callable[[], Answer], tasks: int) -> Answer:
        """Return the result of a function, called on a worker machine, or on this machine if all work runs here.

        Meanwhile request the cores of `tasks`. Raise ClusterError if the cluster has no core for `wait_s`.
        """
        if self.is_local:
            return function()
        self.need([({"CPU": 1.0}, tasks)])
        answer = ray.remote(num_cpus=1)(function).remote()
        wait_for(answer, waiting_for_cores(self.wait_s))
        return ray.get(answer)

    def wait_for_gpus(self, gpus: int, option: str, on_one_node: bool) -> None:
        """Wait until the cluster has `gpus` GPUs, in total or on one node.

        Raise UserError, naming `option`, if the cluster can never have them. Raise ClusterError if they are not there in time.
        """
        total = max if on_one_node else sum

        def has() -> bool:
            return total([0.0, *by_node("GPU")]) >= gpus

        if has():
            return
        could = (
            group.resources.get("GPU", 0) * (1 if on_one_node else group.max_count) for group in node_types() if group.max_count
        )
        if self.is_local or total([0.0, *could]) < gpus:
            where = "any node of the cluster" if on_one_node else "the cluster"
            raise UserError(f"{option} needs {gpus} GPUs, more than {where} has or can start: leave out {option} to use CPUs.")
        log.info("Waiting for %d GPUs, for at most %g s (--wait-s)", gpus, self.wait_s)
        self.need([({"GPU": float(gpus)}, 1)] if on_one_node else [({"GPU": 1.0}, gpus)])
        Waiting(self.wait_s, has, f"fewer than {gpus} GPUs{' on one node' if on_one_node else ''}").until_it_has()
