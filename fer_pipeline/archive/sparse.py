"""Reads only the parts of a file on a store that the listing of a container needs."""

import io

from fer_pipeline.archive.files import File
from fer_pipeline.base import storage
from fer_pipeline.base.read_only import ReadOnly

SEEK_READ_BYTES = 4096
"""Size of a request far from the last one: one header."""
SEQUENTIAL_READ_BYTES = 4 * 1024**2
"""Size of a request that continues the last one, or starts at most `MAX_GAP_BYTES` after it."""
MAX_GAP_BYTES = 256 * 1024


class SparseFile(ReadOnly):
    """A seekable file that reads only what is requested and some bytes after it. Raises ChangedError as `storage` does.

    Headers that are far apart cost a small request each. One request reads many headers that are close together.
    """

    def __init__(self, file: File) -> None:
        super().__init__(file.size_bytes)
        self.file = file
        self._start, self._window = 0, b""

    def read(self, size: int | None = -1) -> bytes:
        wanted = self._wanted(size)
        if not self._start <= self._position <= self._position + wanted <= self._start + len(self._window):
            end = self._start + len(self._window)
            is_sequential = 0 <= self._position - end <= MAX_GAP_BYTES and end > 0
            ahead = min(self._wanted(-1), SEQUENTIAL_READ_BYTES if is_sequential else SEEK_READ_BYTES)
            self._window = storage.read_range(self.file.uri, self._position, max(wanted, ahead), self.file.etag)
            self._start = self._position
        start = self._position - self._start
        found = self._window[start : start + wanted]
        self._position += len(found)
        return found


def open_sparsely(file: File) -> io.RawIOBase | io.BufferedReader:
    """Open a file to list its members."""
    if not storage.is_local(file.uri):
        return SparseFile(file)
    fs, path = storage.open_filesystem(file.uri)
    opened: io.BufferedReader = fs.open(path, "rb")
    return opened
