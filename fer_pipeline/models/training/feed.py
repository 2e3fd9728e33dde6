"""Feeds: where the batches of a training come from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fer_pipeline.models.labelled_images import LabelledImages
from fer_pipeline.models.training.ranks import rank_and_world


class Feed(Protocol):
    """A training split: `batches` yields this rank's share of each step of an epoch, the same number on every rank."""

    def __len__(self) -> int:
        """Return the number of images of an epoch, all ranks together."""
        ...

    def batches(self, seed: int) -> Iterator[LabelledImages]: ...


@dataclass(frozen=True)
class Resident:
    """A split that is held on the device as a whole; every rank holds all of it."""

    data: LabelledImages
    batch_size: int
    balance: float = 0.0
    """Draw images, with replacement, by their class's inverse frequency to this power: at 1 every class comes equally often."""

    def __len__(self) -> int:
        return len(self.data)

    def batches(self, seed: int) -> Iterator[LabelledImages]:
        """Yield this rank's stretch of each global batch, of one order for all ranks.

        The last, smaller batch is left out unless it is the only one.
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
