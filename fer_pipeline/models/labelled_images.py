"""A batch of labelled images, which datasets pass to training and evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class LabelledImages:
    """n labelled images as NumPy arrays or, after `to`, as torch tensors."""

    images: Any
    """uint8 (n, channels, side, side)."""
    labels: Any
    """int64 (n,)."""
    votes: Any
    """float32 (n, vote classes): shares of the annotators' votes, all zero if an image has none."""
    ids: Sequence[str] = ()
    """Sample ids (n,), or empty if not needed."""
    taught: Any = None
    """float32 (n, classes): teachers' probabilities, if they are computed once for all epochs."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Any) -> "LabelledImages":
        """Return the selected images, without ids."""
        taught = None if self.taught is None else self.taught[indices]
        return LabelledImages(self.images[indices], self.labels[indices], self.votes[indices], taught=taught)

    def to(self, device: Any) -> "LabelledImages":
        """Return the images as torch tensors on a device, without ids."""
        import torch

        images, labels, votes = (torch.as_tensor(one).to(device) for one in (self.images, self.labels, self.votes))
        taught = None if self.taught is None else torch.as_tensor(self.taught).to(device)
        return LabelledImages(images, labels, votes, taught=taught)


def concatenate(batches: Sequence[LabelledImages]) -> LabelledImages:
    """Return one or more batches of NumPy arrays as a single batch, with the most columns of votes that one has."""
    columns = max(batch.votes.shape[1] for batch in batches)
    return LabelledImages(
        np.concatenate([batch.images for batch in batches]),
        np.concatenate([batch.labels for batch in batches]),
        np.concatenate([np.pad(batch.votes, ((0, 0), (0, columns - batch.votes.shape[1]))) for batch in batches]),
        [sample for batch in batches for sample in batch.ids],
    )
