"""Weights: load a bundle's network, pack a network into a bundle, and copy weights between networks."""

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fer_pipeline.base.errors import UserError
from fer_pipeline.models.bundle import WEIGHTS_FILE, Bundle, bundle_of
from fer_pipeline.models.card import ModelCard
from fer_pipeline.models.networks import build

Weights = dict[str, Tensor]


def load_network(bundle: Bundle) -> nn.Module:
    """Return the bundle's network in evaluation mode on the CPU; raise UserError if the weights do not fit the card."""
    card = bundle.card
    if card.format == "onnx":
        raise UserError(f"The model '{card.name}' is an ONNX network, which cannot be trained: use one with {WEIGHTS_FILE}.")
    try:
        weights = safetensors.torch.load(bundle.weights)
        _require_fit(card, weights)
        network = build(card.network, len(card.label_space.classes))
        network.load_state_dict(weights)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"The weights of the model '{card.name}' do not fit its card: they are from another training. Copy the whole bundle."
        ) from error
    if not all(bool(torch.isfinite(value).all()) for value in network.state_dict().values()):
        raise UserError(f"The weights of the model '{card.name}' contain values that are not finite: train it again.")
    return network.eval()


def _require_fit(card: ModelCard, weights: Weights) -> None:
    """Raise ValueError unless weights have the names and shapes of the card's network, before it is allocated."""
    try:
        with torch.device("meta"):
            planned = build(card.network, len(card.label_space.classes)).state_dict()
    except NotImplementedError:  # a few of torchvision's networks compute with tensors in their constructors
        return
    if {name: value.shape for name, value in planned.items()} != {name: value.shape for name, value in weights.items()}:
        raise ValueError("other shapes")


def pack(network: nn.Module, card: ModelCard) -> Bundle:
    """Return a network and its card as a bundle, without an int8 form, which would belong to other weights."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    return bundle_of(card.model_copy(update={"int8": None}), safetensors.torch.save(tensors))


def last_layer(state: Weights) -> list[str]:
    """Return the names of the last layer's weights. In every classifier here the last layer computes the logits."""
    names = list(state)
    return names[-2:] if names[-1].endswith("bias") else names[-1:]


def take_over(network: nn.Module, weights: Weights) -> None:
    """Copy the weights of a network with as many or fewer outputs, channels and blocks, so that `network` begins as its equal.

    Parts that only `network` has keep their own weights. Weights from these parts into shared ones become zero (as in Net2Net,
    Chen et al., 2016).
    """
    own = network.state_dict()
    network.load_state_dict(own | {name: _grown(own[name], value) for name, value in weights.items()})


def _grown(own: Tensor, value: Tensor) -> Tensor:
    grown = own.clone()
    if value.ndim > 1:
        grown[: len(value)] = 0
    grown[tuple(slice(size) for size in value.shape)] = value
    return grown


def mean_weights(first: Weights, second: Weights, share: float) -> Weights:
    """Return the weights `share` of the way from the first to the second of two networks of one architecture."""
    return {name: torch.lerp(value, second[name], share) if value.is_floating_point() else value for name, value in first.items()}


def keep_outputs(state: Weights, classes: int) -> Weights:
    """Return a network's weights with only its first `classes` outputs."""
    last = last_layer(state)
    return {name: value[:classes].clone() if name in last else value for name, value in state.items()}
