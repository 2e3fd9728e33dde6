"""Temporary folders that do not pile up: a folder whose process was killed is removed by the next process that makes one."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG

LOCK = "lock"
"""Name of the file in each folder that its process keeps locked."""
SETTLED_S = 60
"""Age from which a folder whose lock is free counts as left: its process may not have locked it yet."""


@contextmanager
def temporary_folder(place: Path, prefix: str) -> Iterator[Path]:
    """Yield a new folder in `place` that only this user can read, and remove it afterwards.

    Before, remove the folders with this prefix that killed processes of this user left there.
    """
    for left in place.glob(f"{prefix}*"):
        with suppress(OSError):
            _remove_if_left(left)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_if_left(folder: Path) -> None:
    """Remove a folder whose process was killed. Leave any other folder alone (return or raise OSError).

    Other users may put anything into a shared folder: their folders are not opened, and a named pipe in place of the lock file
    cannot make us wait.
    """
    if (about := folder.lstat()).st_uid != os.getuid() or not S_ISDIR(about.st_mode):
        return
    lock = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        about = os.fstat(lock)
        if S_ISREG(about.st_mode) and about.st_uid == os.getuid() and time.time() - about.st_mtime > SETTLED_S:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if the owner is alive, even in another container
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
