"""The install for labelling, by `make demo` in a copy of the project: its size, what it does and what it says of the rest."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
LARGEST_BYTES = 1_200_000_000
Run = Callable[..., subprocess.CompletedProcess[str]]


def test_the_group_for_labelling_asks_for_what_the_whole_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    whole = {re.sub(r"\[.*?\]", "", one) for one in project["project"]["dependencies"]}
    assert set(project["dependency-groups"]["label"]) < whole


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clone")


@pytest.fixture(scope="module")
def demo(place: Path) -> Run:
    """Run `make demo` in a copy of the project, in a fresh home; return a function that runs commands of what it installed."""
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in files.stdout.splitlines():
        if (ROOT / name).exists():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, place / name)
    own = ("FER_PIPELINE", "PYTHON", "XDG", "VIRTUAL_ENV", "MAKE", "MFLAGS")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    environment |= {"HOME": str(place / "home")}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        program = place / ".venv" / "bin" / command[0]
        found = [str(program), *command[1:]] if program.exists() else list(command)
        return subprocess.run(found, cwd=place, env=environment, capture_output=True, text=True)

    done = run("make", "demo")
    assert done.returncode == 0, done.stderr[-3000:]
    return run


@pytest.mark.examples
def test_make_demo_installs_little_and_shows_a_page(demo: Run, place: Path) -> None:
    size = sum(path.stat().st_size for path in (place / ".venv").rglob("*") if not path.is_symlink())
    print(f"{size / 1e9:.2f} GB")
    assert size < LARGEST_BYTES
    assert (place / "demo/run/report.html").exists() and (place / "demo/run/_SUCCESS").exists()
    assert not list((place / ".venv").rglob("site-packages/torch")) and not list((place / ".venv").rglob("site-packages/prefect"))


@pytest.mark.examples
def test_it_labels_publishes_predicts_and_ingests(demo: Run, place: Path) -> None:
    photo = str(next((place / "demo/archive/2026").rglob("*-640.jpg")))
    rng = np.random.default_rng(0)
    for number in range(30):
        path = place / "images" / ("happy", "sad")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 255, (48, 48), np.uint8))
    for command in (
        ("predict", photo, "--out", "predictions"),
        ("publish", "demo/run", "--table", "table"),
        ("nightly", "--source", "demo/archive", "--out", "night", "--table", "nights", "--detector", "mtcnn"),
        ("table", "page", "nights"),
        ("ingest", "images", "--out", "data", "--layout", "image-folder"),
        ("models", "card", "embedded", "--out", "card"),
    ):
        done = demo("fer-pipeline", *command)
        assert done.returncode == 0, (command, done.stderr[-2000:])
        json.loads(done.stdout.splitlines()[-1])


@pytest.mark.examples
@pytest.mark.parametrize(
    ("command", "package"),
    [
        (("fer-pipeline", "train", "recipe", "--data", "d", "--out", "o"), "ray[train]"),
        (("fer-pipeline", "sweep", "recipe", "--data", "d", "--out", "o"), "torch"),
        (("fer-pipeline", "evaluate", "m", "--data", "d", "--split", "test"), "torch"),
        (("fer-pipeline", "models", "promote", "m", "1"), "torch"),
        (("fer-pipeline", "models", "quantize", "m"), "torch"),
        (("fer-pipeline", "models", "export", "m"), "torch"),
        (("fer-pipeline", "label", "demo/archive", "--out", "fp32", "--precision", "fp32"), "torch"),
        (("python", "-m", "flows.label", "{}"), "prefect"),
    ],
)
def test_the_rest_says_what_it_needs(demo: Run, command: tuple[str, ...], package: str) -> None:
    done = demo(*command)
    assert done.returncode == 2
    assert f"needs the package {package}, which" in done.stderr and "make install" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.examples
def test_a_misspelt_command_is_named(demo: Run) -> None:
    done = demo("fer-pipeline", "labl", "x")
    assert done.returncode == 2 and done.stderr == "fer-pipeline: 'labl x' is not a command: see --help.\n"
