"""Weights: a bundle's network loaded, a network packed into a bundle, and what one network takes over from another."""

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fer_pipeline.core.errors import UserError
from fer_pipeline.models.bundle import Bundle, bundle_of
from fer_pipeline.models.card import ModelCard
from fer_pipeline.models.networks import build

Weights = dict[str, Tensor]


def load_network(bundle: Bundle) -> nn.Module:
    """Return the bundle's network in evaluation mode on the CPU; raise UserError where weights and card do not fit."""
    if bundle.card.format == "onnx":
        raise UserError(f"The model '{bundle.card.name}' is an ONNX network: it labels and is evaluated, but not trained on.")
    card = bundle.card
    try:
        weights = safetensors.torch.load(bundle.weights)
        _require_fit(card, weights)
        network = build(card.network, len(card.label_space.classes))
        network.load_state_dict(weights)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"The weights of the model '{card.name}' do not fit its card: the two files are not of one training."
        ) from error
    if not all(bool(torch.isfinite(value).all()) for value in network.state_dict().values()):
        raise UserError(f"The weights of the model '{bundle.card.name}' hold numbers that are not finite: train it again.")
    return network.eval()


def _require_fit(card: ModelCard, weights: Weights) -> None:
    """Raise ValueError unless weights have the names and shapes that a card asks for, before memory is taken for its network."""
    try:
        with torch.device("meta"):
            planned = build(card.network, len(card.label_space.classes)).state_dict()
    except NotImplementedError:  # a few of torchvision's compute with tensors while they are built
        return
    if {name: value.shape for name, value in planned.items()} != {name: value.shape for name, value in weights.items()}:
        raise ValueError("other shapes")


def pack(network: nn.Module, card: ModelCard) -> Bundle:
    """Return a network and its card as a bundle, without the int8 form that the card may have of other weights."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    return bundle_of(card.model_copy(update={"int8": None}), safetensors.torch.save(tensors))


def last_layer(state: Weights) -> list[str]:
    """Return the names of the last layer's weights: every classifier here ends with the layer that makes the logits."""
    names = list(state)
    return names[-2:] if names[-1].endswith("bias") else names[-1:]


def take_over(network: nn.Module, weights: Weights) -> None:
    """Give a network the weights of one with as many or fewer outputs, channels and blocks, as which it then begins.

    What only `network` has keeps its own weights, but what both have takes nothing from it at first (as in Net2Net of Chen et
    al., 2016): those weights are zero.
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
    """Return the weights between those of two networks of one form, `share` of the way from the first to the second."""
    return {name: torch.lerp(value, second[name], share) if value.is_floating_point() else value for name, value in first.items()}


def keep_outputs(state: Weights, classes: int) -> Weights:
    """Return a network's weights without the outputs behind the first `classes`."""
    last = last_layer(state)
    return {name: value[:classes].clone() if name in last else value for name, value in state.items()}
