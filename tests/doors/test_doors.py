"""No command listens to other machines, looks up a name, or sends anything but to what its configuration names.

Each is run in a network namespace that has nobody else, and whose one way out is watched.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_pipeline.base.storage import parquet
from fer_pipeline.jobs import nightly
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.jobs.nightly import NightlyConfig
from tests.conftest import RECIPE
from tests.table.test_hostile import edit_log

ALONE = ["unshare", "--net", "--mount"]
possible = (
    bool(shutil.which("unshare") and shutil.which("ip")) and not subprocess.run([*ALONE, "true"], capture_output=True).returncode
)
pytestmark = [
    pytest.mark.doors,
    pytest.mark.skipif(
        not possible or not Path("/dev/net/tun").exists(),
        reason="needs root, iproute2, /dev/net/tun and the right to make network namespaces",
    ),
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


def run_alone(tmp_path: Path, *command: str, ends: tuple[int, ...] = (0,)) -> dict[str, object]:
    """Run a command of Python in a namespace of its own and return what was seen; it must end with one of some exit codes."""
    out = tmp_path / "seen.json"
    alone = [*ALONE, sys.executable, str(WATCH), str(out), sys.executable, "-m", *command]
    done = subprocess.run(alone, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300)
    assert out.exists(), done.stderr[-3000:]
    seen: dict[str, object] = json.loads(out.read_text())
    assert seen.pop("exit") in ends, done.stderr[-3000:]
    return seen


def require_private(seen: dict[str, object], listens: bool = True) -> None:
    addresses = seen["listening"]
    assert isinstance(addresses, list) and bool(addresses) == listens
    assert set(addresses) <= {"127.0.0.1", "::1"} and seen["asked"] == [] and seen["reached"] == []


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
    assert "any code from anyone who can reach 10.9.9.9" in done.stderr and "--open-cluster" in done.stderr, done.stderr[-3000:]
    assert done.returncode == 2 and not (tmp_path / "run").exists()


ELSEWHERE = "198.51.100.7"
"""An address of nobody's (RFC 5737): what is planted here leads to it."""
PLANTED = [
    f"simplecache::http://{ELSEWHERE}/0.jpg",
    f"http://{ELSEWHERE}/1.jpg",
    f"s3://bucket@{ELSEWHERE}/2.jpg",
    "s3://bucket-of-others/3.jpg",
    f"ftp://{ELSEWHERE}/4.jpg",
    "reference://::memory://5.jpg",
]
COMMANDS: dict[str, Callable[[str, str], tuple[str, ...]]] = {
    "report": lambda run, source: ("report", run, "--source", source),
    "explain a chain": lambda run, source: ("explain", run, "--uri", PLANTED[0], "--source", source, "--out", f"{run}.jpg"),
    "explain a key": lambda run, source: ("explain", run, "--uri", PLANTED[3], "--source", source, "--out", f"{run}.jpg"),
    "label": lambda run, source: ("label", source, "--out", run, "--detector", "none"),
}


def test_the_watch_sees_what_is_sent_elsewhere(tmp_path: Path) -> None:
    """For the tests above and below to mean anything."""
    sends = f"import socket; s = socket.socket(); s.settimeout(0.5); s.connect_ex(('{ELSEWHERE}', 80))"
    assert run_alone(tmp_path, "timeit", "-n", "1", "-r", "1", sends)["reached"] == [ELSEWHERE]


def test_what_a_command_reaches_is_what_it_says(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store at an address: the one thing that is reached, and `--show-config` names it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{ELSEWHERE}:9000")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    command = ("fer_pipeline.cli", "label", str(archive), "--out", "s3://bucket/run", *DETECTOR)
    said = subprocess.run([sys.executable, "-m", *command, "--show-config"], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == f"# connects to: http://{ELSEWHERE}:9000"
    seen = run_alone(tmp_path, *command, ends=(2,))
    assert seen["reached"] == [ELSEWHERE] and seen["asked"] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_planted_run_folder_reaches_nobody(
    command: str, archive: Path, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, run = tmp_path / "source", tmp_path / "run"
    source.mkdir()
    for number in range(len(PLANTED)):
        shutil.copy(next(archive.rglob("hopper-320.jpg")), source / f"{number}.jpg")
    label.run(LabelConfig(source=str(source), out=str(run), detector="none", shard_records=64))
    for folder in ("manifest", "images", "faces"):
        (path,) = (run / folder).glob("*.parquet")
        table = pq.read_table(path)
        column = table.schema.get_field_index("uri")
        parquet.write_table(str(path), table.set_column(column, table.schema.field(column), pa.array(PLANTED)))
    if command == "label":
        for path in (run / "_SUCCESS", *(run / "images").iterdir()):
            path.unlink()
    for name, value in (("ENDPOINT_URL", f"http://{ELSEWHERE}:9000"), ("SECRET_ACCESS_KEY", "sentinel"), ("ACCESS_KEY_ID", "x")):
        monkeypatch.setenv(f"AWS_{name}", value)
    seen = run_alone(
        tmp_path, "fer_pipeline.cli", *COMMANDS[command](str(run), str(source)), ends=(0,) if command == "report" else (2,)
    )
    require_private(seen, listens=command == "label")


def test_a_planted_table_reaches_nobody(archive: Path, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {name: str(tmp_path / name) for name in ("table", "out", "page")}
    config = NightlyConfig.model_validate({"source": str(archive), "detector": "none"} | places)
    nightly.run(config)
    edit_log(tmp_path / "table", "add", lambda action: action.update(path="s3://bucket-of-others/x.parquet"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{ELSEWHERE}:9000")
    for command in (
        ("table", "compact", config.table),
        ("table", "forget", config.table, "--uri", "/x"),
        (
            "nightly",
            "--source",
            config.source,
            "--table",
            config.table,
            "--out",
            f"{tmp_path}/next",
            "--detector",
            "none",
            "--page",
            f"{tmp_path}/n.html",
        ),
    ):
        seen = run_alone(tmp_path, "fer_pipeline.cli", *command, ends=(2,))
        assert seen["reached"] == [] and seen["asked"] == []
