"""Expression classifiers: one file each, and the table `NETWORKS`; any torchvision classifier joins by its name."""

from collections.abc import Callable

from torch import nn

from fer_pipeline.core.errors import UserError
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
"""Name (`architecture` of a recipe's `[network]`) to what makes the network: normalised float images (n, channels, image_px,
image_px) to logits (n, classes). Its last layer must be the one that makes the logits."""


def build(config: NetworkConfig, classes: int) -> nn.Module:
    """Return the network, randomly initialised: uint8 images (n, channels, image_px, image_px) to logits (n, classes).

    Raise UserError for an architecture that neither we nor torchvision have.
    """
    network = NETWORKS.get(config.architecture, _torchvision_classifier)(config, classes)
    kind = FlipAveraging if config.flip_averaging else nn.Sequential
    return kind(Normalize(config.mean, config.std), network)


def _torchvision_classifier(config: NetworkConfig, classes: int) -> nn.Module:
    import torchvision  # takes a second to import, which no worker with our own network need wait for

    if config.architecture not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"There is no network '{config.architecture}': use {', '.join(NETWORKS)} or a classifier of torchvision.")
    if config.channels != 3:
        raise UserError(f"'{config.architecture}' takes RGB crops: set channels = 3 in the recipe's [network].")
    network: nn.Module = torchvision.models.get_model(config.architecture, weights=None, num_classes=classes)
    return network
