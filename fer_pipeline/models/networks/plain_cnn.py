"""A plain CNN: reference system (d)."""

from torch import nn

from fer_pipeline.models.network_config import NetworkConfig


def plain_cnn(config: NetworkConfig, classes: int) -> nn.Module:
    """Return three stages of convolution and max-pooling, then a dense layer with dropout, as in many papers on FER-2013."""
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
