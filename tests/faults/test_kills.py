"""The driver is killed at random moments; at the end nothing is missing, doubled or different."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.archive.test_member_videos import PACKERS, SECONDS, write_video
from tests.archive.test_parquets import WRITERS
from tests.conftest import copies

pytestmark = pytest.mark.faults

SEED = 20261121
SHARD_RECORDS = 4


def drive(source: Path, out: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "fer_pipeline.cli", "label", str(source), "--out", str(out), "--detector", "none"]
    command += ["--shard-records", str(SHARD_RECORDS)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("wanted", "records"), [(4, 900), pytest.param(10, 2160, marks=pytest.mark.long)])
def test_kills_of_the_driver_change_nothing(wanted: int, records: int, archive: Path, tmp_path: Path) -> None:
    require_same_rows_after_kills(copies(archive, tmp_path / "source", records // 36), tmp_path, wanted, records)


@pytest.mark.timeout(600)
def test_kills_change_nothing_in_containers_of_every_kind(archive: Path, tmp_path: Path) -> None:
    """Photos and a video in each kind of container that has its own way to be read."""
    source, names = tmp_path / "source", [*PACKERS, *WRITERS]
    photos = [path.read_bytes() for path in sorted(archive.rglob("*-320.jpg"))[:4]]
    video = write_video(tmp_path / "a.avi")
    source.mkdir()
    for name, pack in PACKERS.items():
        images = {f"{number}.jpg": photos[number % len(photos)] + bytes(number) for number in range(24)}
        pack(source / name, {**images, video.name: video.read_bytes()})
    for name, write in WRITERS.items():
        images = pa.array([[photos[number % len(photos)] + bytes(number)] * 2 for number in range(12)])
        write(pa.table({"images": images}), source / name)
    require_same_rows_after_kills(source, tmp_path, 3, len(names) * 24 + len(PACKERS) * SECONDS)


@pytest.mark.timeout(600)
def test_kills_change_nothing_in_the_copies_of_a_redaction(archive: Path, tmp_path: Path) -> None:
    """Kills while shards are redacted and while containers are written."""
    source, rng, photos = copies(archive, tmp_path / "source", 4), random.Random(SEED), sorted(archive.rglob("*-640.jpg"))
    for name, pack in PACKERS.items():
        pack(source / name, {f"{number}.jpg": photos[number % len(photos)].read_bytes() for number in range(24)})
    assert drive(source, tmp_path / "run").wait() == 0
    undisturbed, disturbed, at_kills = tmp_path / "undisturbed", tmp_path / "disturbed", list[tuple[int, int]]()
    assert redact(tmp_path / "run", source, undisturbed).wait() == 0
    shards, containers = written(undisturbed)
    while len(at_kills) < 5:
        before, driver = written(disturbed), redact(tmp_path / "run", source, disturbed)
        kind = 0 if len(at_kills) < 3 else 1  # while shards are redacted, then while containers are written
        while driver.poll() is None and written(disturbed)[kind] <= before[kind]:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3) if kind == 0 else 0)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        at_kills.append(written(disturbed))
    assert at_kills[2][0] < shards and at_kills[-1][1] < containers
    assert redact(tmp_path / "run", source, disturbed).wait() == 0
    assert contents(disturbed) == contents(undisturbed)


def redact(run: Path, source: Path, out: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "fer_pipeline.cli", "redact", str(run), "--source", str(source), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def written(out: Path) -> tuple[int, int]:
    """Return the numbers of shards that are done and of containers."""
    return len(list((out / "_redacted").glob("*.parquet"))), len([*out.glob("*.tar"), *out.glob("*.zip")])


def contents(out: Path) -> dict[str, bytes]:
    """Return the copies, and what is left beside them."""
    files = [path for path in out.rglob("*") if path.is_file() and path.suffix not in (".json", ".parquet")]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def require_same_rows_after_kills(source: Path, tmp_path: Path, wanted: int, records: int) -> None:
    """Label a source twice, once with `wanted` kills of the driver; require that both runs have the same rows, each once."""
    rng, undisturbed, disturbed = random.Random(SEED), tmp_path / "undisturbed", tmp_path / "disturbed"
    assert drive(source, undisturbed).wait() == 0
    kills, shards_at_kill = 0, []
    while kills < wanted:
        before = len(list(disturbed.glob("images/*.parquet")))
        driver = drive(source, disturbed)
        if kills % 3:  # most of them while labelling, the others at any moment: listing, starting Ray, loading
            while driver.poll() is None and len(list(disturbed.glob("images/*.parquet"))) <= before:
                time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4 if kills % 3 else 5))
        assert driver.poll() is None, "the run ended before it was killed so often: make it longer"
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        kills += 1
        shards_at_kill.append(len(list(disturbed.glob("images/*.parquet"))))
    assert shards_at_kill[-1] > shards_at_kill[0]
    both = [drive(source, disturbed) for _ in range(2)]  # two drivers share what is left
    assert [one.wait() for one in both] == [0, 0]
    images, expected = (
        pq.read_table(out / "images").sort_by("record_id").drop_columns(["run_id", "labelled_at"])
        for out in (disturbed, undisturbed)
    )
    assert images["record_id"].to_pylist() == list(range(records))
    assert images.to_pylist() == expected.to_pylist()
    faces, expected_faces = (pq.read_table(out / "faces").num_rows for out in (disturbed, undisturbed))
    assert faces == expected_faces
