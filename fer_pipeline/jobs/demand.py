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
from uuid import uuid4

import ray
from ray.autoscaler.sdk import request_resources

from fer_pipeline.core.errors import UserError
from fer_pipeline.jobs.cluster import ClusterConfig, node_types
from fer_pipeline.jobs.shared import by_node

log = logging.getLogger(__name__)

NAME, NAMESPACE = "demand", "fer-pipeline"
HEAD = "node:__internal_head__"
CHANGE_S, RENEW_S, FORGET_S = 1.0, 10.0, 60.0
"""How often a job sends what has changed, how often it repeats itself, and after what silence it is taken for dead."""
MOST_BUNDLES = 10_000
"""Of a kind that a job asks for at most: autoscalers have limits of their own."""

Answer = TypeVar("Answer")
Bundles = list[tuple[dict[str, float], int]]
"""Resources, and how many times they are needed."""


class _Demand:
    """Sums up what jobs ask for; ends itself when none asks for anything."""

    def __init__(self) -> None:
        self.jobs: dict[str, tuple[float, Bundles]] = {}
        self.asked: list[dict[str, float]] | None = None
        """What was asked for last; None: nobody knows, for this actor may follow one that died."""
        self.changed = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def ask(self, job: str, bundles: Bundles) -> None:
        """Replace what a job asks for; nothing, where it needs nothing more."""
        with self.changed:
            self.jobs[job] = (time.monotonic(), bundles)
            self._request()

    def _request(self) -> None:
        """Forget the jobs that are silent or need nothing, and ask for what the others need."""
        now = time.monotonic()
        self.jobs = {job: found for job, found in self.jobs.items() if found[1] and now - found[0] <= FORGET_S}
        total = [resources for _, bundles in self.jobs.values() for resources, count in bundles for _ in range(count)]
        if total != self.asked:
            request_resources(bundles=total)
            self.asked = total

    def _watch(self) -> None:
        while True:
            time.sleep(RENEW_S)
            with self.changed, suppress(Exception):  # tried again soon
                self._request()
                if not self.jobs:
                    os._exit(0)  # an actor keeps its machine


class Asking:
    """What one job asks for, until it ends. A thread repeats it: a job that has died is silent."""

    def __init__(self) -> None:
        self.job = uuid4().hex
        self._bundles: Bundles = []
        self._sent: Bundles = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)

    def __call__(self, bundles: Bundles) -> None:
        """Ask for so much from now on."""
        self._bundles = [(resources, min(count, MOST_BUNDLES)) for resources, count in bundles]
        if not self._thread.is_alive():
            self._send()
            self._thread.start()

    def _repeat(self) -> None:
        silent_s = 0.0
        while not self._ended.wait(CHANGE_S):
            silent_s += CHANGE_S
            if self._bundles != self._sent or silent_s >= RENEW_S:
                self._send()
                silent_s = 0.0

    def _send(self) -> None:
        self._sent = self._bundles
        with suppress(ray.exceptions.RayError):  # sent again soon
            self._actor().ask.remote(self.job, self._sent)

    def _actor(self) -> Any:
        options = {"name": NAME, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
        return ray.remote(num_cpus=0, resources={HEAD: 0.001})(_Demand).options(**options).remote()

    def withdraw(self) -> None:
        """Need nothing more."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(RENEW_S)
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


def asked_of_a_worker(function: Callable[[], Answer], ask: Asking | None, tasks: int, wait_s: float) -> Answer:
    """Return what a function says where the work will be done; on this machine, where that is here.

    `tasks`, one core each, are asked of an autoscaler meanwhile. Raise UserError where no worker comes up in time.
    """
    if ask is None:
        return function()
    ask([({"CPU": 1.0}, tasks)])
    answer = ray.remote(num_cpus=1)(function).remote()
    if not ray.wait([answer], timeout=wait_s)[0]:
        raise UserError(f"No machine could take a task within {wait_s:g} s: wait longer (--wait-s).")
    return ray.get(answer)


def wait_for_gpus(gpus: float, ask: Asking | None, wait_s: float) -> None:
    """Wait until a node has so many GPUs, at least one; raise UserError where none can be brought, or none came."""
    needed = max(1.0, gpus)
    if max(by_node("GPU"), default=0) >= needed:
        return
    if ask is None or max((group.resources.get("GPU", 0) for group in node_types() if group.max_count), default=0) < needed:
        raise UserError(
            f"--gpus-per-worker {gpus:g} asks for more than any node of the cluster has, or could bring: "
            "leave it out to use CPUs."
        )
    log.info("Waiting for a node with %g GPUs, for at most %g s (--wait-s)", needed, wait_s)
    ask([({"GPU": needed}, 1)])
    began = time.monotonic()
    while max(by_node("GPU"), default=0) < needed:
        if time.monotonic() - began > wait_s:
            raise UserError(f"No node with {needed:g} GPUs came up within {wait_s:g} s: wait longer (--wait-s), or use CPUs.")
        time.sleep(1)
