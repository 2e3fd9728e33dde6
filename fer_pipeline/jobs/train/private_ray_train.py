"""The private interfaces of Ray Train that training uses, checked against Ray 2.60.

On a cluster Ray chooses how ranks find each other; if all run on this machine, they use a file.
"""

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
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from fer_pipeline.base import storage
from fer_pipeline.engine.private_ray import LOOPBACK

INTERFACE = "lo0" if platform.system() == "Darwin" else "lo"


@contextmanager
def rendezvous(backend: str) -> Iterator[TorchConfig]:
    """Yield how ranks find each other. On one machine they listen on loopback only; torch's store listens on all interfaces."""
    if {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]} != {LOOPBACK}:
        yield TorchConfig(backend=backend)
        return
    with tempfile.TemporaryDirectory(prefix="fer-ranks-") as folder:
        yield _LoopbackConfig(backend=backend, folder=folder)


@dataclass
class _LoopbackConfig(TorchConfig):
    folder: str = ""
    """Folder of the file through which ranks find each other; each start uses a new file."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _LoopbackBackend


class _LoopbackBackend(_TorchBackend):
    """Ray's backend, but ranks find each other through a `torch.distributed.FileStore`."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_set_torch_distributed_env_vars)
        meeting = (backend_config.backend, storage.join(backend_config.folder, uuid4().hex), backend_config.timeout_s)
        size = len(worker_group)
        ray.get([worker_group.execute_single_async(rank, _join, rank, size, *meeting) for rank in range(size)])


def _join(rank: int, size: int, backend: str, file: str, timeout_s: float) -> None:
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", INTERFACE)
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(backend, init_method=f"file://{file}", rank=rank, world_size=size, timeout=timeout)


class Trainer(TorchTrainer):
    """Ray's trainer without its SIGINT handler, which hangs or exits with 0; the command's own handler stops it cleanly."""

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


class LocalTrainer(Trainer):
    """The trainer on a Ray that this process started, whose placement groups end with it.

    Ray's cleaner of placement groups is left out: it asks a dashboard, which such a Ray lacks, and delays the end of each
    training by 12 s (Ray 2.60).
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        return [one for one in callbacks if not isinstance(one, PlacementGroupCleanerCallback)]
