"""No command listens to other machines, and none looks up a name: each is run in a network namespace that has nobody else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import RECIPE

ALONE = ["unshare", "--net", "--mount"]
possible = (
    bool(shutil.which("unshare") and shutil.which("ip")) and not subprocess.run([*ALONE, "true"], capture_output=True).returncode
)
pytestmark = [
    pytest.mark.doors,
    pytest.mark.skipif(not possible, reason="needs root, iproute2 and the right to make network namespaces"),
]
OPEN_CLUSTER = """
mount -t tmpfs none /mnt
ip link set lo up && ip address add 10.9.9.9 dev lo
ray start --head --node-ip-address 10.9.9.9 --port 6379 --num-cpus 1 --object-store-memory 100000000 --include-dashboard false
exec "$@"
"""
"""A head at an address that is not loopback's and that asks for no token; then a command."""
DETECTOR = ("--detector", "mtcnn")
"""The one that comes with a package; `auto` looks for YuNet's weights first."""
WATCH = Path(__file__).with_name("watch.py")


def run_alone(tmp_path: Path, *command: str) -> dict[str, object]:
    """Run a command of Python in a namespace of its own and return what was seen; it must end well."""
    out = tmp_path / "seen.json"
    alone = [*ALONE, sys.executable, str(WATCH), str(out), sys.executable, "-m", *command]
    done = subprocess.run(alone, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300)
    assert out.exists(), done.stderr[-3000:]
    seen: dict[str, object] = json.loads(out.read_text())
    assert seen.pop("exit") == 0, done.stderr[-3000:]
    return seen


def require_private(seen: dict[str, object], listens: bool = True) -> None:
    addresses = seen["listening"]
    assert isinstance(addresses, list) and bool(addresses) == listens
    assert set(addresses) <= {"127.0.0.1", "::1"} and seen["asked"] == []


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.replace("epochs = 8", "epochs = 1"))
    return path


def test_labelling(archive: Path, tmp_path: Path) -> None:
    options = (str(archive), "--out", str(tmp_path / "run"), *DETECTOR)
    require_private(run_alone(tmp_path, "fer_pipeline.cli", "label", *options))


def test_the_one_name_that_is_looked_up_is_where_the_detectors_weights_are(archive: Path, tmp_path: Path) -> None:
    seen = run_alone(tmp_path, "fer_pipeline.cli", "label", str(archive), "--out", str(tmp_path / "run"))
    assert seen["asked"] == ["media.githubusercontent.com"]


def test_predicting(archive: Path, tmp_path: Path) -> None:
    photo = next(archive.rglob("hopper-320.jpg"))
    seen = run_alone(tmp_path, "fer_pipeline.cli", "predict", str(photo), "--out", str(tmp_path / "out"), *DETECTOR)
    require_private(seen, listens=False)


def test_training(recipe: Path, dataset: Path, tmp_path: Path) -> None:
    options = ("--out", str(tmp_path / "model"), "--num-workers", "2", "--allow-missing-classes")
    require_private(run_alone(tmp_path, "fer_pipeline.cli", "train", str(recipe), "--data", str(dataset), *options))


def test_sweeping(recipe: Path, dataset: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.toml"
    space.write_text("[training]\nlearning_rate = [0.01, 0.02]\n")
    places = (str(recipe), "--space", str(space), "--data", str(dataset), "--out", str(tmp_path / "sweep"))
    options = ("--trials", "2", "--allow-missing-classes")
    require_private(run_alone(tmp_path, "fer_pipeline.cli", "sweep", *places, *options))


def test_evaluating(dataset: Path, tmp_path: Path) -> None:
    options = ("embedded", "--data", str(dataset), "--split", "validation", "--out", str(tmp_path / "evaluation"))
    require_private(run_alone(tmp_path, "fer_pipeline.cli", "evaluate", *options))


def test_exporting(dataset: Path, tmp_path: Path) -> None:
    seen = run_alone(tmp_path, "fer_pipeline.cli", "models", "export", "embedded", "--out", str(tmp_path / "onnx"))
    require_private(seen, listens=False)


def test_a_flow(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    parameters = json.dumps({"source": str(archive), "out": str(tmp_path / "run"), "detector": "mtcnn"})
    require_private(run_alone(tmp_path, "flows.label", parameters))


def test_a_cluster_that_other_machines_reach_and_that_lets_everybody_in_is_refused(archive: Path, tmp_path: Path) -> None:
    environment = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": "/mnt",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    run = ("fer-pipeline", "label", str(archive), "--out", str(tmp_path / "run"), *DETECTOR, "--shared-filesystem")
    together = [*ALONE, "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-ec", OPEN_CLUSTER, "bash", *run]
    done = subprocess.run(
        [*together, "--address", "10.9.9.9:6379"], env=os.environ | environment, capture_output=True, text=True, timeout=200
    )
    assert "lets in everybody who reaches 10.9.9.9" in done.stderr and "--open-cluster" in done.stderr, done.stderr[-3000:]
    assert done.returncode == 2 and not (tmp_path / "run").exists()
