"""Calibration: probabilities that mean what they say, and the confidence under which a label is called uncertain."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fer_pipeline.core.metrics import expected_calibration_error
from fer_pipeline.models.card import Calibration


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature that minimises the cross-entropy of logits (n, classes) (Guo et al., 2017)."""
    log_temperature = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(logits.double() / log_temperature.exp(), labels)
        torch.autograd.backward(value)
        return value

    optimizer.step(loss)
    return float(log_temperature.detach().exp())


def fit_threshold(probabilities: NDArray[np.floating], labels: NDArray[np.integer], accuracy: float) -> float:
    """Return the least confidence such that the labels at or above it are right in a share of at least `accuracy`.

    1.0 (every label is uncertain) where no threshold reaches it.
    """
    confidence = probabilities.max(1)
    order = np.argsort(-confidence, kind="stable")
    correct = (probabilities.argmax(1) == labels)[order]
    reached = np.nonzero(np.cumsum(correct) / np.arange(1, len(order) + 1) >= accuracy)[0]
    return float(confidence[order][reached[-1]]) if len(reached) else 1.0


def calibrate(logits: Tensor, labels: Tensor, certain_accuracy: float) -> Calibration:
    """Return the calibration fitted on a split's logits (n, classes) and labels (n,)."""
    temperature = fit_temperature(logits, labels)
    probabilities = torch.softmax(logits / temperature, 1).numpy()
    return Calibration(
        temperature=round(temperature, 4),
        uncertain_below=math.floor(fit_threshold(probabilities, labels.numpy(), certain_accuracy) * 10_000) / 10_000,
    )


def cross_fitted_ece(logits: Tensor, labels: Tensor, digests: list[str]) -> float:
    """Return the ECE after temperature scaling, each half scored under the temperature of the other.

    Images with equal digests are in one half, so none is scored under a temperature that it helped to fit.
    """
    half = torch.tensor([int(digest[:8], 16) % 2 == 0 for digest in digests])
    probabilities = torch.empty_like(logits)
    for scored, fitted in ((half, ~half), (~half, half)):
        probabilities[scored] = torch.softmax(logits[scored] / fit_temperature(logits[fitted], labels[fitted]), 1)
    return expected_calibration_error(probabilities.numpy(), labels.numpy())
