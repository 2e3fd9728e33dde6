"""The targets of the loss, with votes and teachers, and the random numbers of an epoch."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fer_pipeline.models.labelled_images import LabelledImages
from fer_pipeline.models.training.config import TrainingConfig


def soft_targets(batch: LabelledImages, classes: int, config: TrainingConfig, taught: Tensor | None = None) -> Tensor:
    """Return the targets of the outputs, float32 (n, classes), or (n, classes + k) with auxiliary votes (n, k) appended.

    `taught` are teachers' probabilities (n, classes), which replace the share `teacher_weight` of the target.
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
    """The random numbers of an epoch on one rank. They are repeatable and do not depend on the device."""

    def __init__(self, seed: int, rank: int) -> None:
        self.generator = torch.Generator().manual_seed(seed * 4096 + rank)
        self._numpy_generator = np.random.default_rng((seed, rank))

    def beta(self, alpha: float, count: int) -> Tensor:
        """Return `count` numbers drawn from Beta(alpha, alpha)."""
        return torch.from_numpy(self._numpy_generator.beta(alpha, alpha, count).astype(np.float32))
