"""A file on a store read as a container's listing reads it: a little here and there, without what lies between."""

import io

from fer_pipeline.core import storage
from fer_pipeline.sources.files import File

JUMP_BYTES, ONWARD_BYTES = 4096, 4 * 1024**2
"""What one request reads at a place far from the last one, and what it reads onwards."""
NEAR_BYTES = 256 * 1024
"""A gap up to which reading onwards costs less than another request."""


class SparseFile(io.RawIOBase):
    """A seekable file of which only what is asked for is read, and some bytes behind it; raises ChangedError as `storage` does.

    Headers that are far apart cost a small request each, those that are close are read many at a time.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self._place = self._start = 0
        self._window = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.file.size_bytes}[whence]
        self._place = max(0, begin + offset)
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.file.size_bytes - self._place)
        wanted = left if size is None or size < 0 else min(size, left)
        if not self._start <= self._place <= self._place + wanted <= self._start + len(self._window):
            end = self._start + len(self._window)
            onward = 0 <= self._place - end <= NEAR_BYTES and end > 0
            self._window = storage.read_range(
                self.file.uri, self._place, max(wanted, min(left, ONWARD_BYTES if onward else JUMP_BYTES)), self.file.etag
            )
            self._start = self._place
        start = self._place - self._start
        found = self._window[start : start + wanted]
        self._place += len(found)
        return found

    def readall(self) -> bytes:
        return self.read()


def open_sparsely(file: File) -> io.RawIOBase | io.BufferedReader:
    """Open a file for listing what it holds."""
    if not storage.is_local(file.uri):
        return SparseFile(file)
    fs, path = storage.open_filesystem(file.uri)
    opened: io.BufferedReader = fs.open(path, "rb")
    return opened
