"""A cluster that grows and loses machines while it works: simulated on this one, by nodes that really come and go."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.experimental.internal_kv import _internal_kv_get

from fer_pipeline.base.errors import ClusterError
from fer_pipeline.engine import demand
from fer_pipeline.engine.connect import ClusterConfig
from fer_pipeline.jobs.label import job as label
from tests.conftest import copies, until
from tests.faults.test_nodes import HEAD, STORE_BYTES, config, rows

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
REQUESTS = "autoscaler_resource_request"
"""Under which Ray keeps what its autoscaler is asked for."""


@contextmanager
def cluster_of(**head: Any) -> Iterator[Cluster]:
    nodes = Cluster(initialize_head=True, head_node_args=HEAD | head)
    try:
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


def add(nodes: Cluster, **resources: Any) -> Any:
    return nodes.add_node(object_store_memory=STORE_BYTES, **resources)


def drive(source: Path, out: Path, address: str, *options: str) -> "subprocess.Popen[bytes]":
    """Start a driver; what it says stands beside its run."""
    command = [sys.executable, "-m", "fer_pipeline.cli", "label", str(source), "--out", str(out), "--detector", "none"]
    command += ["--address", address, "--open-cluster", "--shared-filesystem", *options]
    with out.with_suffix(".log").open("w") as said:
        return subprocess.Popen(command, stdout=said, stderr=said)


def shards(out: Path) -> int:
    return len(list(out.glob("images/*.parquet")))


@pytest.mark.parametrize(("losses", "times"), [(3, 40), pytest.param(15, 300, marks=pytest.mark.long)])
def test_a_night_on_machines_that_come_and_go(losses: int, times: int, archive: Path, tmp_path: Path) -> None:
    source, plain, out = copies(archive, tmp_path / "source", times), tmp_path / "plain", tmp_path / "run"
    label.run(config(source, plain, shard_records=8))
    rng, total = random.Random(0), 36 * times // 8
    with cluster_of(num_cpus=1) as nodes:
        up = [add(nodes, num_cpus=1) for _ in range(2)]
        driver = drive(source, out, nodes.address, "--shard-records", "8")
        for loss in range(losses):
            until(lambda: shards(out) > total * (loss + rng.uniform(0.2, 1)) / (losses + 1))  # noqa: B023
            nodes.remove_node(up.pop(0), allow_graceful=rng.random() < 0.3)
            time.sleep(rng.uniform(0, 2))
            up.append(add(nodes, num_cpus=1))
        assert driver.poll() is None, "the run ended before the machines left"
        assert driver.wait(300) == 0
    result = json.loads((out / "run.json").read_text())["result"]
    print(f"{losses} nodes lost, {result['lost']} of {36 * times} records labelled again")
    assert "crashed" not in result["counts"] and rows(out) == rows(plain)


def asked_for() -> list[dict[str, float]]:
    """Return what the autoscaler of the cluster is asked for, from Ray's own store."""
    found: list[dict[str, float]] = json.loads(_internal_kv_get(REQUESTS) or "[]")
    return found


def test_from_no_workers_the_whole_demand_is_asked_for_and_a_late_node_is_used(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with cluster_of(num_cpus=0) as nodes:
        driver = drive(archive, out, nodes.address, "--shard-records", "4")
        ray.init(nodes.address, log_to_driver=False)
        until(lambda: asked_for() == [{"CPU": 1.0}] * 9)  # 36 records, 4 in a shard; before, the listing asks for its own
        add(nodes, num_cpus=2)
        took_s = until(lambda: shards(out))
        print(f"the late node committed a shard after {took_s:.1f} s")
        assert driver.wait(60) == 0
        until(lambda: not asked_for(), limit_s=5)


@pytest.mark.long
def test_a_job_that_dies_withdraws_its_demand_and_not_that_of_others(archive: Path, tmp_path: Path) -> None:
    with cluster_of(num_cpus=0) as nodes:
        first, second = (drive(archive, tmp_path / name, nodes.address, "--shard-records", "4") for name in ("one", "two"))
        ray.init(nodes.address, log_to_driver=False)
        until(lambda: len(asked_for()) == 18)
        os.kill(first.pid, signal.SIGKILL)
        took_s = until(lambda: len(asked_for()) == 9, limit_s=demand.FORGET_S + 30)
        print(f"the demand of the killed job was withdrawn after {took_s:.0f} s")
        second.terminate()
        second.wait(60)


def test_a_gpu_that_comes_late_is_used(archive: Path, tmp_path: Path) -> None:
    source, out = copies(archive, tmp_path / "source", 40), tmp_path / "run"
    with cluster_of(num_cpus=1, num_gpus=1) as nodes:
        driver = drive(source, out, nodes.address, "--shard-records", "4", "--gpus-per-worker", "1")
        until(lambda: shards(out) > 5)
        add(nodes, num_gpus=1)
        took_s = until(lambda: "2 GPU workers" in out.with_suffix(".log").read_text())
        assert driver.wait(120) == 0
    print(f"the late GPU had a classifier after {took_s:.1f} s")
    assert len(rows(out)) == 1440


@ray.remote(num_cpus=0, num_gpus=1)
class Holder:
    """Another job, which keeps a GPU."""

    def holds(self) -> bool:
        return True


@contextmanager
def one_gpu_held_of(gpus: int) -> Iterator[None]:
    """Connect to a cluster of so many GPUs, one of which another job holds."""
    with cluster_of(num_cpus=1, num_gpus=gpus) as nodes:
        ray.init(nodes.address, log_to_driver=False)
        other = Holder.remote()  # type: ignore[attr-defined]
        assert ray.get(other.holds.remote(), timeout=60)
        yield


@pytest.mark.long
def test_a_gpu_that_another_job_holds_is_not_waited_for(archive: Path, tmp_path: Path) -> None:
    with one_gpu_held_of(2):
        label.run(config(archive, tmp_path / "run", gpus_per_worker=1.0), ClusterConfig())
    assert len(rows(tmp_path / "run")) == 36


@pytest.mark.long
def test_gpus_that_are_all_held_are_waited_for_as_long_as_is_said(archive: Path, tmp_path: Path) -> None:
    with one_gpu_held_of(1), pytest.raises(ClusterError, match="no GPU for a worker, which other jobs may hold, for 3 s"):
        label.run(config(archive, tmp_path / "run", gpus_per_worker=1.0), ClusterConfig(wait_s=3))


@pytest.mark.long
def test_a_cluster_that_never_comes_up_is_one_sentence(archive: Path, tmp_path: Path) -> None:
    with cluster_of(num_cpus=0) as nodes, pytest.raises(ClusterError, match="no core for 3 s"):
        where = ClusterConfig(open_cluster=True, address=nodes.address, shared_filesystem=True, wait_s=3)
        label.run(config(archive, tmp_path / "run"), where)
    assert not (tmp_path / "run" / "run.json").exists()
