"""Communication between the ranks of a torch.distributed group. A process without a group is rank 0 of 1."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of ranks."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def reduce_over_ranks(values: Tensor, how: Any) -> Tensor:
    if dist.is_initialized():
        values = values.cuda() if dist.get_backend() == "nccl" else values.cpu()
        dist.all_reduce(values, how)
    return values.cpu()


def sum_over_ranks(*values: float) -> list[float]:
    """Return the sum of each value over all ranks."""
    return [float(value) for value in reduce_over_ranks(torch.tensor(values, dtype=torch.float64), dist.ReduceOp.SUM)]


def share_buffers(network: nn.Module) -> None:
    """Copy the batch statistics of rank 0 to every rank, because the weights of rank 0 are kept."""
    if dist.is_initialized():
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)
