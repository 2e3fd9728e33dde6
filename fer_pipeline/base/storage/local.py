"""Operations on local disks: atomic writes, exclusive creation, comparison of modification times."""

import errno
import os
import time
import uuid
from pathlib import Path

NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
"""Errors of file systems without hard links: FUSE mounts of stores, FAT."""
RESERVED_S = 2.0
"""After this time an empty file, which reserves a name where there are no hard links, counts as abandoned."""


def write_temporary(path: str, data: bytes) -> str:
    """Write `data` to a new hidden file beside `path`, which readers of the folder ignore, and return its name."""
    folder, name = os.path.split(path)
    Path(folder).mkdir(parents=True, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        with Path(temporary).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power loss may leave an empty file of that name
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return temporary


def create_without_links(temporary: str, path: str) -> bool:
    """Reserve `path` by an empty file, then replace that by `temporary`. Return False if another writer was faster.

    An empty file that stays empty for `RESERVED_S` was left by a dead writer and is replaced.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        deadline = time.monotonic() + RESERVED_S
        while not os.stat(path).st_size and time.monotonic() < deadline:
            time.sleep(0.05)
        if os.stat(path).st_size:
            return False
    os.replace(temporary, path)
    return True


def same_time(mtime_ns: int, etag: str) -> bool:
    """Return whether a file's mtime is the listed one. Two mounts may report it with different resolutions."""
    listed_ns = int(etag) if etag.isdecimal() else -1
    step = next((step for step in (10**9, 10**6, 10**3, 100) if mtime_ns % step == 0 or listed_ns % step == 0), 1)
    return mtime_ns // step == listed_ns // step
