"""A compressed tar is unpacked once on each node, into its temporary folder, where nothing is left after kills."""

import io
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster

from fer_pipeline.engine.connect import ClusterConfig
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.config import LabelConfig
from tests.faults.test_nodes import HEAD, STORE_BYTES, after, workers_named

pytestmark = pytest.mark.faults
MEMBER_BYTES = 10 * 1024**2
"""A photo, and zeros behind it."""


@pytest.fixture
def temporary(tmp_path: Path) -> list[Path]:
    """The temporary folders of two nodes."""
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    return folders


@pytest.fixture
def cluster(temporary: list[Path]) -> Iterator[Cluster]:
    """Two nodes of two cores each, and a head without."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **HEAD})
    for folder in temporary:
        nodes.add_node(num_cpus=2, object_store_memory=STORE_BYTES, env_vars={"TMPDIR": str(folder)})
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def write_tar(path: Path, members: int) -> None:
    """Write a `.tar.xz` of photos of noise with zeros behind them."""
    rng = np.random.default_rng(0)
    with subprocess.Popen(["xz", "-0", "-T2", "--stdout"], stdin=subprocess.PIPE, stdout=path.open("wb")) as packer:
        with tarfile.open(fileobj=packer.stdin, mode="w|") as tar:
            for number in range(members):
                noise = rng.integers(0, 255, (400, 400, 3), np.uint8)
                photo = cv2.imencode(".jpg", noise)[1].tobytes()
                info = tarfile.TarInfo(f"{number:06d}.jpg")
                info.size = MEMBER_BYTES
                tar.addfile(info, io.BytesIO(photo + bytes(MEMBER_BYTES - len(photo))))
        assert packer.stdin
        packer.stdin.close()
    assert packer.returncode == 0


def copies_made(folder: Path) -> set[str]:
    """Return the identities of the copies that processes of a node made or shared."""
    lines = [line.split() for path in folder.glob("fer-pipeline-unpacked-*/*") for line in path.read_text().splitlines()]
    return {identity for _, _, identity in lines}


def largest(processes: list[psutil.Process], folders: list[Path]) -> tuple[int, int]:
    """Return the largest memory (PSS, in bytes) of a process, and what files without a name take in these folders."""
    memory, disk = 0, dict[int, int]()
    for process in processes:
        try:
            memory = max(memory, process.memory_full_info().pss)
            for link in Path(f"/proc/{process.pid}/fd").iterdir():
                if any(str(link.readlink()).startswith(str(folder)) for folder in folders):
                    disk[link.stat().st_ino] = link.stat().st_blocks * 512
        except (psutil.Error, OSError):
            continue
    return memory, sum(disk.values())


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("members", [40, pytest.param(2000, marks=pytest.mark.long)])
def test_a_compressed_tar_is_unpacked_once_on_each_node_and_kills_leave_nothing(
    members: int, cluster: Cluster, temporary: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    write_tar(tmp_path / "source" / "a.tar.xz", members)
    options = {"source": str(tmp_path / "source"), "detector": "none", "shard_records": 2, "record_timeout_s": 300.0}
    where = ClusterConfig(open_cluster=True, address=cluster.address, shared_filesystem=True)
    out, seen = tmp_path / "killed", list[tuple[int, int]]()

    def kill() -> None:
        seen.append(largest(workers_named(""), temporary))
        made = [copies_made(folder) for folder in temporary]
        assert all(len(one) <= 1 for one in made) and any(made), "each node makes at most one copy"
        for worker in workers_named("label"):
            os.kill(worker.pid, signal.SIGKILL)

    killing, started = after(out, members // 8, kill), time.monotonic()
    label.run(LabelConfig.model_validate(options | {"out": str(out)}), where)
    took_s = time.monotonic() - started
    killing.join(timeout=1)
    assert not killing.is_alive() and seen
    rows = pq.read_table(out / "images").sort_by("record_id")
    assert rows["record_id"].to_pylist() == list(range(members)) and set(rows["status"].to_pylist()) == {"ok"}
    ray.shutdown()
    cluster.shutdown()
    left = sum(path.stat().st_size for folder in temporary for path in folder.rglob("*") if path.is_file())
    assert left < 4096 and largest(list(psutil.process_iter()), temporary)[1] == 0
    packed = (tmp_path / "source" / "a.tar.xz").stat().st_size
    print(
        f"{members * MEMBER_BYTES / 1e9:.1f} GB, packed {packed / 1e6:.0f} MB: {took_s:.0f} s with a kill of all workers; on two "
        f"nodes {seen[0][1] / 1e6:.0f} MB of disk, {seen[0][0] / 1e6:.0f} MB of memory in the largest process, {left} bytes left"
    )
