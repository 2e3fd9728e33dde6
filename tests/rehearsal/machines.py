"""Machines of a rehearsal: each an address, processes, a home and Ray's folder of its own, on a network that has nobody else.

The rehearsal itself runs in a network, process and mount namespace (`make rehearsal`); a machine is one more of each. It is lost
as machines are: its link goes down and its processes are killed, so that nobody hears of it.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
NETWORK, OPERATIONS, HEAD = "10.77.0", "10.77.0.1", "10.77.0.2"
AWS = yaml.safe_load((ROOT / "cluster" / "aws.yaml").read_text())
AUTOSCALER = " --autoscaling-config=~/ray_bootstrap_config.yaml"
"""The one option that needs AWS; machines come here as the test starts them."""
HEAD_COMMANDS = [line.strip().replace(AUTOSCALER, "") for line in AWS["head_start_ray_commands"]]
WORKER_COMMANDS = [line.strip() for line in AWS["worker_start_ray_commands"]]


def alone() -> bool:
    """Tell whether this process is in a network of its own: it has no route to anywhere."""
    return len(Path("/proc/self/net/route").read_text().splitlines()) <= 1


def make_network() -> None:
    """Make the bridge between the machines; this process is `OPERATIONS` on it."""
    Path("/run/netns").mkdir(exist_ok=True)
    for command in (
        "mount -t tmpfs tmpfs /run/netns",
        "mount -t sysfs sysfs /sys",
        "ip link set lo up",
        "ip link add bridge type bridge",
        f"ip address add {OPERATIONS}/24 dev bridge",
        "ip link set bridge up",
    ):
        subprocess.run(shlex.split(command), check=True)


class Machine:
    """One machine, which runs the commands of the cluster file."""

    def __init__(self, name: str, address: str, folder: Path, token: str) -> None:
        self.name, self.folder = name, folder / name
        self.process: subprocess.Popen[bytes] | None = None
        for place in ("home/.ray", "ray"):
            (self.folder / place).mkdir(parents=True)
        secret = self.folder / "home" / ".ray" / "auth_token"  # as file_mounts brings it
        secret.touch(0o600)
        secret.write_text(token)
        for command in (
            f"ip netns add {name}",
            f"ip link add {name} type veth peer name eth0 netns {name}",
            f"ip link set {name} master bridge",
            f"ip link set {name} up",
            f"ip -n {name} link set lo up",
            f"ip -n {name} address add {address}/24 dev eth0",
            f"ip -n {name} link set eth0 up",
            f"ip -n {name} route add default via {OPERATIONS}",  # Ray asks which address leads there
        ):
            subprocess.run(shlex.split(command), check=True)

    def start(self, commands: list[str], environment: dict[str, str], cores: int) -> None:
        """Run the commands, one after another, and stay up."""
        environment = environment | {
            "HOME": str(self.folder / "home"),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_HEAD_IP": HEAD,
            "RAY_OVERRIDE_RESOURCES": f'{{"CPU": {cores}}}',  # as Ray's launcher says what a node type has
        }
        own = f"mkdir -p /tmp/ray && mount --bind {self.folder}/ray /tmp/ray && mount -t tmpfs tmpfs /dev/shm"
        script = "\n".join([own, "set -x", *commands, "sleep infinity"])
        alone = ["ip", "netns", "exec", self.name, "unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
        with self.log.open("w") as said:
            self.process = subprocess.Popen(
                [*alone, "bash", "-c", script], env=environment, stdout=said, stderr=said, cwd=self.folder
            )

    @property
    def log(self) -> Path:
        """What the commands said."""
        return self.folder / "log"

    def listening(self) -> set[tuple[str, str, str]]:
        """Return address, port and process of everything that listens."""
        out = subprocess.run(["ip", "netns", "exec", self.name, "ss", "-Htlnp"], capture_output=True, text=True).stdout
        found = set()
        for line in out.splitlines():
            fields = line.split()
            address, _, port = fields[3].rpartition(":")
            process = fields[5].split('"')[1] if len(fields) > 5 else "?"
            found.add((address.strip("[]"), port, process))
        return found

    def lose(self) -> None:
        """Cut the machine off, then end it."""
        subprocess.run(["ip", "link", "set", self.name, "down"], check=True)
        self.end()

    def end(self) -> None:
        """Kill all its processes, where it was started."""
        if self.process:
            self.process.kill()
            self.process.wait()
