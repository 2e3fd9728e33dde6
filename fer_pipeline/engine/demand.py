"""What jobs request from an autoscaler: the sum of what all jobs need; a job's request ends when it ends or dies.

`request_resources` holds for the whole cluster, and each call replaces the last, so one named actor calls it for all jobs. An
autoscaler also serves pending tasks by itself. But jobs keep few tasks pending, so that running and waiting tasks can be told
apart when a node dies; from these alone a cluster would only triple with each round of new machines.
"""

import os
import threading
import time
from contextlib import suppress
from typing import Any
from uuid import uuid4

import ray
from ray.autoscaler.sdk import request_resources

CHANGE_S = 1.0
"""Interval at which a job sends changes."""
RENEW_S = 10.0
"""Interval at which a job repeats its request."""
FORGET_S = 60.0
"""Silence after which a job counts as dead."""
MOST_BUNDLES = 10_000
"""Most bundles of a kind that a job requests; autoscalers have limits of their own."""

Bundles = list[tuple[dict[str, float], int]]
"""Resources of one bundle, and the number of such bundles."""


class _Ledger:
    """The actor that sums up the requests of jobs; it exits when no job requests anything."""

    def __init__(self) -> None:
        self.jobs: dict[str, tuple[float, Bundles]] = {}
        self.asked: list[dict[str, float]] | None = None
        """The last request; None at first, because this actor may replace one that died."""
        self.changed = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def ask(self, job: str, bundles: Bundles) -> None:
        """Replace a job's request; an empty list withdraws it."""
        with self.changed:
            self.jobs[job] = (time.monotonic(), bundles)
            self._request()

    def _request(self) -> None:
        """Remove jobs that are silent or need nothing, and request what the others need."""
        now = time.monotonic()
        self.jobs = {job: found for job, found in self.jobs.items() if found[1] and now - found[0] <= FORGET_S}
        total = [resources for _, bundles in self.jobs.values() for resources, count in bundles for _ in range(count)]
        if total != self.asked:
            request_resources(bundles=total)
            self.asked = total

    def _watch(self) -> None:
        while True:
            time.sleep(RENEW_S)
            with self.changed, suppress(Exception):  # the next round retries
                self._request()
                if not self.jobs:
                    os._exit(0)  # an idle actor would keep its machine from being released


class Demand:
    """The request of one job, until it ends. A thread repeats it, because the ledger removes silent jobs."""

    def __init__(self) -> None:
        self.job = uuid4().hex
        self._bundles: Bundles = []
        self._sent: Bundles = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)

    def ask(self, bundles: Bundles) -> None:
        """Request these bundles from now on."""
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
        with suppress(ray.exceptions.RayError):  # the thread sends it again
            self._ledger().ask.remote(self.job, self._sent)

    def _ledger(self) -> Any:
        options = {"name": "demand", "namespace": "fer-pipeline", "lifetime": "detached", "get_if_exists": True}
        on_the_head = {"node:__internal_head__": 0.001}
        return ray.remote(num_cpus=0, resources=on_the_head)(_Ledger).options(**options).remote()

    def withdraw(self) -> None:
        """Withdraw the request and stop repeating it."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(RENEW_S)
            with suppress(ray.exceptions.RayError):
                ray.get(self._ledger().ask.remote(self.job, []), timeout=RENEW_S)
