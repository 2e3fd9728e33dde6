"""Expression classifiers: our residual CNN for small grey crops, and any torchvision classifier by name."""

import torch
from torch import Tensor, nn

from fer_pipeline.core.errors import UserError
from fer_pipeline.models.card import NetworkConfig


class Normalize(nn.Module):
    """uint8 images (n, c, h, w) to normalised floats, as the first layer, so that no caller can forget it."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() - self.get_buffer("mean")) / self.get_buffer("std")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.activation(images + self.body(images))
        return features


def _residual_cnn(config: NetworkConfig, classes: int) -> nn.Module:
    width = config.width
    layers: list[nn.Module] = [
        nn.Conv2d(config.channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
    for _ in range(3):
        layers += [
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
            ResidualBlock(2 * width),
        ]
        width *= 2
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(width, classes)]
    return nn.Sequential(*layers, *head)


def build(config: NetworkConfig, classes: int) -> nn.Module:
    """Return the network, randomly initialised: uint8 images (n, channels, image_px, image_px) to logits (n, classes).

    Raise UserError for an architecture that neither we nor torchvision have.
    """
    network = _residual_cnn(config, classes) if config.architecture == "residual_cnn" else _torchvision(config, classes)
    return nn.Sequential(Normalize(config.mean, config.std), network)


def _torchvision(config: NetworkConfig, classes: int) -> nn.Module:
    import torchvision  # takes a second to import, which no worker with our own network need wait for

    if config.architecture not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(
            f"There is no network '{config.architecture}': use 'residual_cnn' or a torchvision classifier such as 'resnet50'."
        )
    if config.channels != 3:
        raise UserError(f"'{config.architecture}' takes RGB crops: set channels = 3 in the recipe's [network].")
    network: nn.Module = torchvision.models.get_model(config.architecture, weights=None, num_classes=classes)
    return network
