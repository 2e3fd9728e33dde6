"""The Ray cluster that a job runs on: one of this machine's own, or the one at an address."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is imported: nothing is sent home
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from pydantic import Field

import fer_pipeline
from fer_pipeline.core import storage
from fer_pipeline.core.config import Config
from fer_pipeline.core.errors import UserError

LOCAL_OBJECT_STORE_BYTES = 512 * 1024**2


class ClusterConfig(Config):
    """Where a job runs; never changes a result."""

    address: str | None = None
    """A Ray cluster (`auto`, `host:6379`, `ray://host:10001`). Without it Ray starts on this machine."""
    num_cpus: int | None = Field(None, ge=1)
    """Cores to use when Ray starts on this machine; all of them by default."""
    shared_filesystem: bool = False
    """Says that local paths mean the same files on every node of the cluster."""


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
    try:
        if config.address:
            package = str(Path(fer_pipeline.__file__).parent)
            ray.init(config.address, runtime_env={"py_modules": [package]}, logging_level=logging.ERROR, log_to_driver=False)
        else:
            ray.init(
                address="local",
                num_cpus=config.num_cpus,
                include_dashboard=False,
                object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    except (ConnectionError, TimeoutError, ValueError) as error:
        raise UserError(f"The Ray cluster at '{config.address}' cannot be reached: {error}") from error
    try:
        _refuse_local_paths(config, *urls)
        yield
    finally:
        ray.shutdown()


def _refuse_local_paths(config: ClusterConfig, *urls: str) -> None:
    local = [url for url in urls if storage.is_local(url)]
    nodes = sum(node["Alive"] for node in ray.nodes())
    if local and nodes > 1 and not config.shared_filesystem:
        raise UserError(
            f"'{local[0]}' is a path on this machine, but the cluster has {nodes} nodes: "
            "use s3://, or say --shared-filesystem if every node has it."
        )
