"""Classify: crops to calibrated probabilities."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fer_pipeline.core.errors import UserError
from fer_pipeline.core.metrics import softmax
from fer_pipeline.models.bundle import Bundle
from fer_pipeline.models.onnx import OnnxNetwork
from fer_pipeline.stages.align import empty_inputs
from fer_pipeline.stages.batches import Batches
from fer_pipeline.stages.decode import Pixels

Precision = Literal["fp32", "bf16", "int8"]


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
