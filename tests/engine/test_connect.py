"""A local run is private: it listens on loopback only, and other users of the machine cannot read its files."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import ray

from fer_pipeline.base import temporary
from fer_pipeline.base.errors import ClusterError, UserError
from fer_pipeline.engine import connect as cluster
from fer_pipeline.engine import tasks
from fer_pipeline.engine.connect import ClusterConfig
from fer_pipeline.engine.machines import Machines
from fer_pipeline.engine.tasks import fan_out
from fer_pipeline.faces.detectors import require_first_choice
from fer_pipeline.faces.detectors.spec import ResolvedDetector
from fer_pipeline.jobs import nightly
from fer_pipeline.jobs.nightly import NightlyConfig

CODE = """
import fcntl, json, os, shutil, subprocess, sys, tempfile
from pathlib import Path
import psutil, ray
from fer_pipeline.base import storage
from fer_pipeline.engine.connect import ClusterConfig, connected
from fer_pipeline.engine.tasks import fan_out

def write(path, number):
    storage.write_bytes(f"{path}/{number}", b"x")

os.umask(0o022)
place = Path(tempfile.gettempdir())
stale, held = place / f"fer-ray-stale-{os.getpid()}", place / f"fer-ray-held-{os.getpid()}" / "lock"
for lock in (stale / "lock", held):
    lock.parent.mkdir()
    lock.touch()
    os.utime(lock, (0, 0))
