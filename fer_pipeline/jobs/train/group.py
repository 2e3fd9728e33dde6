"""How the ranks of a training find each other: by Ray's choice on a cluster, by a file on this machine where all are on it."""

import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

from fer_pipeline.core import storage
from fer_pipeline.jobs.cluster import LOOPBACK

INTERFACE = "lo0" if platform.system() == "Darwin" else "lo"


@contextmanager
def rendezvous(backend: str) -> Iterator[TorchConfig]:
    """Yield how ranks are to meet. On one machine they listen on loopback only; torch's own store listens to everybody."""
    if {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]} != {LOOPBACK}:
        yield TorchConfig(backend=backend)
        return
    with tempfile.TemporaryDirectory(prefix="fer-ranks-") as folder:
        yield _LoopbackConfig(backend=backend, folder=folder)


@dataclass
class _LoopbackConfig(TorchConfig):
    folder: str = ""
    """For the file by which ranks meet; a new file each time that they are started."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _LoopbackBackend


class _LoopbackBackend(_TorchBackend):
    """Ray's, but for the store by which ranks meet (`torch.distributed.FileStore`)."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_set_torch_distributed_env_vars)
        meeting = (backend_config.backend, storage.join(backend_config.folder, uuid4().hex), backend_config.timeout_s)
        size = len(worker_group)
        ray.get([worker_group.execute_single_async(rank, _join, rank, size, *meeting) for rank in range(size)])


def _join(rank: int, size: int, backend: str, file: str, timeout_s: float) -> None:
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", INTERFACE)
    patience = timedelta(seconds=timeout_s)
    dist.init_process_group(backend, init_method=f"file://{file}", rank=rank, world_size=size, timeout=patience)
