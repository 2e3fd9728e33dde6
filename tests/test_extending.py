"""`docs/extending.md` done as it says: every block applied to a copy of the package, every command run there."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"```(python|toml|diff)\n# (\S+)\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = re.findall(r"^    (.*)$", TEXT.partition("## All of it in use")[2], re.MULTILINE)


def applied(diff: str, text: str) -> str:
    """Return a file's text with each stretch of `-` replaced by the stretch of `+` that follows it."""
    for old, new in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)+)", diff, re.MULTILINE):
        before, after = ("\n".join(line[1:] for line in part.splitlines()) for part in (old, new))
        assert text.count(before) == 1, f"the document speaks of a line that is not there once: {before}"
        text = text.replace(before, after)
    return text


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the additions, a few faces and a Motion JPEG file."""
    home = tmp_path_factory.mktemp("extended")
    for package in ("fer_pipeline", "flows"):
        shutil.copytree(ROOT / package, home / package, ignore=shutil.ignore_patterns("__pycache__"))
    for kind, name, block in BLOCKS:
        path = home / name
        path.write_text(applied(block, path.read_text()) if kind == "diff" else block)
    rng, rows, album = np.random.default_rng(0), ["file,class"], b""
    (home / "faces").mkdir()
    for number in range(32):
        name, bright = ("happy", "neutral")[number % 2], 200 if number % 2 else 60
        image = rng.normal(bright, 20, (64, 64, 3)).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(home / "faces" / f"{number}.png"), image)
        rows.append(f"{number}.png,{name}")
        album += cv2.imencode(".jpg", image)[1].tobytes() if number < 6 else b""
    (home / "faces" / "list.csv").write_text("\n".join([*rows, "32.png,angry"]) + "\n")
    (home / "album.mjpeg").write_bytes(album)
    return home


def test_every_addition_finds_its_place(extended: Path) -> None:
    for kind, name, block in BLOCKS:
        added = re.findall(r"^\+(.*)$", block, re.MULTILINE) if kind == "diff" else [block]
        assert all(text in (extended / name).read_text() for text in added), name


@pytest.mark.examples
def test_every_addition_works_as_the_document_says(extended: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(extended), "PREFECT_HOME": str(extended / "prefect")}
    assert len(COMMANDS) == 4
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        python = [sys.executable, "-m", "fer_pipeline.cli"] if program == "fer-pipeline" else [sys.executable]
        done = subprocess.run([*python, *arguments], cwd=extended, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
    images = pq.read_table(extended / "run" / "images")
    assert images["member"].to_pylist() == [f"frame {number}" for number in range(6)]
    faces = pq.read_table(extended / "run" / "faces")
    assert len(faces) == 6 and min(faces["edges"].to_pylist()) > 0
    assert set(faces["expression"].to_pylist()) <= {"happy", "neutral"} and set(faces["detector"].to_pylist()) == {"portrait"}
    assert (extended / "evaluation" / "evaluation.html").exists()
    choices = subprocess.run(
        [sys.executable, "-m", "fer_pipeline.cli", "label", "--help"],
        cwd=extended,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "portrait" in choices.stdout
