"""Unpacked copies of compressed tars and members, in temporary files without a name.

The system frees such a file when the last process that has it open ends, in whatever way. Processes of one user on one machine
share the copy of a tar: each open file of a process can be opened again through `/proc`.
"""

import fcntl
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fer_pipeline.archive.files import CONTAINER_ERRORS
from fer_pipeline.base import storage
from fer_pipeline.base.errors import RecordError
from fer_pipeline.base.isolated import sign_of_life

LIMIT_BYTES = 256 * 1024**2
"""At most this much of a compressed file is unpacked, or `LIMIT_RATIO` times its size if that is more."""
LIMIT_RATIO = 200
KEPT_FREE_SHARE, KEPT_FREE_BYTES = 0.05, 2 * 1024**3
"""Space that stays free on the disk of the temporary folder: the smaller of a share of the disk and a number of bytes."""
COPIES_KEPT = 4
"""Number of shared copies that a process keeps open."""
STUCK_S = 600.0
"""Time after which a process that unpacks nothing is not waited for any more."""
PIECE_BYTES = 1024**2
ZEROS = bytes(PIECE_BYTES)
LOOK_S = 0.2
"""How often a process that waits for another one's copy looks whether it is done."""
FORGOTTEN_S = 24 * 3600
"""Age from which the file that says who has a copy is removed. At worst a copy is made twice."""


class NoRoomError(RecordError):
    """The temporary folder has no room for an unpacked copy."""


_lock = threading.Lock()
_kept: dict[str, IO[bytes]] = {}
"""The last copies that this process opened, by their keys. They stay open, for the next tasks of this machine."""


def limit_of(packed_bytes: int) -> int:
    """Return how much of a compressed file of this size is unpacked at most."""
    return max(LIMIT_BYTES, LIMIT_RATIO * packed_bytes)


def write_copy(pieces: Iterable[bytes], most_bytes: int, beat: Callable[[], None] = lambda: None) -> IO[bytes]:
    """Return a temporary file without a name that has these pieces, up to `most_bytes`. Zeros take no place on the disk.

    `beat` is called after each piece. Raise NoRoomError if the disk is full, and what `pieces` raises.
    """
    file, size = tempfile.TemporaryFile(), 0
    try:
        for piece in pieces:
            _require_space(file.fileno())
            piece = piece[: most_bytes - size]
            if piece == ZEROS[: len(piece)]:
                file.seek(len(piece), os.SEEK_CUR)
            else:
                file.write(piece)
            size += len(piece)
            sign_of_life()
            beat()
            if size >= most_bytes:
                break
        file.truncate(size)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def up_to_damage(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the pieces of a compressed stream before the first damaged one. Raise what its storage raises."""
    try:
        yield from pieces
    except CONTAINER_ERRORS:
        return  # what lies behind the damage fails by itself when it is read
    except OSError as error:
        if storage.says_changed(error) or not storage.says_damage(error):
            raise


def _require_space(descriptor: int) -> None:
    """Raise NoRoomError if too little of a file's disk is free."""
    disk = os.fstatvfs(descriptor)
    free = disk.f_bavail * disk.f_frsize
    if free < min(KEPT_FREE_BYTES, KEPT_FREE_SHARE * disk.f_blocks * disk.f_frsize):
        what = f"no room to unpack it: '{tempfile.gettempdir()}' has {free / 1e9:.1f} GB left, which stay free"
        raise NoRoomError("unreadable", f"{what}. Set TMPDIR to a larger disk, or unpack the file")


def shared_copy(key: str, make: Callable[[Callable[[], None]], IO[bytes]]) -> IO[bytes]:
    """Return the copy of a file, open at its own position: that of another process of this machine, or else the one that `make`
    returns. `make` gets a function to call after each piece. Raise what it raises.

    Of the processes that want the same copy one makes it, and the others wait.
    """
    if not Path("/proc/self/fd").exists():
        return make(lambda: None)
    with _lock:
        if key not in _kept:
            with _owners(key) as owners:
                file = _of_another(owners) or _made(lambda: make(lambda: os.utime(owners.fileno())))
                about = os.fstat(file.fileno())
                owners.seek(0, os.SEEK_END)
                owners.write(f"{os.getpid()} {file.fileno()} {_identity(about)}\n".encode())
                _kept[key] = file
            if len(_kept) > COPIES_KEPT:
                _forget(next(iter(_kept)))
        _kept[key] = _kept.pop(key)  # it is the last one now
        return _opened_again(os.getpid(), _kept[key].fileno())


def _made(make: Callable[[], IO[bytes]]) -> IO[bytes]:
    """Return a new copy. If there is no room for it, give up the others that this process keeps."""
    try:
        return make()
    except NoRoomError:
        if not _kept:
            raise
        for key in list(_kept):
            _forget(key)
        return make()


def _forget(key: str) -> None:
    _kept.pop(key).close()


def _identity(about: os.stat_result) -> str:
    return f"{about.st_dev}:{about.st_ino}:{about.st_size}:{about.st_mtime_ns}"


@contextmanager
def _owners(key: str) -> Iterator[IO[bytes]]:
    """Yield the file that says which processes have the copy of `key` open. It is locked meanwhile."""
    folder = Path(tempfile.gettempdir()) / f"fer-pipeline-unpacked-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if about.st_uid != os.getuid() or about.st_mode & 0o77:
        raise RecordError("unreadable", f"it cannot be unpacked: '{folder}' belongs to somebody else: remove it, or set TMPDIR")
    for other in folder.iterdir():
        with suppress(OSError):
            if time.time() - other.stat().st_mtime > FORGOTTEN_S:
                other.unlink()
    name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "r+b") as owners:
        touched, went_on_at = 0.0, time.monotonic()
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(owners, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if (now := os.fstat(descriptor).st_mtime) != touched:  # the other process goes on
                touched, went_on_at = now, time.monotonic()
                sign_of_life()
            elif time.monotonic() - went_on_at > STUCK_S:
                raise RecordError("timed_out", "the process that unpacks it does not go on")
            time.sleep(LOOK_S)
        yield owners


def _of_another(owners: IO[bytes]) -> IO[bytes] | None:
    """Return the copy that a living process has open; None if there is none, and forget processes that ended."""
    for line in owners.read().decode(errors="replace").splitlines():
        with suppress(OSError, ValueError):
            pid, descriptor, identity = line.split()
            file = _opened_again(int(pid), int(descriptor))
            if _identity(os.fstat(file.fileno())) == identity:
                return file
            file.close()
    owners.seek(0)
    owners.truncate()
    return None


def _opened_again(pid: int, descriptor: int) -> IO[bytes]:
    """Open a file that a process has open once more, with its own position."""
    return Path(f"/proc/{pid}/fd/{descriptor}").open("rb")