holder = held.open()
fcntl.flock(holder, fcntl.LOCK_EX)
before = set(place.glob("fer-ray-????????"))
with connected(ClusterConfig(num_cpus=1)) as machines:
    list(fan_out(write, range(2), sys.argv[1], machines=machines))
    mine = [psutil.Process(), *psutil.Process().children(recursive=True)]
    found = [c for one in mine for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    arguments = [argument for one in mine for argument in one.cmdline()]
    folders = {one for one in set(place.glob("fer-ray-????????")) - before if any(str(one) in given for given in arguments)}
    folder = next(iter(folders))
    command = f"ls {folder} || cat ~root/.ray/auth_token"
    facts = {
        "listening": sorted({c.laddr.ip for c in found}), "folders": len(folders), "mode": oct(folder.stat().st_mode & 0o777),
        "token": oct((Path.home() / ".ray" / "auth_token").stat().st_mode & 0o777), "written": sorted(
            oct((Path(sys.argv[1]) / str(n)).stat().st_mode & 0o777) for n in range(2)),
        "other": os.geteuid() == 0 and subprocess.run(command, shell=True, user="nobody", capture_output=True).returncode,
    }
facts["left"] = folder.exists()
facts["stale"], facts["held"] = stale.exists(), held.exists()
shutil.rmtree(held.parent)
facts["umask"] = oct(os.umask(0))
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("doors")
    done = subprocess.run([sys.executable, "-c", CODE, str(out)], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_local_run_listens_on_loopback_only(facts: dict[str, Any]) -> None:
    assert facts["listening"] and {address.removeprefix("::ffff:") for address in facts["listening"]} <= {"127.0.0.1", "::1"}


def test_rays_files_and_token_are_readable_by_their_owner_alone_and_do_not_pile_up(facts: dict[str, Any]) -> None:
    assert (facts["folders"], facts["mode"], facts["token"], facts["left"]) == (1, "0o700", "0o600", False)


def test_a_folder_that_a_killed_process_left_is_removed_and_a_living_ones_is_not(facts: dict[str, Any]) -> None:
    assert facts["held"] and not facts["stale"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try it as another user")
def test_another_user_of_the_machine_gets_nothing(facts: dict[str, Any]) -> None:
    assert facts["other"] != 0


def test_results_keep_the_users_umask(facts: dict[str, Any]) -> None:
    assert facts["written"] == ["0o644", "0o644"] and facts["umask"] == "0o22"


def test_a_cluster_does_not_fall_back_to_a_slower_detector() -> None:
    with pytest.raises(UserError, match="--detector-weights, or use --detector mtcnn"):
        require_first_choice("auto", ResolvedDetector("mtcnn", "0"), lambda: "On a cluster")
    require_first_choice("mtcnn", ResolvedDetector("mtcnn", "0"), lambda: "On a cluster")
    require_first_choice("auto", ResolvedDetector("yunet", "0"), lambda: "On a cluster")


def test_a_ray_job_uses_the_cluster_that_it_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ClusterConfig().cluster is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert ClusterConfig().cluster == "10.0.0.1:6379" and ClusterConfig(address="auto").cluster == "auto"


def _name_of_this_task(item: int) -> str:
    return f"{ray.get_runtime_context().get_task_name()} {item}"


def test_a_cluster_that_shrinks_while_work_is_handed_out_loses_nothing(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([4, 1, 1])
    monkeypatch.setattr(tasks, "cluster_cores", lambda: next(sizes, 1))
    assert len(list(fan_out(_name_of_this_task, range(20), machines=Machines(60)))) == 20


def _wait_a_second(item: int) -> int:
    threading.Event().wait(1)
    return item


def test_a_first_core_is_waited_for_as_long_as_is_said(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(tasks, "LOOK_S", 0.05)
    with pytest.raises(ClusterError, match="has had no core for 0 s"):
        list(fan_out(_wait_a_second, [1], machines=Machines(0)))


def test_rays_pages_name_a_task_in_words(local_ray: None) -> None:
    assert list(fan_out(_name_of_this_task, [1], machines=Machines(60))) == ["name of this task 1"]


BESIDE = """
import subprocess, sys
from fer_pipeline.engine.connect import ClusterConfig, connected
subprocess.Popen(["cp", "/usr/bin/sleep", sys.argv[1]]).wait()
named = subprocess.Popen([sys.argv[1], "60"])
with connected(ClusterConfig(num_cpus=1)):
    pass
print(named.poll())
named.kill()
"""


def test_the_end_of_a_local_ray_spares_one_that_was_there_before(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BESIDE, str(tmp_path / "raylet")], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "None", done.stderr


@pytest.mark.parametrize("what", ["out", "page", "metrics"])
def test_no_path_of_a_night_may_be_on_one_machine_of_several(
    what: str, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "NodeID": str(number)} for number in range(2)])
    places = {name: f"s3://bucket/{name}" for name in ("source", "table", "out", "page", "metrics")}
    config = NightlyConfig.model_validate(places | {what: str(tmp_path / "here")})
    with pytest.raises(UserError, match="here' is a path on this machine, but the cluster has 2 nodes"):
        nightly.run(config)


@pytest.mark.timeout(30)
def test_what_a_neighbour_puts_into_the_temporary_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cluster, "LONGEST_PATH", 1000)
    monkeypatch.setattr(temporary, "SETTLED_S", -60)
    victim = tmp_path / "victim"
    for name in ("fer-ray-pipe", "fer-ray-link", "fer-ray-ours", "victim"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "fer-ray-pipe" / "lock")
    (victim / "lock").write_text("")
    (tmp_path / "fer-ray-link" / "lock").symlink_to(victim / "lock")
    (tmp_path / "fer-ray-leading").symlink_to(victim)
    (tmp_path / "fer-ray-ours" / "lock").write_text("")
    (tmp_path / "fer-ray-file").write_text("")
    theirs = tmp_path / "fer-ray-theirs"
    if os.getuid() == 0:
        theirs.mkdir()
        (theirs / "lock").write_text("")
        os.chown(theirs, 12345, 12345)
    with cluster._private_folder() as folder:
        assert (Path(folder).parent.stat().st_mode & 0o777) == 0o700
    assert not (tmp_path / "fer-ray-ours").exists() and (victim / "lock").exists()
    assert (tmp_path / "fer-ray-pipe").exists() and (tmp_path / "fer-ray-link").exists() and theirs.exists() == (os.getuid() == 0)
