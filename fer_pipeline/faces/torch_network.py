"""A bundle's network in torch for labelling and evaluation, with batch normalisation folded into the convolutions."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx.experimental.optimization import fuse

from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.models.bundle import Bundle
from fer_pipeline.models.weights import load_network


class TorchNetwork:
    """Crops uint8 (n, channels, side, side) to float32 logits (n, classes), on one core or one GPU, in `bf16` or `fp32`."""

    def __init__(self, bundle: Bundle, precision: str, device: str) -> None:
        torch.set_num_threads(1)
        self.precision, self.device = precision, device
        self.network: Any = fuse(load_network(bundle)).to(device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, crops: Pixels) -> NDArray[np.float32]:
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            logits: torch.Tensor = self.network(torch.from_numpy(crops).to(self.device))
        return logits.float().cpu().numpy()
