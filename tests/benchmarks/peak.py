"""Peak memory of this process and its children."""

import threading
from types import TracebackType

import psutil

MEGABYTE = 1024**2


class Peak:
    """A context that samples ten times a second. It measures USS, so memory shared between processes does not count."""

    def __init__(self) -> None:
        self.largest_mb = self.all_mb = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._ended.wait(0.1):
            found = []
            for process in [me, *me.children(recursive=True)]:
                try:
                    found.append(process.memory_full_info().uss / MEGABYTE)
                except psutil.Error:
                    continue
            self.largest_mb, self.all_mb = max(self.largest_mb, *found), max(self.all_mb, sum(found))
