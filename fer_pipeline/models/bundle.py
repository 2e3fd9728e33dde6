"""The model bundle: a folder with `model.safetensors` and `model.json`, from which the network is rebuilt. No pickle."""

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from fer_pipeline.core import storage
from fer_pipeline.core.errors import UserError
from fer_pipeline.models.card import CARD, WEIGHTS, BundleFiles, ModelCard, card_json
from fer_pipeline.models.networks import build


def load_network(bundle: BundleFiles) -> nn.Module:
    """Return the bundle's network in evaluation mode on the CPU; raise UserError where weights and card do not fit."""
    network = build(bundle.card.network, len(bundle.card.label_space.classes))
    try:
        network.load_state_dict(safetensors.torch.load(bundle.weights))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            f"The weights of the model '{bundle.card.name}' do not fit its card: {WEIGHTS} and {CARD} are not of one training."
        ) from error
    return network.eval()


def save_bundle(url: str, network: nn.Module, card: ModelCard) -> None:
    """Write a bundle into the folder `url`; the card, which makes it a bundle, comes last."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    storage.write_bytes(storage.join(url, WEIGHTS), safetensors.torch.save(tensors))
    storage.write_bytes(storage.join(url, CARD), card_json(card))
