"""The private interfaces of Ray that this project uses, checked against Ray 2.60; see `jobs/train/` for those of Ray Train."""

import ctypes
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import ray
from ray._private import parameter, ray_constants, services
from ray._private.state import state

from fer_pipeline.base import storage

LOOPBACK = "127.0.0.1"
LOCAL_OBJECT_STORE_BYTES = 512 * 1024**2
_ALLOW_CLUSTER_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def start_on_loopback(folder: str, num_cpus: int | None) -> None:
    """Start Ray on this machine, with its files in `folder`, so that no other machine can reach it."""
    with _private_to_this_user():
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _temp_dir=folder,
            _node_ip_address=LOOPBACK,
        )


@contextmanager
def _private_to_this_user() -> Iterator[None]:
    """Make a Ray that starts in this context listen on loopback only, keep its files private, and query no cloud metadata.

    Ray binds to loopback if it does not support clusters, as on Windows and macOS. Its dashboard queries cloud metadata even if
    usage reports are off, so it does not start. The agent of a second Ray would wait 3 s for the port of the first agent.
    Workers write the user's files with the user's umask (`storage.UMASK`).
    """
    umask, start_dashboard, of_ray = os.umask(0o077), services.start_api_server, cast("Any", parameter)
    parameters = of_ray.RayParams
    of_ray.RayParams = partial(parameters, dashboard_agent_listen_port=0, no_monitor=True, include_log_monitor=False)
    os.environ |= {storage.UMASK: f"{umask:o}", _ALLOW_CLUSTER_VARIABLE: "0"}
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
        for name in (storage.UMASK, _ALLOW_CLUSTER_VARIABLE):
            os.environ.pop(name, None)


def install_signal_handlers() -> None:
    """Have Ray install its handlers of signals now. It does so once in a process, else while it connects.

    There they would replace this project's for about a second, and print a stack for SIGTERM.
    """
    with suppress(AttributeError, OSError):  # without it, only that second has them
        ctypes.CDLL(ray._raylet.__file__)._ZN3ray6RayLog27InstallFailureSignalHandlerEPKcb(None, True)


def node_types() -> list[Any]:
    """Return the node types that the cluster's autoscaler can start (`NodeGroupConfig`); empty if they are unknown."""
    try:
        config = state.get_cluster_config()
    except ray.exceptions.RaySystemError:  # a Ray client (`ray://`) cannot see it
        return []
    return list(config.node_group_configs) if config else []


def read_log_file(client: Any, node_id: str, name: str, timeout_s: float) -> Any:
    """Request a file in a node's log folder from the head of a job client; return the response (`requests.Response`)."""
    asked = {"node_id": node_id, "filename": name, "lines": "-1"}
    return client._do_request("GET", "/api/v0/logs/file", params=asked, timeout=timeout_s)
