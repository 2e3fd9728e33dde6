"""What jobs ask of an autoscaler: the whole demand at once, summed over all jobs, withdrawn when a job ends or dies.

`request_resources` is of the cluster, and each call replaces the last: so one named actor makes it, for all jobs.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import ray
from ray._private.state import state
from ray.autoscaler.sdk import request_resources

from fer_pipeline.core.errors import UserError
from fer_pipeline.jobs.cluster import ClusterConfig

log = logging.getLogger(__name__)

NAME, NAMESPACE = "demand", "fer-pipeline"
HEAD = "node:__internal_head__"
RENEW_S, FORGET_S = 10.0, 60.0
"""How often a job repeats what it asks for, and after what silence it is taken for dead."""
MOST_BUNDLES = 10_000
"""What is asked for at most: autoscalers have limits of their own."""

Answer = TypeVar("Answer")
Bundles = list[tuple[dict[str, float], int]]
"""Resources, and how many times they are needed."""


class _Demand:
    """Sums up what jobs ask for; ends itself when none asks for anything."""

    def __init__(self) -> None:
        self.jobs: dict[str, tuple[float, Bundles]] = {}
        self.changed = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def ask(self, job: str, bundles: Bundles) -> None:
        """Replace what a job asks for; nothing, where it needs nothing more."""
        with self.changed:
            before = self._total()
            self.jobs[job] = (time.monotonic(), bundles)
            if not bundles:
                del self.jobs[job]
            if self._total() != before:
                request_resources(bundles=self._total())

    def _total(self) -> list[dict[str, float]]:
        found = [resources for _, bundles in self.jobs.values() for resources, count in bundles for _ in range(count)]
        return found[:MOST_BUNDLES]

    def _watch(self) -> None:
        while True:
            time.sleep(RENEW_S)
            for job in [job for job, (asked, _) in list(self.jobs.items()) if time.monotonic() - asked > FORGET_S]:
                self.ask(job, [])
            if not self.jobs:
                os._exit(0)  # an actor keeps its machine


class Asking:
    """What one job asks for."""

    def __init__(self) -> None:
        self.job = ray.get_runtime_context().get_job_id()
        self._asked: Bundles = []
        self._when = 0.0

    def __call__(self, bundles: Bundles) -> None:
        """Ask for so much from now on; to be repeated at least every minute. Costs nothing where nothing has changed."""
        now = time.monotonic()
        if (bundles != self._asked and now - self._when > 1.0) or now - self._when > RENEW_S:
            self._asked, self._when = bundles, now
            with suppress(ray.exceptions.RayError):  # asked again in a moment
                self._actor().ask.remote(self.job, bundles)

    def _actor(self) -> Any:
        options = {"name": NAME, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
        return ray.remote(num_cpus=0, resources={HEAD: 0.001})(_Demand).options(**options).remote()

    def withdraw(self) -> None:
        """Need nothing more."""
        if self._when:
            with suppress(ray.exceptions.RayError):
                ray.get(self._actor().ask.remote(self.job, []), timeout=RENEW_S)


@contextmanager
def asking(cluster: ClusterConfig) -> Iterator[Asking | None]:
    """Yield how a job asks its cluster for machines, until it ends; None on this machine alone."""
    if not cluster.cluster:
        yield None
        return
    asked = Asking()
    try:
        yield asked
    finally:
        asked.withdraw()


def asked_of_a_worker(function: Callable[[], Answer], cluster: ClusterConfig, tasks: int) -> Answer:
    """Return what a function says where the work will be done; on this machine, where that is here.

    `tasks`, one core each, are asked of an autoscaler meanwhile. Raise UserError where no worker comes up in time.
    """
    if not cluster.cluster:
        return function()
    began, answer = time.monotonic(), ray.remote(num_cpus=1)(function).remote()
    with asking(cluster) as ask:
        while not ray.wait([answer], timeout=1.0)[0]:
            if ask:
                ask([({"CPU": 1.0}, tasks)])
            if time.monotonic() - began > cluster.wait_s:
                raise UserError(f"No machine could take a task within {cluster.wait_s:g} s: wait longer (--wait-s).")
    return ray.get(answer)


def wait_for_gpus(gpus: float, cluster: ClusterConfig) -> None:
    """Wait until a node has so many GPUs, at least one; raise UserError where none can be brought, or none came."""
    needed = max(1.0, gpus)
    if _most(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]) >= needed:
        return
    if _most(_gpus_of_node_types()) < needed:
        raise UserError(
            f"--gpus-per-worker {gpus:g} asks for more than any node of the cluster has, or could bring: "
            "leave it out to use CPUs."
        )
    log.info("Waiting for a node with %g GPUs, for at most %g s (--wait-s)", needed, cluster.wait_s)
    began = time.monotonic()
    with asking(cluster) as ask:
        while time.monotonic() - began < cluster.wait_s:
            if ask:
                ask([({"GPU": needed}, 1)])
            if _most(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]) >= needed:
                return
            time.sleep(1)
    raise UserError(f"No node with {needed:g} GPUs came up within {cluster.wait_s:g} s: wait longer (--wait-s), or use CPUs.")


def _most(numbers: Iterator[float]) -> float:
    return max(numbers, default=0)


def _gpus_of_node_types() -> Iterator[float]:
    """Yield the GPUs of a node of each type that the cluster's autoscaler can start, as far as it has said."""
    config = state.get_cluster_config()
    for group in config.node_group_configs if config else ():
        if group.max_count:
            yield group.resources.get("GPU", 0)
