"""Teachers: trained networks that provide probabilities for a network to learn in addition to labels (Hinton et al., 2015)."""

from dataclasses import replace

import torch
from torch import Tensor

from fer_pipeline.models.bundle import Bundle
from fer_pipeline.models.labelled_images import LabelledImages
from fer_pipeline.models.weights import load_network


class Teachers:
    """Averages the calibrated probabilities of several bundles over each image and its mirror image."""

    def __init__(self, bundles: tuple[Bundle, ...], device: torch.device, precision: str) -> None:
        self.networks = [(load_network(bundle).to(device), bundle.card.calibration.temperature) for bundle in bundles]
        for network, _ in self.networks:
            network.to(memory_format=torch.channels_last)
        self.device, self.precision = device, precision

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 probabilities (n, classes) for uint8 images (n, c, h, w) that are not degraded yet."""
        views = torch.cat([images, images.flip(3)])
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            answers = [torch.softmax(network(views).float() / temperature, 1) for network, temperature in self.networks]
        mean = torch.stack(answers).mean(0)
        return (mean[: len(images)] + mean[len(images) :]) / 2

    def teach(self, data: LabelledImages) -> LabelledImages:
        """Return a split with these probabilities added. Its images must be on the teachers' device."""
        return replace(data, taught=torch.cat([self(images) for images in data.images.split(256)]))
