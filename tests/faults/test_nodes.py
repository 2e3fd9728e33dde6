"""A cluster of three nodes on this machine: one is lost, workers are killed, GPUs are few."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster

from fer_pipeline.base.errors import UserError
from fer_pipeline.engine import waiting
from fer_pipeline.engine.connect import ClusterConfig, connected
from fer_pipeline.engine.tasks import fan_out
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.config import LabelConfig
from tests.conftest import copies

pytestmark = pytest.mark.faults
STORE_BYTES = 100 * 1024**2
HEAD = {"object_store_memory": STORE_BYTES, "include_dashboard": False}


@pytest.fixture(scope="module")
def many(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,080 records: the sample archive thirty times."""
    return copies(archive, tmp_path_factory.mktemp("many"), 30)


@pytest.fixture(scope="module")
def undisturbed(many: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    label.run(config(many, out))
    return rows(out)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Three nodes of one core each."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **HEAD})
    nodes.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    nodes.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def config(source: Path, out: Path, **options: Any) -> LabelConfig:
    return LabelConfig.model_validate({"source": str(source), "out": str(out), "detector": "none", "shard_records": 4} | options)


def rows(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "images").sort_by("record_id").drop_columns(["run_id", "labelled_at"]).to_pylist()  # type: ignore[no-any-return]


def labels(out: Path) -> list[dict[str, Any]]:
    """Return the rows without the digest of the settings, of which the device is one."""
    return [{name: value for name, value in row.items() if name != "settings_digest"} for row in rows(out)]


def workers_named(name: str) -> list[psutil.Process]:
    """Return the workers of this test's Ray that run a task or an actor of that name."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found += [process] if f"ray::{name}" in " ".join(process.cmdline()[:1]) else []
    return found


def after(out: Path, shards: int, action: Any) -> threading.Thread:
    """Do something once so many shards are committed."""

    def watch() -> None:
        while len(list(out.glob("images/*.parquet"))) < shards:
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_a_node_that_is_lost_costs_nothing(cluster: Cluster, many: Path, undisturbed: list[Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    node = next(iter(cluster.worker_nodes))
    loss = after(out, 20, lambda: cluster.remove_node(node, allow_graceful=False))
    label.run(config(many, out), ClusterConfig(open_cluster=True, address=cluster.address, shared_filesystem=True))
    loss.join(timeout=1)
    assert not loss.is_alive() and node not in cluster.worker_nodes
    assert rows(out) == undisturbed


def test_a_local_path_is_refused_on_several_nodes_unless_it_is_shared(cluster: Cluster, many: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the cluster has 3 nodes"):
        label.run(config(many, tmp_path / "run"), ClusterConfig(open_cluster=True, address=cluster.address))
    assert not (tmp_path / "run").exists()


def late(number: int) -> int:
    time.sleep(0.5)
    return number


@pytest.mark.long
def test_a_machine_that_falls_silent_does_not_hold_the_tasks_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped, not killed: its sockets stay open and nothing comes from them, as from a machine that is cut off."""
    monkeypatch.setattr(waiting, "ANSWER_S", 5.0)
    soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_timeout_ms": 500}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": soon, **HEAD})
    stopped: list[psutil.Process] = []
    try:
        node = nodes.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
        with connected(ClusterConfig(open_cluster=True, address=nodes.address)) as machines:
            results = fan_out(late, range(40), machines=machines)
            assert [next(results) for _ in range(6)] == list(range(6))
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            stopped = [raylet, *raylet.children(recursive=True)]
            for process in stopped:
                process.suspend()
            assert list(results) == list(range(6, 40))
    finally:
        for process in stopped:
            with suppress(psutil.Error):
                process.kill()
        ray.shutdown()
        nodes.shutdown()


def test_the_code_travels_to_the_workers(cluster: Cluster) -> None:
    """Here the workers would find it installed as well; elsewhere what travelled is all they have: so it must be whole."""
    with connected(ClusterConfig(open_cluster=True, address=cluster.address)):
        places = ray.get(ray.remote(lambda: [place for place in sys.path if "py_modules_files" in place]).remote())
        (travelled,) = [place for place in places if (Path(place) / "fer_pipeline").is_dir()]
        code = "import fer_pipeline.jobs.label.worker as w; from fer_pipeline.models import bundle; "
        code += "bundle.read_bundle('embedded'); print(w.__file__)"
        alone = subprocess.run(
            [sys.executable, "-c", code], cwd="/", env=os.environ | {"PYTHONPATH": travelled}, capture_output=True, text=True
        )
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.startswith(travelled)


