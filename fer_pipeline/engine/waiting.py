"""The one rule for waiting on a cluster.

A job waits without limit while the cluster has what it needs, busy or not, and for `--wait-s` while the cluster lacks it. A task
is lost if it ran while a node died and has been silent since for three times the longest task.
"""

import time
from collections.abc import Callable
from typing import Any

import ray

from fer_pipeline.base.errors import ClusterError

POLL_S = 1.0
"""Interval at which a waiting job checks its cluster."""
ANSWER_S = 15.0
"""Minimum time for a task to end after a node has died, before it counts as lost."""
UNKNOWN_TASK_S = 300.0
"""The same while no task has ended yet, so that the longest task is unknown."""


class Waiting:
    """Waits while the cluster lacks something, for at most `wait_s` seconds at a stretch."""

    def __init__(self, wait_s: float, has: Callable[[], bool], what: str) -> None:
        """`has` tells whether the cluster has what is needed; `what` says what it lacks, such as "no core"."""
        self.wait_s, self.has, self.what = wait_s, has, what
        self._seen = time.monotonic()

    def check(self, is_needed: bool = True) -> None:
        """Raise ClusterError if the cluster has lacked it for `wait_s` while it was needed."""
        if not is_needed or self.has():
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > self.wait_s:
            raise ClusterError(
                f"The cluster has had {self.what} for {self.wait_s:g} s: start machines, or wait longer (--wait-s), "
                "then run the same command again to continue."
            )

    def until_it_has(self) -> None:
        """Return once the cluster has it; raise ClusterError as `check` does."""
        while not self.has():
            self.check()
            time.sleep(POLL_S)


def has_cores() -> bool:
    """Tell whether the cluster has a core, busy or not."""
    return bool(ray.cluster_resources().get("CPU", 0) >= 1)


def waiting_for_cores(wait_s: float) -> Waiting:
    """Return the `Waiting` for a core of the cluster."""
    return Waiting(wait_s, has_cores, "no core")


def wait_for(reference: Any, waiting: Waiting, is_unwanted: Callable[[], bool] = lambda: False) -> bool:
    """Wait until a task has ended, and return True; if `is_unwanted` returns True, cancel it and return False.

    Cancel the task and raise ClusterError if the cluster lacks what it needs for too long.
    """
    try:
        while not ray.wait([reference], timeout=POLL_S)[0]:
            if is_unwanted():
                ray.cancel(reference)
                return False
            waiting.check()
    except ClusterError:
        ray.cancel(reference)
        raise
    return True


class Silence:
    """Tells which tasks were lost with a node.

    A disconnected machine reports nothing. Ray declares its node dead within a minute, but fails its tasks much later. If a task
    was only late, and not lost, its work is wasted but harmless: jobs may commit the same result twice.
    """

    def __init__(self) -> None:
        self._alive, self._died, self._longest_s = frozenset[str](), 0.0, 0.0
        self.look()

    def look(self) -> None:
        """Check whether a node has died since the last call."""
        alive = frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])
        if self._alive - alive:
            self._died = time.monotonic()
        self._alive = alive

    def learn(self, took_s: float) -> None:
        """Record how long a finished task took."""
        self._longest_s = max(self._longest_s, took_s)

    def has_lost(self, started: float) -> bool:
        """Tell whether a task that started at `started` (`time.monotonic`), and has not ended, is lost."""
        limit_s = max(ANSWER_S, 3 * self._longest_s) if self._longest_s else UNKNOWN_TASK_S
        return started < self._died and time.monotonic() - self._died >= limit_s
