"""Classify: crops to calibrated probabilities."""

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx.experimental.optimization import fuse

from fer_pipeline.core.errors import UserError
from fer_pipeline.models.bundle import Bundle
from fer_pipeline.models.calibration import scaled
from fer_pipeline.models.onnx import OnnxNetwork
from fer_pipeline.models.weights import load_network
from fer_pipeline.stages.align import empty_inputs
from fer_pipeline.stages.decode import Pixels


class Classifier:
    """A bundle's network on one core or one GPU, batch normalisation folded into the convolutions.

    Raise UserError where the bundle's files do not fit together. An ONNX network computes as exported, whatever `precision`.
    """

    def __init__(
        self, bundle: Bundle, precision: Literal["fp32", "bf16"], device: str = "cpu", batch_size: int | None = None
    ) -> None:
        torch.set_num_threads(1)
        self.card, self.precision, self.device = bundle.card, precision, device
        self.batch_size = batch_size or (64 if device == "cpu" else 1024)
        if bundle.card.format == "onnx":
            self._forward: Any = OnnxNetwork(bundle, device)
        else:
            self.network: Any = fuse(load_network(bundle)).to(device).to(memory_format=torch.channels_last)
            self._forward = self._run_torch

        probe = np.zeros((1, *empty_inputs(0, bundle.card.network).shape[1:]), np.uint8)
        if not np.isfinite(self.logits(np.concatenate([probe, probe + 128]))).all():
            raise UserError(f"The model '{bundle.card.name}' answers a blank crop with numbers that are not finite.")

    def logits(self, crops: Pixels) -> NDArray[np.float32]:
        """Return logits (n, classes), before any temperature, for uint8 crops (n, channels, side, side)."""
        batches = [self._forward(crops[start : start + self.batch_size]) for start in range(0, len(crops), self.batch_size)]
        return np.concatenate([np.zeros((0, len(self.card.label_space.classes)), np.float32), *batches])

    def __call__(self, crops: Pixels) -> NDArray[np.float32]:
        """Return probabilities (n, classes) for uint8 crops (n, channels, side, side)."""
        return scaled(self.logits(crops), self.card.calibration.temperature)

    @torch.inference_mode()
    def _run_torch(self, crops: Pixels) -> NDArray[np.float32]:
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            logits: torch.Tensor = self.network(torch.from_numpy(crops).to(self.device))
        return logits.float().cpu().numpy()
