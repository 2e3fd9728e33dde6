"""The Ray cluster that a job runs on: a Ray that starts on this machine, or the cluster at an address."""

import logging
import os
import tempfile
from collections.abc import Container, Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import psutil
import ray
from pydantic import Field

import fer_pipeline
from fer_pipeline.base import storage
from fer_pipeline.base.config import Config
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.outcome import JOB
from fer_pipeline.base.stopping import interrupting_on_sigterm
from fer_pipeline.base.temporary import temporary_folder
from fer_pipeline.engine.demand import Demand
from fer_pipeline.engine.machines import Machines
from fer_pipeline.engine.private_ray import install_signal_handlers, node_types, start_on_loopback

AUTH_MODE = "RAY_AUTH_MODE"
LONGEST_PATH = 12
"""With a longer path of the temporary folder, the paths of Ray's sockets become too long."""


class ClusterConfig(Config):
    """Where a job runs. These settings never change a result."""

    address: str | None = None
    """A Ray cluster (`auto`, `host:6379`, `ray://host:10001`); by default $RAY_ADDRESS, which is set in a Ray job. Without an
    address, Ray starts on this machine."""
    num_cpus: int | None = Field(None, ge=1)
    """Cores to use when Ray starts on this machine; by default all of them."""
    wait_s: float = Field(600.0, ge=0)
    """How long to wait, in seconds, for machines an autoscaler can start. The start of a submitted job has the same limit."""
    silent_s: float = Field(300.0, gt=0)
    """How long, in seconds, the head may be silent before a submitted job is abandoned."""
    open_cluster: bool = False
    """Allow a cluster that other machines can reach and that requires no token."""
    shared_filesystem: bool = False
    """Local paths mean the same files on every node of the cluster."""

    @property
    def cluster(self) -> str | None:
        """The address of the cluster; None if Ray starts on this machine."""
        return self.address or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def connected(config: ClusterConfig, *urls: str) -> Iterator[Machines]:
    """Connect to the cluster for the duration of a job, and yield its machines; Ray copies the code to its nodes.

    Raise UserError if it cannot be reached, or if one of `urls` is a local path and the cluster has several nodes.
    A process that is connected to Ray already stays connected.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # this project shows the progress
    if ray.is_initialized():
        _refuse_local_paths(config, *urls)
        with _machines(config) as machines:
            yield machines
        return
    install_signal_handlers()
    with ExitStack() as stack:
        ray_has_started = stack.enter_context(interrupting_on_sigterm())
        try:
            if config.cluster:
                stack.callback(ray.shutdown)  # runs even if a signal interrupts the start
                # A Ray job was submitted with its code; any other driver sends it.
                environment = None if JOB in os.environ else {"py_modules": [str(Path(fer_pipeline.__file__).parent)]}
                ray.init(config.cluster, runtime_env=environment, logging_level=logging.ERROR, log_to_driver=False)
            else:
                folder = stack.enter_context(_private_folder())
                stack.callback(_stop_local_ray, set(psutil.Process().children(recursive=True)))
                start_on_loopback(folder, config.num_cpus)
        except (ConnectionError, TimeoutError, ValueError) as error:
            raise UserError(f"The Ray cluster at '{config.cluster}' cannot be reached: {error}") from error
        ray_has_started()
        _refuse_local_paths(config, *urls)
        _refuse_open_cluster(config)
        yield stack.enter_context(_machines(config))


@contextmanager
def _machines(config: ClusterConfig) -> Iterator[Machines]:
    """Yield the machines of a job; at its end, withdraw its requests to the autoscaler."""
    if not config.cluster:
        yield Machines(config.wait_s)
        return
    demand = Demand()
    try:
        yield Machines(config.wait_s, demand)
    finally:
        demand.withdraw()


def _stop_local_ray(others: Container[psutil.Process]) -> None:
    """Shut Ray down and kill its remaining processes.

    These are normally only agents, which would live for another minute; after an interrupted start, all. `others`: child
    processes that existed before, such as the nodes of another Ray.
    """
    started = [process for process in psutil.Process().children(recursive=True) if process not in others]
    of_ray = [process for process in started if _name(process).startswith(("ray", "gcs_server"))]
    ray.shutdown()
    for process in of_ray:
        with suppress(psutil.Error):  # psutil compares the start time, so it never kills another process with this id
            process.kill()


def _name(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return process.name()
    return ""


@contextmanager
def _private_folder() -> Iterator[str]:
    """Yield a folder for Ray's files that only this user can read."""
    place = Path(tempfile.gettempdir())
    place = place if len(str(place)) <= LONGEST_PATH else Path("/tmp")
    with temporary_folder(place, "fer-ray-") as folder:
        yield storage.join(str(folder), "ray")  # Ray lets all users read its own folder, but they cannot enter its parent


def _refuse_open_cluster(config: ClusterConfig) -> None:
    """Raise UserError for a cluster that other machines can reach and that requires no token.

    What counts is how its nodes were started: a node without authentication also accepts a driver that has a token.
    """
    addresses = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if config.open_cluster or not config.cluster or all(ip_address(one).is_loopback for one in addresses):
        return
    mode = os.environ.get(AUTH_MODE) if JOB in os.environ else ray.get(ray.remote(num_cpus=0)(_auth_mode).remote())
    if mode != "token":
        raise UserError(
            f"The cluster at '{config.cluster}' runs any code from anyone who can reach {min(addresses)}: start its nodes with "
            f"{AUTH_MODE}=token (docs/operations.md), or use --open-cluster if nobody else can reach them."
        )


def _auth_mode() -> str | None:
    """Return the authentication mode of the node that runs this."""
    return os.environ.get(AUTH_MODE)


def _refuse_local_paths(config: ClusterConfig, *urls: str) -> None:
    """Raise UserError for a local path if the cluster has other nodes, or its autoscaler can start some."""
    local = [url for url in urls if storage.is_local(url)]
    if not local or config.shared_filesystem:
        return
    nodes = sum(node["Alive"] for node in ray.nodes())
    if nodes > 1 or any(group.max_count for group in node_types()):
        has = f"the cluster has {nodes} nodes" if nodes > 1 else "the cluster's autoscaler can start other nodes"
        raise UserError(
            f"'{local[0]}' is a path on this machine, but {has}: use s3://, or --shared-filesystem if every node has this path."
        )
