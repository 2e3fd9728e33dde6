"""The model bundle: a folder with `model.safetensors` and `model.json`, from which the network is rebuilt. No pickle."""

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from fer_pipeline.core import storage
from fer_pipeline.core.errors import UserError
from fer_pipeline.models.card import CARD, WEIGHTS, BundleFiles, ModelCard, bundle_of, card_json
from fer_pipeline.models.networks import build


def load_network(bundle: BundleFiles) -> nn.Module:
    """Return the bundle's network in evaluation mode on the CPU; raise UserError where weights and card do not fit."""
    if bundle.card.format == "onnx":
        raise UserError(f"The model '{bundle.card.name}' is an ONNX network: it labels and is evaluated, but not trained on.")
    network = build(bundle.card.network, len(bundle.card.label_space.classes))
    try:
        network.load_state_dict(safetensors.torch.load(bundle.weights))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            f"The weights of the model '{bundle.card.name}' do not fit its card: {WEIGHTS} and {CARD} are not of one training."
        ) from error
    return network.eval()


def pack(network: nn.Module, card: ModelCard) -> BundleFiles:
    """Return a network and its card as a bundle."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    return bundle_of(card, safetensors.torch.save(tensors))


def save_bundle(url: str, bundle: BundleFiles) -> None:
    """Write a bundle into the folder `url`; the card, which makes it a bundle, comes last."""
    storage.write_bytes(storage.join(url, bundle.card.weights_file), bundle.weights)
    storage.write_bytes(storage.join(url, CARD), card_json(bundle.card))
