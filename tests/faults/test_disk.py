"""A run folder on a disk that is full, or read-only: one sentence at once, and nothing is lost."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.faults, pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def label(archive: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    options = ["--detector", "none", "--shard-records", "2"]
    command = [sys.executable, "-m", "fer_pipeline.cli", "label", str(archive), "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_full_disk_ends_the_run_at_once_and_the_run_goes_on_when_there_is_room(archive: Path, disk: Path) -> None:
    filler = disk / "filler"
    begun = label(archive, disk / "run")
    assert begun.returncode == 3 or begun.returncode == 0, begun.stderr
    for name in ("images/000003.parquet", "images/000007.parquet", "_SUCCESS"):
        (disk / "run" / name).unlink(missing_ok=True)
    with filler.open("wb") as file:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        file.write(bytes(free))
    started = time.monotonic()
    full = label(archive, disk / "run")
    assert full.returncode == 1 and time.monotonic() - started < 60
    assert "No space left on device" in full.stderr.splitlines()[-1] and "run the same command" in full.stderr.splitlines()[-1]
    assert "Traceback" not in full.stderr and full.stderr.count("lost") <= 4
    filler.unlink()
    assert label(archive, disk / "run").returncode == 0
    assert pq.read_table(disk / "run" / "images").num_rows == 36


def test_a_disk_that_became_read_only_ends_the_run_at_once(archive: Path, disk: Path) -> None:
    label(archive, disk / "run")
    (disk / "run" / "images" / "000003.parquet").unlink()
    (disk / "run" / "_SUCCESS").unlink()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    ended = label(archive, disk / "run")
    assert ended.returncode in (1, 2) and "Read-only file system" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
