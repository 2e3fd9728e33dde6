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
    """A bundle's network on one core, batch normalisation folded into the convolutions."""

    def __init__(self, bundle: BundleFiles, precision: Literal["fp32", "bf16"], batch_size: int = 64) -> None:
        torch.set_num_threads(1)
        self.card, self.precision, self.batch_size = bundle.card, precision, batch_size
        self.network: Any = fuse(load_network(bundle)).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, crops: Pixels) -> NDArray[np.float32]:
        """Return probabilities (n, classes) for uint8 crops (n, channels, side, side)."""
        if not len(crops):
            return np.zeros((0, len(self.card.label_space.classes)), np.float32)
        logits = []
        for batch in torch.from_numpy(crops).split(self.batch_size):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                logits.append(self.network(batch).float())
        return torch.softmax(torch.cat(logits) / self.card.calibration.temperature, 1).numpy()
