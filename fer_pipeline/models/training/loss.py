"""The loss: what the outputs of a batch are compared with, and how votes and mixup enter."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fer_pipeline.models.labelled_images import LabelledImages
from fer_pipeline.models.training.config import TrainingConfig


def soft_targets(batch: LabelledImages, classes: int, config: TrainingConfig, taught: Tensor | None = None) -> Tensor:
    """Return what the outputs shall become, float32 (n, classes), and the votes (n, k) behind it where they are auxiliary.

    `taught`: teachers' probabilities (n, classes), which take their share of the target.
    """
    targets = F.one_hot(batch.labels, classes).float()
    if config.votes == "target":
        share = config.votes_weight * (batch.votes.sum(1, keepdim=True) > 0)
        targets = (1 - share) * targets + share * batch.votes
    targets = (1 - config.label_smoothing) * targets + config.label_smoothing / classes
    if taught is not None:
        targets = torch.lerp(targets, taught, config.teacher_weight)
    return torch.cat([targets, batch.votes], 1) if config.votes == "auxiliary" else targets


class Draws:
    """The random numbers of an epoch on one rank: repeatable, and the same on every kind of device."""

    def __init__(self, seed: int, rank: int) -> None:
        self.generator = torch.Generator().manual_seed(seed * 4096 + rank)
        self._mixing = np.random.default_rng((seed, rank))

    def beta(self, alpha: float, count: int) -> Tensor:
        """Return `count` numbers of the distribution Beta(alpha, alpha)."""
        return torch.from_numpy(self._mixing.beta(alpha, alpha, count).astype(np.float32))
