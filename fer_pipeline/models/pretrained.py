"""Pretrained weights: torchvision's, by their name there, or a file. The last layer is never copied."""

import pickle
from pathlib import Path
from urllib.error import URLError

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from fer_pipeline.base.errors import UserError
from fer_pipeline.models.weights import Weights, last_layer


def load_pretrained(network: nn.Module, architecture: str, weights: str) -> None:
    """Copy all of `weights` but the last layer into a network of `networks.build`.

    `weights` is a name of torchvision weights for the architecture (`DEFAULT`, `IMAGENET1K_V2`), or a file of a state dict
    (.pt, .pth, .safetensors) with torchvision's or our names. Raise UserError if they are not available or fit another network.
    """
    is_file = weights.endswith((".pt", ".pth", ".safetensors"))
    given = _read_file(Path(weights)) if is_file else _download(architecture, weights)
    given = {name.removeprefix("module."): value for name, value in given.items()}
    own = network.state_dict()
    if not set(given) & set(own):
        given = {f"1.{name}": value for name, value in given.items()}
    last = last_layer(own)
    wrong = [name for name, value in own.items() if name not in last and not _fits(given.get(name), value)]
    if wrong:
        raise UserError(
            f"The weights '{weights}' are for another network than {architecture}: {len(wrong)} of its {len(own)} tensors are "
            f"missing or have another shape, such as '{wrong[0].removeprefix('1.')}'."
        )
    network.load_state_dict({name: value if name in last else given[name] for name, value in own.items()})


def _fits(given: torch.Tensor | None, own: torch.Tensor) -> bool:
    return given is not None and given.shape == own.shape


def _read_file(path: Path) -> Weights:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(path.read_bytes())
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"There is no weights file '{path}': name a file, or torchvision weights such as DEFAULT.") from error
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise UserError(f"The file '{path}' holds no weights that can be read safely: save a state dict of tensors.") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"The file '{path}' holds no state dict of tensors: save one.")
    return state


def _download(architecture: str, weights: str) -> Weights:
    import torchvision

    try:
        found = torchvision.models.get_model_weights(architecture)[weights]
    except (KeyError, ValueError) as error:
        raise UserError(f"torchvision has no weights '{weights}' for '{architecture}': use DEFAULT or a file.") from error
    try:
        state: Weights = found.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"torchvision's weights {weights} of '{architecture}' cannot be downloaded ({error}): download {found.url} "
            "elsewhere and name the file."
        ) from error
    return state
