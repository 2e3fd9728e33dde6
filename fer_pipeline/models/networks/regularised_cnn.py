"""A CNN with batch normalisation, dropout and L2: reference system (c)."""

from torch import nn

from fer_pipeline.models.network_config import NetworkConfig


def regularised_cnn(config: NetworkConfig, classes: int) -> nn.Module:
    """Return three stages of two convolutions with batch normalisation, max-pooling and dropout. L2 is the weight decay."""
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
