"""Expression classifiers: one file each, and the table `NETWORKS`. Torchvision's classifiers are available by name."""

from collections.abc import Callable

from torch import nn

from fer_pipeline.base.errors import UserError
from fer_pipeline.models.network_config import NetworkConfig
from fer_pipeline.models.networks.layers import FlipAveraging, Normalize
from fer_pipeline.models.networks.plain_cnn import plain_cnn
from fer_pipeline.models.networks.regularised_cnn import regularised_cnn
from fer_pipeline.models.networks.residual_cnn import residual_cnn

NETWORKS: dict[str, Callable[[NetworkConfig, int], nn.Module]] = {
    "residual_cnn": residual_cnn,
    "plain_cnn": plain_cnn,
    "regularised_cnn": regularised_cnn,
}
"""Builders by name (`architecture` of a recipe's `[network]`). A network maps normalised float images (n, channels, image_px,
image_px) to logits (n, classes), and its last layer must compute the logits."""


def build(config: NetworkConfig, classes: int) -> nn.Module:
    """Return a randomly initialised network from uint8 images (n, channels, image_px, image_px) to logits (n, classes).

    Raise UserError for an architecture that neither this project nor torchvision has.
    """
    network = NETWORKS.get(config.architecture, _torchvision_classifier)(config, classes)
    kind = FlipAveraging if config.flip_averaging else nn.Sequential
    return kind(Normalize(config.mean, config.std), network)


def _torchvision_classifier(config: NetworkConfig, classes: int) -> nn.Module:
    import torchvision  # the import takes a second, and our own networks do not need it

    if config.architecture not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"There is no network '{config.architecture}': use {', '.join(NETWORKS)} or a classifier of torchvision.")
    if config.channels != 3:
        raise UserError(f"'{config.architecture}' takes RGB crops: set channels = 3 in the recipe's [network].")
    network: nn.Module = torchvision.models.get_model(config.architecture, weights=None, num_classes=classes)
    return network
