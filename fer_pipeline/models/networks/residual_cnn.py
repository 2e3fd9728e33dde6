"""Our residual CNN for small grey crops: the embedded model's network."""

from torch import Tensor, nn

from fer_pipeline.models.network_config import NetworkConfig


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al., 2016), followed by `more` such blocks.

    These blocks begin as the identity (Goyal et al., 2017), so a network can start from the weights of one without them.
    """

    def __init__(self, channels: int, more: int = 0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.activation = nn.ReLU(inplace=True)
        self.more = nn.Sequential(*(ResidualBlock(channels) for _ in range(more)))
        for block in self.more:
            nn.init.zeros_(block.get_submodule("body.4").weight)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.more(self.activation(images + self.body(images)))
        return features


def residual_cnn(config: NetworkConfig, classes: int) -> nn.Module:
    """Return a stem and three stages, each with a strided convolution and residual blocks."""
    width = config.width
    layers: list[nn.Module] = [
        nn.Conv2d(config.channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
    for blocks in config.blocks:
        layers += [
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
            ResidualBlock(2 * width, more=blocks - 1),
        ]
        width *= 2
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(width, classes)]
    return nn.Sequential(*layers, *head)
