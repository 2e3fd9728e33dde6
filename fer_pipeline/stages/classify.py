"""Classify: crops to calibrated probabilities."""

import tempfile
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fer_pipeline.core.errors import OutageError, UserError
from fer_pipeline.core.isolated import IsolatedProcess
from fer_pipeline.core.memory import MEMORY_BYTES, lift_memory_limit, limit_memory
from fer_pipeline.core.metrics import softmax
from fer_pipeline.models.bundle import EMBEDDED, Bundle, read_bundle, save_bundle
from fer_pipeline.models.onnx import OnnxNetwork
from fer_pipeline.stages.align import empty_inputs
from fer_pipeline.stages.batches import Batches
from fer_pipeline.stages.decode import Pixels

Precision = Literal["fp32", "bf16", "int8"]


TRIAL_S = 120.0
"""Time that a stranger's network may take to load and to answer a crop."""
BYTES_PER_WEIGHT_BYTE = 6
"""Memory that loading a network takes, over the size of its file."""


def auto_precision(bundle: Bundle, on_gpu: bool, has_bf16: bool) -> Precision:
    """Return the arithmetic in which a model labels where nobody says it.

    `has_bf16`: whether the processors that label multiply bf16 natively.
    """
    if bundle.int8 is not None and not on_gpu:
        return "int8"
    own = bundle.card.format == "safetensors"  # an ONNX network computes as it was exported
    return "bf16" if own and has_bf16 else "fp32"


class Classifier:
    """A bundle's network on one core or one GPU. Raise UserError where the bundle's files do not fit together.

    `int8` is the form in 8 bits that a bundle may have; an ONNX network computes as exported, whatever `precision`. Neither needs
    torch, which takes seconds to import.
    """

    def __init__(self, bundle: Bundle, precision: Precision, device: str = "cpu", batch_size: int | None = None) -> None:
        bundle = bundle.computing_in(precision)
        self.card, self.device = bundle.card, device
        self.batches = Batches(batch_size or (64 if device == "cpu" else 1024))
        if bundle.card.format == "onnx":
            self._forward: Any = OnnxNetwork(bundle, device)
        else:
            from fer_pipeline.stages.torch_network import TorchNetwork

            self._forward = TorchNetwork(bundle, precision, device)
        probe = np.zeros((1, *empty_inputs(0, bundle.card.network).shape[1:]), np.uint8)
        if not np.isfinite(self.logits(np.concatenate([probe, probe + 128]))).all():
            raise UserError(f"The model '{bundle.card.name}' answers a blank crop with numbers that are not finite.")

    def logits(self, crops: Pixels) -> NDArray[np.float32]:
        """Return logits (n, classes), before any temperature, for uint8 crops (n, channels, side, side)."""
        answers = self.batches(self._forward, crops)
        return np.concatenate([np.zeros((0, len(self.card.label_space.classes)), np.float32), *answers])

    def __call__(self, crops: Pixels) -> NDArray[np.float32]:
        """Return probabilities (n, classes) for uint8 crops (n, channels, side, side)."""
        return softmax(self.logits(crops), self.card.calibration.temperature)


def read_tried(url: str, *precisions: Precision) -> Bundle:
    """Return the bundle that a URL names, as `read_bundle` does, once its network has answered in another process.

    It is tried in those of the forms that it has, by default in the one that labels on CPUs. A stranger's network may take all
    memory, or never come to an end. Raise UserError for one that does, or that does not fit its card.
    """
    bundle = read_bundle(url)
    forms = precisions or (auto_precision(bundle, on_gpu=False, has_bf16=False),)
    if url != EMBEDDED:
        try_bundle(bundle, tuple(form for form in forms if form != "int8" or bundle.int8 is not None))
    return bundle


_trials = IsolatedProcess()
"""It lives on for the next model: importing torch takes longer than a trial."""


def try_bundle(bundle: Bundle, precisions: tuple[Precision, ...]) -> None:
    """Raise UserError unless a bundle's network loads and answers in a process of its own, within bounds of memory and time."""
    name = bundle.card.name
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(folder, bundle)
        try:
            refusals = list(_trials.call(f"{__name__}:{tried.__name__}", folder, precisions, timeout_s=TRIAL_S))
        except OutageError as error:
            raise UserError(f"The model '{name}' cannot be tried: {error}.") from error
        except ValueError as error:
            raise UserError(f"The model '{name}' cannot be used: {error}.") from error
    if refusals:
        raise UserError(refusals[0].replace(folder, name))


def tried(folder: str, precisions: list[Precision]) -> Iterator[str]:
    """Yield why the network of the bundle in a folder cannot be used, if it cannot: in the other process."""
    try:
        bundle = read_bundle(folder)
        lift_memory_limit()
        if bundle.card.format != "onnx" and set(precisions) != {"int8"}:
            import torch  # noqa: F401 (its libraries take address space, which is not the stranger's)
        limit_memory(MEMORY_BYTES + BYTES_PER_WEIGHT_BYTE * len(bundle.weights))
        for precision in precisions:
            Classifier(bundle, precision)
    except UserError as error:
        yield str(error)
