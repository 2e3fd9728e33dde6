"""A file that is only read, for what reads it by other means than the system."""

import io


class ReadOnly(io.RawIOBase):
    """A seekable file of a known size that is only read, by `read`."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes, self._position = size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size_bytes}[whence]
        self._position = max(0, begin + offset)
        return self._position

    def readall(self) -> bytes:
        found: bytes = self.read()
        return found

    def _wanted(self, size: int | None) -> int:
        """Return how many bytes to read for a `size` that was asked for."""
        left = max(0, self.size_bytes - self._position)
        return left if size is None or size < 0 else min(size, left)
