"""Corruptions of face crops that occur in photo archives but not in FER-2013. Each image gets its own strength."""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

JPEG_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""Quantisation of JPEG's 8x8 blocks at quality 50 (ITU-T T.81, annex K)."""


def corrupt(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Return uint8 images (n, c, h, w), a share `probability` of which is corrupted in one way each."""
    count = len(images)
    chosen = torch.rand(count, generator=generator) < probability
    kinds = torch.randint(len(CORRUPTIONS), (count,), generator=generator)
    strengths = torch.rand(count, generator=generator)
    corrupted = images.clone()
    for number, corruption in enumerate(CORRUPTIONS):
        indices = (chosen & (kinds == number)).nonzero()[:, 0]
        if len(indices):
            some = indices.to(images.device)
            strength = strengths[indices].view(-1, 1, 1, 1).to(images.device)
            corrupted[some] = corruption(images[some].float(), strength, generator).round().clamp(0, 255).to(torch.uint8)
    return corrupted


def _blur(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Blur with a Gaussian of a standard deviation of 0.4 to 2 px."""
    sigma = 0.4 + 1.6 * strength
    place = torch.arange(-5, 6, device=images.device).float()
    kernel = torch.exp(-(place**2) / (2 * sigma.view(-1, 1) ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)
    count, channels, height, width = images.shape
    kernel = kernel.repeat_interleave(channels, 0)
    flat = F.pad(images.reshape(1, count * channels, height, width), (5, 5, 5, 5), mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=count * channels)
    return F.conv2d(flat, kernel[:, None, :, None], groups=count * channels).view(images.shape)


def _shrink(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Shrink to .8 to .35 of the size and enlarge again, as small faces are. All images get one size, drawn here."""
    share = 0.8 - 0.45 * float(torch.rand((), generator=generator))
    size = [max(4, round(side * share)) for side in images.shape[2:]]
    small = F.interpolate(images, size, mode="bilinear", antialias=True)
    return F.interpolate(small, images.shape[2:], mode="bicubic", align_corners=False)


def _make_noisy(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Add noise of a standard deviation of 4 to 24 grey levels."""
    return images + (4 + 20 * strength) * torch.randn(images.shape, generator=generator).to(images.device)


def _light_from_one_side(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Darken one side by up to 80 % and brighten the other as much, in a random direction."""
    angle = (2 * math.pi * torch.rand(len(images), generator=generator)).view(-1, 1, 1, 1).to(images.device)
    y = torch.linspace(-1, 1, images.shape[2], device=images.device).view(1, 1, -1, 1)
    x = torch.linspace(-1, 1, images.shape[3], device=images.device).view(1, 1, 1, -1)
    return images * (1 + (0.2 + 0.6 * strength) * (x * angle.cos() + y * angle.sin()))


def _change_gamma(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Raise the brightness to a power of 1/2.5 to 2.5."""
    return 255 * (images / 255) ** (2.5 ** (2 * strength - 1))


def _compress(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Quantise 8x8 blocks as JPEG does at quality 40 to 8. Rows and columns after the last whole block stay unchanged."""
    height, width = (side - side % 8 for side in images.shape[2:])
    table = torch.tensor(JPEG_LUMINANCE, device=images.device).float()
    step = (table * (50 / (40 - 32 * strength)).view(-1, 1, 1, 1, 1, 1)).clamp(min=1)
    place, frequency = torch.arange(8).float(), torch.arange(8).float()[:, None]
    cosine = torch.cos((2 * place + 1) * frequency * math.pi / 16) * math.sqrt(2 / 8)
    cosine[0] /= math.sqrt(2)
    cosine = cosine.to(images.device)
    blocks = images[:, :, :height, :width].unfold(2, 8, 8).unfold(3, 8, 8) - 128
    rounded = torch.round(cosine @ blocks @ cosine.T / step) * step
    restored = (cosine.T @ rounded @ cosine + 128).permute(0, 1, 2, 4, 3, 5).reshape(*images.shape[:2], height, width)
    out = images.clone()
    out[:, :, :height, :width] = restored
    return out


CORRUPTIONS = (_blur, _shrink, _make_noisy, _light_from_one_side, _change_gamma, _compress)
"""Each takes float images (n, c, h, w) of 0 to 255 and strengths (n, 1, 1, 1) of 0 to 1. Results may leave the range."""
