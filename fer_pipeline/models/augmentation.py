"""Augments a batch on the device that holds it: each image is moved, then degraded, independently of the others."""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor

from fer_pipeline.base.config import Config
from fer_pipeline.models.corruption import corrupt


class AugmentationConfig(Config):
    """How much each training image may be moved and degraded. 0 turns a transformation off."""

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
    """Probability that a rectangle is erased (Zhong et al., 2020)."""
    corruption: float = Field(0.0, ge=0, le=1)
    """Probability that an image is blurred, shrunk, made noisy, lit from one side, changed in gamma, or JPEG-compressed."""


def augment(images: Tensor, config: AugmentationConfig, generator: Generator) -> Tensor:
    """Return uint8 images (n, c, h, w), each moved and degraded. `generator` (a CPU generator) makes it repeatable."""
    return degrade(move(images, config, generator), config, generator)


def move(images: Tensor, config: AugmentationConfig, generator: Generator) -> Tensor:
    """Return uint8 images (n, c, h, w), each flipped, shifted, rotated, scaled, and changed in contrast and brightness."""
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


def degrade(images: Tensor, config: AugmentationConfig, generator: Generator) -> Tensor:
    """Return uint8 images (n, c, h, w), each corrupted and partly erased with the probabilities of `config`."""
    if config.corruption:
        images = corrupt(images, config.corruption, generator)
    return _erase(images.clone(), config.erase, generator) if config.erase else images


def shrink(images: Tensor, side: int) -> Tensor:
    """Return uint8 images (n, c, h, w) scaled down to `side` without aliasing, or unchanged if they have that size."""
    if images.shape[-1] == side:
        return images
    smaller = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True, align_corners=False)
    return smaller.round_().to(torch.uint8)


def _erase(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Fill a rectangle of 2 to 25 % of the area with mid-grey, in place, in each image with this probability."""
    count, _, height, width = images.shape
    area = 0.02 + 0.23 * torch.rand(count, generator=generator)
    aspect = torch.exp((torch.rand(count, generator=generator) * 2 - 1) * math.log(3.0))
    hole_h, hole_w = (area * aspect).sqrt().clamp(max=1) * height, (area / aspect).sqrt().clamp(max=1) * width
    top = torch.rand(count, generator=generator) * (height - hole_h)
    left = torch.rand(count, generator=generator) * (width - hole_w)
    chosen = torch.rand(count, generator=generator) < probability
    y, x = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    inside = (y >= top[:, None, None]) & (y < (top + hole_h)[:, None, None])
    inside = inside & (x >= left[:, None, None]) & (x < (left + hole_w)[:, None, None])
    hole = (inside & chosen[:, None, None])[:, None].to(images.device)
    return images.masked_fill_(hole, 128)
