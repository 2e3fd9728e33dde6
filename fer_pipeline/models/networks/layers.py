"""Layers around every network: normalisation before it, averaging over mirror images after it."""

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Normalises uint8 images (n, c, h, w) to floats, as the first layer, so that no caller can forget it."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() - self.get_buffer("mean")) / self.get_buffer("std")


class FlipAveraging(nn.Sequential):
    """Averages the logits of an image and its mirror image in evaluation mode."""

    def forward(self, images: Tensor) -> Tensor:
        normalize, network = self
        logits: Tensor = network(normalize(images))
        return logits if self.training else (logits + network(normalize(images.flip(3)))) / 2
