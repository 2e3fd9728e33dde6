"""On a cluster, tasks index the containers of a source and the driver reads the indexes; it indexes those that tasks cannot."""

import logging
import threading

import ray

from fer_pipeline.archive.files import File, Selection
from fer_pipeline.archive.listing import Listing
from fer_pipeline.base.errors import ClusterError
from fer_pipeline.base.storage import reason
from fer_pipeline.engine.machines import Machines, cluster_cores
from fer_pipeline.engine.waiting import wait_for, waiting_for_cores

log = logging.getLogger(__name__)

MOST_AT_ONCE = 256
"""Most containers that are indexed at once; a thread of the driver waits for each."""


class IndexingTasks:
    """Starts tasks, on any machine of the cluster, that write a container's index to the folder `indexes`; thread-safe."""

    def __init__(self, selection: Selection, indexes: str, machines: Machines) -> None:
        self.selection, self.indexes, self.machines = selection, indexes, machines
        self.at_once = min(MOST_AT_ONCE, max(8, 2 * cluster_cores()))
        self._running, self._changed, self._has_cores = 0, threading.Lock(), True

    def __call__(self, file: File, over: threading.Event) -> None:
        """Have a task write the index. If the task fails, there is no index, and the driver makes it or reports why it cannot.

        Once `over` is set, start no task and stop waiting.
        """
        if not self._has_cores or over.is_set():
            return
        self._count(1)
        try:
            task = _index.options(name="index a container").remote(file, self.selection, self.indexes)
            if wait_for(task, waiting_for_cores(self.machines.wait_s), over.is_set):
                ray.get(task)
        except ClusterError:
            self._has_cores = False
        except Exception as error:  # noqa: BLE001 (the driver does not depend on the task)
            log.info("The driver indexes '%s', because a task failed: %s", file.uri, reason(error)[:200])
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        with self._changed:
            self._running += more
            self.machines.need([({"CPU": 1.0}, self._running)] if self._running else [])


@ray.remote(num_cpus=1, max_retries=2)
def _index(file: File, selection: Selection, indexes: str) -> None:
    Listing(file.uri, selection, indexes).index(file)
