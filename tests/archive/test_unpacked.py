"""One unpacked copy of a compressed tar for all processes of a machine, of which nothing is left when they end."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fer_pipeline.archive import unpacked
from fer_pipeline.archive.formats.tars import unpacked as unpacked_tar
from fer_pipeline.base.errors import RecordError
from tests.archive.test_listing import tar_of

READER = """
import os, sys, time
from fer_pipeline.archive import unpacked

def make(beat):
    def pieces():
        for number in range(20):
            time.sleep(float(sys.argv[1]))
            yield bytes([number]) * 1000
    print("makes", flush=True)
    return unpacked.write_copy(pieces(), 10**6, beat)

copy = unpacked.shared_copy("one tar", make)
sys.stdin.readline()
copy.seek(0)
data = copy.read()
print("whole" if data == b"".join(bytes([number]) * 1000 for number in range(20)) else "broken", flush=True)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the machine's processes of this test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


class Processes:
    """Processes that each want the same copy."""

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[str]] = []

    def start(self, pause_s: float = 0.0) -> subprocess.Popen[str]:
        one = subprocess.Popen(
            [sys.executable, "-c", READER, str(pause_s)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.all.append(one)
        return one


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Processes that end with the test."""
    found = Processes()
    yield found
    for one in found.all:
        one.kill()
        one.communicate()


def kill(one: "subprocess.Popen[str]") -> None:
    one.send_signal(signal.SIGKILL)
    one.wait(10)


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def copies_open(pid: int, folder: Path) -> int:
    """Return how many files without a name in a folder a process has open."""
    targets = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            targets.append(str(link.readlink()))
    return sum(str(folder) in target and target.endswith("(deleted)") for target in targets)


def wait_for_copy(one: "subprocess.Popen[str]", folder: Path) -> None:
    while copies_open(one.pid, folder) < 2:  # that which it keeps, and that which it reads
        assert one.poll() is None
        time.sleep(0.01)


def test_one_process_makes_the_copy_and_the_others_use_it(temporary: Path, processes: Processes) -> None:
    together = [processes.start(0.05) for _ in range(3)]
    for one in together:
        wait_for_copy(one, temporary)
    said = [one.communicate("\n", timeout=60)[0].split() for one in together]
    assert sorted(map(len, said)) == [1, 1, 2] and all(words[-1] == "whole" for words in said)


def test_a_copy_outlives_the_process_that_made_it_while_another_one_has_it_and_then_nothing_is_left(
    temporary: Path, processes: Processes
) -> None:
    maker = processes.start()
    assert maker.stdout and maker.stdout.readline() == "makes\n"
    second = processes.start()
    wait_for_copy(second, temporary)
    kill(maker)
    third = processes.start()
    wait_for_copy(third, temporary)
    kill(second)
    assert third.communicate("\n", timeout=60)[0] == "whole\n", "it did not make the copy again"
    assert bytes_below(temporary) < 1000
    assert processes.start().communicate("\n", timeout=60)[0] == "makes\nwhole\n"


def test_a_process_that_dies_while_it_unpacks_leaves_nothing_and_holds_nobody_up(temporary: Path, processes: Processes) -> None:
    maker = processes.start(pause_s=100.0)
    assert maker.stdout and maker.stdout.readline() == "makes\n"
    second = processes.start()
    kill(maker)
    assert second.communicate("\n", timeout=60)[0] == "makes\nwhole\n"
    assert bytes_below(temporary) < 1000


def test_only_the_last_copies_stay_open(temporary: Path, tmp_path: Path) -> None:
    for name in "abcdefg":
        tar_of(tmp_path / f"{name}.tar.gz", {"1.jpg": name.encode() * 1000}, "w:gz")
        path = tmp_path / f"{name}.tar.gz"
        with unpacked_tar(str(path), str(path.stat().st_mtime_ns)) as copy:  # type: ignore[union-attr]
            assert name.encode() * 1000 in copy.read()
    assert copies_open(os.getpid(), temporary) == unpacked.COPIES_KEPT


def test_zeros_take_no_place_on_the_disk(temporary: Path) -> None:
    pieces = [b"head", *[bytes(unpacked.PIECE_BYTES)] * 100, b"tail", bytes(1000)]
    with unpacked.write_copy(pieces, 10**9) as copy:
        about = os.fstat(copy.fileno())
        assert copy.read() == b"".join(pieces) and about.st_blocks * 512 < 10 * unpacked.PIECE_BYTES


def test_a_folder_of_somebody_else_is_not_used(temporary: Path) -> None:
    folder = temporary / f"fer-pipeline-unpacked-{os.getuid()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with pytest.raises(RecordError, match="belongs to somebody else"):
        unpacked.shared_copy("one tar", lambda beat: unpacked.write_copy([], 1))
