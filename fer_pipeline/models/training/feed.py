"""Feeds: sources of the batches of a training."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fer_pipeline.models.labelled_images import LabelledImages
from fer_pipeline.models.training.ranks import rank_and_world


class Feed(Protocol):
    """A training split. `batches` yields this rank's share of each step of an epoch, equally many on every rank."""

    def __len__(self) -> int:
        """Return the number of images in an epoch over all ranks."""
        ...

    def batches(self, seed: int) -> Iterator[LabelledImages]: ...


@dataclass(frozen=True)
class Resident:
    """A split in the memory of the device. Every rank holds all of it."""

    data: LabelledImages
    batch_size: int
    balance: float = 0.0
    """Power of the inverse class frequency for sampling with replacement: at 1 all classes are equally frequent, 0 is off."""

    def __len__(self) -> int:
        return len(self.data)

    def batches(self, seed: int) -> Iterator[LabelledImages]:
        """Yield this rank's part of each global batch. All ranks use the same order.

        A smaller last batch is skipped unless it is the only one.
        """
        rank, world = rank_and_world()
        order = self._order(torch.Generator().manual_seed(seed))
        for start in range(0, max(1, len(order) - self.batch_size + 1), self.batch_size):
            batch = order[start : start + self.batch_size]
            mine = batch[rank * len(batch) // world : (rank + 1) * len(batch) // world]
            yield self.data[mine.to(self.data.labels.device)]

    def _order(self, generator: torch.Generator) -> Tensor:
        if not self.balance:
            return torch.randperm(len(self), generator=generator)
        labels = self.data.labels.cpu()
        weight = labels.bincount()[labels].double() ** -self.balance
        return torch.multinomial(weight, len(self), replacement=True, generator=generator)
