"""Expression classifiers: our residual CNN for small grey crops, two reference CNNs, and any torchvision classifier by name."""

import torch
from torch import Tensor, nn

from fer_pipeline.core.errors import UserError
from fer_pipeline.models.card import NetworkConfig

Weights = dict[str, Tensor]


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


def _plain_cnn(config: NetworkConfig, classes: int) -> nn.Module:
    """Three stages of convolution and max-pooling, a dense layer with dropout: the CNN of many a paper on FER-2013."""
    layers: list[nn.Module] = []
    channels: int = config.channels
    width = config.width
    for _ in range(3):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Dropout(config.dropout / 2),
        ]
        channels, width = width, 2 * width
    dense = channels * (config.image_px // 8) ** 2
    head = [nn.Flatten(), nn.Linear(dense, 128), nn.ReLU(inplace=True), nn.Dropout(config.dropout), nn.Linear(128, classes)]
    return nn.Sequential(*layers, *head)


def _regularised_cnn(config: NetworkConfig, classes: int) -> nn.Module:
    """Three stages of two convolutions with batch normalisation, max-pooling and dropout; L2 is the recipe's weight decay."""
    layers: list[nn.Module] = []
    channels: int = config.channels
    width = config.width
    for _ in range(3):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        layers += [nn.MaxPool2d(2), nn.Dropout(config.dropout / 2)]
        width *= 2
    dense = channels * (config.image_px // 8) ** 2
    layers += [nn.Flatten(), nn.Linear(dense, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Dropout(config.dropout), nn.Linear(128, classes))


OWN = {"residual_cnn": _residual_cnn, "plain_cnn": _plain_cnn, "regularised_cnn": _regularised_cnn}


class FlipAveraging(nn.Sequential):
    """Layers whose output, in evaluation mode, is the mean over an image and its mirror image."""

    def forward(self, images: Tensor) -> Tensor:
        normalize, network = self
        logits: Tensor = network(normalize(images))
        return logits if self.training else (logits + network(normalize(images.flip(3)))) / 2


def build(config: NetworkConfig, classes: int) -> nn.Module:
    """Return the network, randomly initialised: uint8 images (n, channels, image_px, image_px) to logits (n, classes).

    Raise UserError for an architecture that neither we nor torchvision have.
    """
    network = OWN.get(config.architecture, _torchvision)(config, classes)
    kind = FlipAveraging if config.flip_averaging else nn.Sequential
    return kind(Normalize(config.mean, config.std), network)


def last_layer(state: Weights) -> list[str]:
    """Return the names of the last layer's weights: every classifier here ends with the layer that makes the logits."""
    names = list(state)
    return names[-2:] if names[-1].endswith("bias") else names[-1:]


def take_over(network: nn.Module, weights: Weights) -> None:
    """Give a network another one's weights; outputs that only `network` has keep their own."""
    own = network.state_dict()
    last = last_layer(own)
    network.load_state_dict(own | {name: value for name, value in weights.items() if name not in last})
    with torch.no_grad():
        for name in last:
            network.get_parameter(name)[: len(weights[name])] = weights[name]


def keep_outputs(state: Weights, classes: int) -> Weights:
    """Return a network's weights without the outputs behind the first `classes`."""
    last = last_layer(state)
    return {name: value[:classes].clone() if name in last else value for name, value in state.items()}


def _torchvision(config: NetworkConfig, classes: int) -> nn.Module:
    import torchvision  # takes a second to import, which no worker with our own network need wait for

    if config.architecture not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(
            f"There is no network '{config.architecture}': use {', '.join(OWN)} or a torchvision classifier such as resnet50."
        )
    if config.channels != 3:
        raise UserError(f"'{config.architecture}' takes RGB crops: set channels = 3 in the recipe's [network].")
    network: nn.Module = torchvision.models.get_model(config.architecture, weights=None, num_classes=classes)
    return network
