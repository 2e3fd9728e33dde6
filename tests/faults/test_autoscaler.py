"""Ray's own autoscaler brings machines to a run that begins with none: simulated nodes, started by its test provider.

It runs in a PID namespace of its own, which ends all that it started. Needs root.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.test_nodes import rows

pytestmark = [
    pytest.mark.faults,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="a PID namespace needs root"),
]
HEAD_ID = "f" * 51 + "00000"
CONFIG = {
    "cluster_name": "test", "max_workers": 8, "idle_timeout_minutes": 0.1, "head_node_type": "ray.head.default", "docker": {},
    "auth": {"ssh_user": "nobody"}, "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False,
    "provider": {
        "type": "external", "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "disable_node_updaters": True, "disable_launch_config_check": True, "launch_multiple": True, "head_node_id": HEAD_ID,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1, "object_store_memory": 10**8}, "node_config": {}, "min_workers": 0, "max_workers": 3},
    },
    **{f"{name}commands": [] for name in (
        "initialization_", "setup_", "head_setup_", "worker_setup_", "head_start_ray_", "worker_start_ray_"
    )},
}  # fmt: skip
SCRIPT = """
import json, subprocess, sys, threading, time
from pathlib import Path
config, source, out, temporary = sys.argv[1:]
ray = str(Path(sys.executable).parent / "ray")
start = ["start", "--head", "--num-cpus=0", "--include-dashboard=false", "--object-store-memory=100000000"]
subprocess.run([ray, *start, f"--autoscaling-config={config}", f"--temp-dir={temporary}"], check=True, stdout=subprocess.DEVNULL)
options = ["--address", "auto", "--open-cluster", "--shared-filesystem", "--detector", "none", "--shard-records", "4"]
command = [sys.executable, "-m", "fer_pipeline.cli", "label", source, "--out", out, *options]
label = subprocess.Popen(command, stdout=subprocess.DEVNULL)
import ray
ray.init("auto", log_to_driver=False, logging_level="ERROR")
most, code = 0, None
while (code := label.poll()) is None:
    most = max(most, sum(node["Alive"] for node in ray.nodes()) - 1)
    time.sleep(0.2)
until = time.monotonic() + 120
while sum(node["Alive"] for node in ray.nodes()) > 1 and time.monotonic() < until:
    time.sleep(0.5)
print(json.dumps({"code": code, "most": most, "left": sum(node["Alive"] for node in ray.nodes()) - 1}), flush=True)
"""


def test_a_run_gets_machines_from_an_autoscaler_and_gives_them_back(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text(json.dumps(CONFIG))
    (tmp_path / "script.py").write_text(SCRIPT)
    names = {"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
    environment = os.environ | {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        **names,
    }
    namespace = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    arguments = [str(tmp_path / "cluster.json"), str(archive), str(tmp_path / "run"), f"/tmp/ray-scaled-{os.getpid()}"]
    command = [*namespace, sys.executable, str(tmp_path / "script.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"at most {found['most']} machines came, {found['left']} are left")
    assert found["code"] == 0 and found["most"] > 1 and found["left"] == 0
    assert len(rows(tmp_path / "run")) == 36