def test_killed_workers_cost_nothing(many: Path, undisturbed: list[Any], tmp_path: Path) -> None:
    out, killed = tmp_path / "run", []

    def kill() -> None:
        for _ in range(6):
            for worker in workers_named("label shards")[:1]:
                os.kill(worker.pid, signal.SIGKILL)
                killed.append(worker.pid)
            time.sleep(1)

    loss = after(out, 10, kill)
    label.run(config(many, out), ClusterConfig(num_cpus=2))
    loss.join(timeout=10)
    assert killed and rows(out) == undisturbed


@pytest.mark.long
@pytest.mark.parametrize(("poison", "status"), [(b"crash the decoder", "crashed"), (b"hang the decoder", "timed_out")])
def test_a_record_that_kills_costs_its_own_row_also_where_gpu_actors_label(
    poison: bytes, status: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(shutil.copytree(archive, tmp_path / "source"))
    victim = sorted(source.rglob("hopper-*.jpg"))[0]
    victim.write_bytes(victim.read_bytes() + poison)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "poison"))
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1, **HEAD})
    try:
        label.run(
            config(source, tmp_path / "run", gpus_per_worker=0.5, record_timeout_s=5),
            ClusterConfig(open_cluster=True, address=nodes.address),
        )
    finally:
        ray.shutdown()
        nodes.shutdown()
    found = rows(tmp_path / "run")
    assert len(found) == 36 and [row["uri"] for row in found if row["status"] == status] == [str(victim)]


@pytest.mark.long
def test_killed_gpu_actors_cost_nothing(many: Path, undisturbed: list[Any], tmp_path: Path) -> None:
    out, killed = tmp_path / "run", []
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1, **HEAD})

    def kill() -> None:
        for _ in range(3):
            for actor in workers_named("GpuLabelActor")[:1]:
                os.kill(actor.pid, signal.SIGKILL)
                killed.append(actor.pid)
            time.sleep(1.5)

    try:
        loss = after(out, 20, kill)
        label.run(config(many, out, gpus_per_worker=0.5), ClusterConfig(open_cluster=True, address=nodes.address))
        loss.join(timeout=10)
    finally:
        ray.shutdown()
        nodes.shutdown()
    found = rows(out)
    assert killed and [row["record_id"] for row in found] == [row["record_id"] for row in undisturbed]
    assert [(row["status"], len(row["faces"])) for row in found] == [(row["status"], len(row["faces"])) for row in undisturbed]


@pytest.mark.parametrize("gpus", [3, 1.5])
def test_gpus_that_no_node_has_are_refused_before_any_work(gpus: float, archive: Path, tmp_path: Path) -> None:
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 2, **HEAD})
    try:
        with pytest.raises(UserError, match="--gpus-per-worker"):
            label.run(
                config(archive, tmp_path / "run", gpus_per_worker=gpus), ClusterConfig(open_cluster=True, address=nodes.address)
            )
    finally:
        ray.shutdown()
        nodes.shutdown()
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.parametrize("cores", [1, 2])
def test_a_plan_with_a_gpu_actor_ends_on_a_small_cluster_fresh_and_resumed(
    cores: int, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is a logical resource: torch sees none, so the actor labels on its CPU, by the same way."""
    plain, out = tmp_path / "plain", tmp_path / "run"
    label.run(config(archive, plain, detector="mtcnn", precision="fp32"))
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": cores, "num_gpus": 1, **HEAD})
    try:
        where = ClusterConfig(open_cluster=True, address=nodes.address)
        asked = config(archive, out, detector="mtcnn", precision="fp32", gpus_per_worker=1)
        label.run(asked, where)
        assert labels(out) == labels(plain)
        (out / "_SUCCESS").unlink()
        for shard in (1, 5):
            (out / "images" / f"{shard:06d}.parquet").unlink()
        record = label.run(asked, where)
        assert record.result is not None and record.result.labelled_now == 8
        assert labels(out) == labels(plain)
        with pytest.raises(UserError, match="begun with another device"):
            label.run(config(archive, out, detector="mtcnn", precision="fp32", retry_status=("undecodable",)), where)
        with pytest.raises(UserError, match="more than any node of the cluster has"):
            label.run(config(archive, tmp_path / "two", detector="mtcnn", gpus_per_worker=2), where)
        assert not (tmp_path / "two").exists()
    finally:
        ray.shutdown()
        nodes.shutdown()
