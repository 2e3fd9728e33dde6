"""Files that crash or hang native code cost their own row, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.archive.test_member_videos import PACKERS, SECONDS, write_video

pytestmark = pytest.mark.faults

POISON = Path(__file__).parent / "poison"
LABEL = [sys.executable, "-m", "fer_pipeline.cli", "label"]


def test_a_crashing_and_a_hanging_file_cost_their_own_rows(archive: Path, tmp_path: Path) -> None:
    source, out, clean = tmp_path / "source", tmp_path / "run", tmp_path / "clean"
    shutil.copytree(archive, source)
    victims = sorted(source.rglob("hopper-*.jpg"))
    for victim, ending in zip(victims, (b"crash the decoder", b"hang the decoder"), strict=False):
        victim.write_bytes(victim.read_bytes() + ending)  # still a sound JPEG to any other decoder
    options = ["--detector", "none", "--shard-records", "6", "--record-timeout-s", "2"]
    environment = os.environ | {"PYTHONPATH": str(POISON)}
    subprocess.run([*LABEL, str(source), "--out", str(clean), *options], check=True, capture_output=True)
    done = subprocess.run(
        [*LABEL, str(source), "--out", str(out), *options], check=True, capture_output=True, text=True, env=environment
    )
    rows, expected = (pq.read_table(folder / "images").sort_by("record_id").to_pylist() for folder in (out, clean))
    assert [row["record_id"] for row in rows] == list(range(36))
    by_uri = {row["uri"]: row["status"] for row in rows}
    assert (by_uri[str(victims[0])], by_uri[str(victims[1])]) == ("crashed", "timed_out")
    healthy = {row["record_id"]: row["faces"] for row in rows if row["status"] not in ("crashed", "timed_out")}
    assert len(healthy) == 34
    assert healthy == {row["record_id"]: row["faces"] for row in expected if row["record_id"] in healthy}
    counts = json.loads(done.stdout.splitlines()[-1])["result"]["counts"]
    assert (counts["crashed"], counts["timed_out"]) == (1, 1)


def test_videos_that_crash_or_hang_whoever_opens_them_do_not_end_the_listing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("crash", "good", "hang", "well"):
        writer = cv2.VideoWriter(str(tmp_path / "in" / f"{name}.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
        for _ in range(20):
            writer.write(np.zeros((48, 64, 3), np.uint8))
        writer.release()
    options = ["--detector", "none", "--record-timeout-s", "3"]
    command = [*LABEL, str(tmp_path / "in"), "--out", str(tmp_path / "run"), *options]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(POISON)})
    rows = pq.read_table(tmp_path / "run" / "images").sort_by("record_id").to_pylist()
    assert [(Path(row["uri"]).stem, row["status"]) for row in rows] == [
        ("crash", "unreadable"), ("good", "ok"), ("good", "ok"), ("hang", "unreadable"), ("well", "ok"), ("well", "ok")
    ]  # fmt: skip
    assert "kills the process" in rows[0]["error"] and "longer than 3 s" in rows[3]["error"]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "stored.zip", "deflated.zip"])
def test_videos_in_a_container_that_crash_or_hang_whoever_opens_them_cost_their_own_rows(name: str, tmp_path: Path) -> None:
    good, photo = write_video(tmp_path / "a.avi").read_bytes(), cv2.imencode(".jpg", np.zeros((9, 9, 3), np.uint8))[1].tobytes()
    members = {"0.jpg": photo, "1.avi": b"crash the decoder", "2.avi": good, "3.avi": b"hang the decoder"}
    members |= {"4.avi": good, "5.jpg": photo}
    (tmp_path / "in").mkdir()
    PACKERS[name](tmp_path / "in" / name, members)
    options = ["--detector", "none", "--record-timeout-s", "3"]
    command = [*LABEL, str(tmp_path / "in"), "--out", str(tmp_path / "run"), *options]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(POISON)})
    rows = pq.read_table(tmp_path / "run" / "images").sort_by("record_id").to_pylist()
    found = Counter((row["member"], row["status"]) for row in rows)
    assert found == {
        ("0.jpg", "ok"): 1, ("1.avi", "unreadable"): 1, ("2.avi", "ok"): SECONDS, ("3.avi", "unreadable"): 1,
        ("4.avi", "ok"): SECONDS, ("5.jpg", "ok"): 1,
    }  # fmt: skip
