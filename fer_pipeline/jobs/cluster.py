"""The Ray cluster that a job runs on: one of this machine's own, or the one at an address."""

import fcntl
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from types import FrameType
from typing import Any, cast

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is imported: nothing is sent home
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # clients do not follow their cluster by themselves

import psutil
import ray
from pydantic import Field
from ray._private import parameter, ray_constants, services
from ray._private.state import state

import fer_pipeline
from fer_pipeline.core import storage
from fer_pipeline.core.config import Config
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.outcome import JOB

LOCAL_OBJECT_STORE_BYTES = 512 * 1024**2
LOOPBACK, NO_CLUSTER = "127.0.0.1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
AUTH_MODE = "RAY_AUTH_MODE"
PREFIX, LOCK, LONGEST_PATH = "fer-ray-", "lock", 12
"""Of the folder of Ray's files, of the file that its process keeps locked, the longest path below which sockets find room."""
RAYS_PROCESSES = ("ray", "gcs_server")
SETTLED_S = 60
"""Age from which a folder whose lock is free is nobody's."""


class ClusterConfig(Config):
    """Where a job runs; never changes a result."""

    address: str | None = None
    """A Ray cluster (`auto`, `host:6379`, `ray://host:10001`); by default $RAY_ADDRESS, which a Ray job has. Without it Ray
    starts on this machine."""
    num_cpus: int | None = Field(None, ge=1)
    """Cores to use when Ray starts on this machine; all of them by default."""
    wait_s: float = Field(600.0, ge=0)
    """How long machines that an autoscaler can bring, and the start of a submitted job, are waited for."""
    silent_s: float = Field(300.0, gt=0)
    """How long a head to which a job was submitted may be silent before the job is given up."""
    open_cluster: bool = False
    """Allows a cluster that other machines reach and that asks nobody for a token."""
    shared_filesystem: bool = False
    """Says that local paths mean the same files on every node of the cluster."""

    @property
    def cluster(self) -> str | None:
        """The address of the cluster; None: Ray starts on this machine."""
        return self.address or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def connected(config: ClusterConfig, *urls: str) -> Iterator[None]:
    """Connect to the cluster for the duration of a job; the code travels to its nodes.

    Raise UserError where it cannot be reached, or where one of `urls` is a local path and the cluster has several nodes.
    A process that is connected to Ray already (as a Ray job is) stays so.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its progress is ours to show
    if ray.is_initialized():
        _refuse_local_paths(config, *urls)
        yield
        return
    with ExitStack() as stack:
        ray_has_started = stack.enter_context(_ending_in_order())
        try:
            if config.cluster:
                stack.callback(ray.shutdown)  # also of a start that a signal breaks off
                # A Ray job has brought its code; any other driver's travels with it.
                environment = None if JOB in os.environ else {"py_modules": [str(Path(fer_pipeline.__file__).parent)]}
                ray.init(config.cluster, runtime_env=environment, logging_level=logging.ERROR, log_to_driver=False)
            else:
                folder = stack.enter_context(_private_folder())
                stack.callback(_end_local_ray, set(psutil.Process().children(recursive=True)))
                with _closed_doors():
                    ray.init(
                        address="local",
                        num_cpus=config.num_cpus,
                        include_dashboard=False,
                        object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                        logging_level=logging.ERROR,
                        log_to_driver=False,
                        _temp_dir=folder,
                        _node_ip_address=LOOPBACK,
                    )
        except (ConnectionError, TimeoutError, ValueError) as error:
            raise UserError(f"The Ray cluster at '{config.cluster}' cannot be reached: {error}") from error
        ray_has_started()
        _refuse_local_paths(config, *urls)
        _refuse_open_cluster(config)
        yield


def _end_local_ray(others: Container[psutil.Process]) -> None:
    """Shut Ray down and end what it leaves: its agents live on for a minute, and all of it where its start was broken off.

    `others`: children that were there before it, such as the nodes of another Ray.
    """
    started = [process for process in psutil.Process().children(recursive=True) if process not in others]
    rays = [process for process in started if _name(process).startswith(RAYS_PROCESSES)]
    ray.shutdown()
    for process in rays:
        with suppress(psutil.Error):  # told by its time of start, too
            process.kill()


def _name(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return process.name()
    return ""


@contextmanager
def _ending_in_order() -> Iterator[Callable[[], None]]:
    """Have SIGTERM raise KeyboardInterrupt, the one exception that Ray lets through; then end as the process ends otherwise.

    Yield what puts Ray's own way off, which prints a stack and exits with 15: to be called when Ray has started.
    """
    outer, received = signal.getsignal(signal.SIGTERM), list[int]()
    if threading.current_thread() is not threading.main_thread() or outer in (None, signal.SIG_IGN):
        yield lambda: None
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    def install() -> None:
        signal.signal(signal.SIGTERM, interrupt)

    install()
    try:
        yield install
    except SystemExit as ended:
        if ended.code != signal.SIGTERM:
            raise
        received.append(signal.SIGTERM)
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGTERM, outer)
        if received:
            signal.raise_signal(signal.SIGTERM)  # what the command line, Prefect or the system makes of it


@contextmanager
def _private_folder() -> Iterator[str]:
    """Make a folder for Ray's files that only this user can read, and remove it, and those that killed processes left."""
    place = Path(tempfile.gettempdir())
    place = place if len(str(place)) <= LONGEST_PATH else Path("/tmp")
    for left in place.glob(f"{PREFIX}*"):
        with suppress(OSError):
            _remove_if_left(left)
    folder = tempfile.mkdtemp(prefix=PREFIX, dir=place)
    with Path(folder, LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield storage.join(folder, "ray")  # Ray opens its own folder to everybody, which the one above it does not
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_if_left(folder: Path) -> None:
    """Remove a folder of Ray's files whose process was killed. Raise OSError for any other, such as a neighbour's of that name.

    Whoever shares the temporary folder may put anything there: what is not ours is not opened, and a pipe is not waited for.
    """
    if (about := folder.lstat()).st_uid != os.getuid() or not S_ISDIR(about.st_mode):
        return
    lock = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        about = os.fstat(lock)
        if S_ISREG(about.st_mode) and about.st_uid == os.getuid() and time.time() - about.st_mtime > SETTLED_S:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its process lives, in whatever container, where this fails
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


@contextmanager
def _closed_doors() -> Iterator[None]:
    """Start Ray so that it listens on loopback only, that only this user can read what it writes, its token above all, and that
    it asks no cloud whose machine this is, which its dashboard does even when it is to report nothing.

    Ray binds to loopback where it is told that machines do not form clusters, as on Windows and macOS. What workers write for
    the user has the user's umask (`storage.UMASK`). The agent of a second Ray would wait 3 s for the port of the first one's.
    """
    umask, start_dashboard, of_ray = os.umask(0o077), services.start_api_server, cast("Any", parameter)
    parameters = of_ray.RayParams
    of_ray.RayParams = partial(parameters, dashboard_agent_listen_port=0)
    os.environ |= {storage.UMASK: f"{umask:o}", NO_CLUSTER: "0"}
    ray_constants.ENABLE_RAY_CLUSTER = False
    services.start_api_server = lambda *_, **__: (None, None)
    with suppress(OSError):
        (Path.home() / ".ray" / "auth_token").chmod(0o600)
    try:
        yield
    finally:
        os.umask(umask)
        ray_constants.ENABLE_RAY_CLUSTER = True
        services.start_api_server, of_ray.RayParams = start_dashboard, parameters
        for name in (storage.UMASK, NO_CLUSTER):
            os.environ.pop(name, None)


def node_types() -> list[Any]:
    """Return the types of node that the cluster's autoscaler can start (`NodeGroupConfig`), as far as it has said."""
    try:
        config = state.get_cluster_config()
    except ray.exceptions.RaySystemError:  # a Ray client (`ray://`) has no view of it
        return []
    return list(config.node_group_configs) if config else []


def _refuse_open_cluster(config: ClusterConfig) -> None:
    """Raise UserError for a cluster that lets everybody in, where anybody else could reach it.

    What counts is how its nodes were started: one without authentication takes a driver that has a token, too.
    """
    addresses = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if config.open_cluster or not config.cluster or all(ip_address(one).is_loopback for one in addresses):
        return
    mode = os.environ.get(AUTH_MODE) if JOB in os.environ else ray.get(ray.remote(num_cpus=0)(_auth_mode).remote())
    if mode != "token":
        raise UserError(
            f"The cluster at '{config.cluster}' lets in everybody who reaches {min(addresses)}, to run any code there: start its "
            f"nodes with {AUTH_MODE}=token (docs/operations.md), or say --open-cluster if nobody else can reach them."
        )


def _auth_mode() -> str | None:
    """Return what the node that this runs on asks of those who reach it."""
    return os.environ.get(AUTH_MODE)


def _refuse_local_paths(config: ClusterConfig, *urls: str) -> None:
    """Raise UserError for a path that some node of the cluster would not have, those that an autoscaler may bring among them."""
    local = [url for url in urls if storage.is_local(url)]
    if not local or config.shared_filesystem:
        return
    nodes = sum(node["Alive"] for node in ray.nodes())
    if nodes > 1 or any(group.max_count for group in node_types()):
        has = f"the cluster has {nodes} nodes" if nodes > 1 else "the cluster's autoscaler brings others"
        raise UserError(
            f"'{local[0]}' is a path on this machine, but {has}: use s3://, or say --shared-filesystem if every node has it."
        )
