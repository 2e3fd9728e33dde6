"""The optimiser and its learning rate schedule."""

import torch
from torch import nn

from fer_pipeline.models.training.config import TrainingConfig


def make_optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    parameters, rate, decay = network.parameters(), config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=config.momentum, nesterov=config.momentum > 0, weight_decay=decay)
    adam = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return adam(parameters, rate, weight_decay=decay)


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainingConfig, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the schedule of the learning rate over the `steps` of a whole training."""
    if config.schedule == "one_cycle":
        total = steps + 1
        warmup = 0.0 if config.warmup * total == 1 else config.warmup  # torch divides by zero for a warmup of one step
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.learning_rate, total_steps=total, pct_start=warmup, cycle_momentum=False
        )
    if config.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
