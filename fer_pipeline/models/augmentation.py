"""Augmentation of a whole batch on its own device: every sample is moved, then spoiled, in its own way."""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor

from fer_pipeline.core.config import Config
from fer_pipeline.models.corruption import corrupt


class AugmentationConfig(Config):
    """How far each training image may be moved and spoiled; 0 turns a transformation off."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    shift: float = 0.1
    """Largest shift, as a share of the image's side."""
    rotation_deg: float = 12.0
    """Largest rotation."""
    scale: float = 0.12
    """Largest relative change of size."""
    contrast: float = 0.2
    """Largest relative change of contrast and brightness."""
    erase: float = 0.4
    """Probability that a rectangle is blanked (Zhong et al., 2020)."""
    corruption: float = Field(0.0, ge=0, le=1)
    """Probability that an image is blurred, shrunk, made noisy, lit from one side, or cut into JPEG's blocks."""


def augment(images: Tensor, config: AugmentationConfig, generator: Generator) -> Tensor:
    """Return uint8 images (n, c, h, w) moved and spoiled one by one; `generator` lives on the CPU and makes it repeatable."""
    return spoil(move(images, config, generator), config, generator)


def move(images: Tensor, config: AugmentationConfig, generator: Generator) -> Tensor:
    """Return uint8 images (n, c, h, w), each mirrored, shifted, turned and scaled, its contrast and brightness changed."""
    if not any(config.model_dump(exclude={"erase", "corruption"}).values()):
        return images

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    count = len(images)
    angle = uniform(count) * math.radians(config.rotation_deg)
    size = 1 + uniform(count) * config.scale
    mirror = 1 - 2 * (torch.rand(count, generator=generator) < config.flip).float()
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    shift = uniform(count, 2) * 2 * config.shift
    rows = [torch.stack([cos * mirror, -sin, shift[:, 0]], 1), torch.stack([sin * mirror, cos, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1).to(images.device), list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    gain, offset = 1 + uniform(count, 1, 1, 1) * config.contrast, uniform(count, 1, 1, 1) * config.contrast * 64
    moved = (moved - 128) * gain.to(images.device) + 128 + offset.to(images.device)
    return moved.clamp_(0, 255).to(torch.uint8)


def spoil(images: Tensor, config: AugmentationConfig, generator: Generator) -> Tensor:
    """Return uint8 images (n, c, h, w), each corrupted and blanked in part with the probabilities of `config`."""
    if config.corruption:
        images = corrupt(images, config.corruption, generator)
    return _erase(images.clone(), config.erase, generator) if config.erase else images


def shrink(images: Tensor, side: int) -> Tensor:
    """Return uint8 images (n, c, h, w) scaled down to `side` without aliasing; those of that size as they are."""
    if images.shape[-1] == side:
        return images
    smaller = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True, align_corners=False)
    return smaller.round_().to(torch.uint8)


def _erase(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Blank one rectangle of 2 to 25 % of the area to mid-grey, in a share `probability` of the images, in place."""
    count, _, height, width = images.shape
    area = 0.02 + 0.23 * torch.rand(count, generator=generator)
    aspect = torch.exp((torch.rand(count, generator=generator) * 2 - 1) * math.log(3.0))
    tall, wide = (area * aspect).sqrt().clamp(max=1) * height, (area / aspect).sqrt().clamp(max=1) * width
    top = torch.rand(count, generator=generator) * (height - tall)
    left = torch.rand(count, generator=generator) * (width - wide)
    chosen = torch.rand(count, generator=generator) < probability
    y, x = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    inside = (y >= top[:, None, None]) & (y < (top + tall)[:, None, None])
    inside = inside & (x >= left[:, None, None]) & (x < (left + wide)[:, None, None])
    hole = (inside & chosen[:, None, None])[:, None].to(images.device)
    return images.masked_fill_(hole, 128)
