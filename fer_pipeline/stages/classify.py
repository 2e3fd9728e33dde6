"""Classify: crops to calibrated probabilities."""

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx.experimental.optimization import fuse

from fer_pipeline.models.bundle import load_network
from fer_pipeline.models.card import BundleFiles
from fer_pipeline.stages.decode import Pixels


class Classifier:
    """A bundle's network on one core or one GPU, batch normalisation folded into the convolutions."""

    def __init__(
        self, bundle: BundleFiles, precision: Literal["fp32", "bf16"], device: str = "cpu", batch_size: int | None = None
    ) -> None:
        torch.set_num_threads(1)
        self.card, self.precision, self.device = bundle.card, precision, device
        self.batch_size = batch_size or (64 if device == "cpu" else 1024)
        self.network: Any = fuse(load_network(bundle)).to(device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, crops: Pixels) -> NDArray[np.float32]:
        """Return probabilities (n, classes) for uint8 crops (n, channels, side, side)."""
        if not len(crops):
            return np.zeros((0, len(self.card.label_space.classes)), np.float32)
        logits = []
        for batch in torch.from_numpy(crops).split(self.batch_size):
            with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                logits.append(self.network(batch.to(self.device)).float())
        return torch.softmax(torch.cat(logits) / self.card.calibration.temperature, 1).cpu().numpy()
