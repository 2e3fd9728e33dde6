"""Containers of a large source are indexed by tasks, and the driver reads the indexes; what a task cannot, the driver does."""

import logging
import threading
import time

import ray

from fer_pipeline.core.storage import reason
from fer_pipeline.jobs.demand import Asking
from fer_pipeline.jobs.shared import cluster_cores
from fer_pipeline.sources.files import File, Selection
from fer_pipeline.sources.listing import Listing

log = logging.getLogger(__name__)

MOST_AT_ONCE = 256
"""Containers in work, each with a thread of the driver that waits for it."""


LOOK_S = 1.0
"""How often it is looked whether an index is still wanted."""


class IndexingTasks:
    """Calls that put a container's index into the folder `indexes`, from any machine of the cluster; safe in many threads."""

    def __init__(self, selection: Selection, indexes: str, ask: Asking, wait_s: float) -> None:
        self.selection, self.indexes, self.ask, self.wait_s = selection, indexes, ask, wait_s
        self.at_once = min(MOST_AT_ONCE, max(8, 2 * cluster_cores()))
        self._running, self._changed, self._hopeless = 0, threading.Lock(), False

    def __call__(self, file: File, over: threading.Event) -> None:
        """Have the index made; where that fails there is none, and the driver lists the container, or finds out why it cannot.

        Nothing is begun or waited for any more once `over` is set.
        """
        if self._hopeless or over.is_set():
            return
        self._count(1)
        try:
            done = _index.options(name="read an index").remote(file, self.selection, self.indexes)
            if self._is_done(done, over):
                ray.get(done)
        except Exception as error:  # noqa: BLE001 (whatever befalls a task, the driver can do without it)
            log.info("%s is listed by the driver: %s", file.uri, reason(error)[:200])
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        with self._changed:
            self._running += more
            self.ask([({"CPU": 1.0}, self._running)] if self._running else [])

    def _is_done(self, done: "ray.ObjectRef[None]", over: threading.Event) -> bool:
        """Wait for a task; for ever where the cluster has cores that are busy, `wait_s` where it has none."""
        started = time.monotonic()
        while not ray.wait([done], timeout=LOOK_S)[0]:
            if over.is_set():
                ray.cancel(done)
                return False
            if ray.cluster_resources().get("CPU", 0) >= 1:
                continue
            if time.monotonic() - started > self.wait_s:
                ray.cancel(done)
                self._hopeless = True
                return False
        return True


@ray.remote(num_cpus=1, max_retries=2)
def _index(file: File, selection: Selection, indexes: str) -> None:
    Listing(file.uri, selection, indexes).index(file)
