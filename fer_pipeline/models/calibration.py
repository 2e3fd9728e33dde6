"""Calibration: probabilities that mean what they say, and the confidence under which a label is called uncertain."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fer_pipeline.core.metrics import softmax
from fer_pipeline.core.prior import learned_prior
from fer_pipeline.models.card import Calibration

MOST_TEMPERATURE = 1000.0
"""What a card takes: probabilities are all but equal there."""
STEPS = 10_000
"""Thresholds of confidence in the unit interval that are tried."""


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature that minimises the Brier score of logits (n, classes).

    Temperature scaling as by Guo et al. (2017), who minimise the cross-entropy: on FER-2013's PublicTest that left the confidence
    of labels two points above their accuracy, in halves that did not fit it (ECE .032); this does not (.024). Logits that say
    nothing of the labels have no best temperature: it stays within `MOST_TEMPERATURE`.
    """
    truth = F.one_hot(labels, logits.shape[1])
    log_temperature = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (torch.softmax(logits.double() / log_temperature.exp(), 1) - truth).square().sum(1).mean()
        torch.autograd.backward(value)
        return value

    optimizer.step(loss)
    return min(max(float(log_temperature.detach().exp()), 1 / MOST_TEMPERATURE), MOST_TEMPERATURE)


def fit_threshold(probabilities: NDArray[np.floating], labels: NDArray[np.integer], accuracy: float) -> float:
    """Return the least confidence such that the labels at or above it are right in a share of at least `accuracy`.

    A multiple of 1 / `STEPS` below 1. Labels between two multiples are certain together, or not at all; 1.0 (every label is
    uncertain) where no threshold reaches the accuracy.
    """
    confidence = probabilities.max(1).astype(np.float64)
    step = np.floor(confidence * STEPS)
    step = np.minimum(step - (step / STEPS > confidence), STEPS - 1)
    order = np.argsort(-step, kind="stable")
    step, correct = step[order], (probabilities.argmax(1) == labels)[order]
    last_of_step = np.append(step[1:] != step[:-1], True)
    reached = np.nonzero((np.cumsum(correct) / np.arange(1, len(order) + 1) >= accuracy) & last_of_step)[0]
    return float(step[reached[-1]] / STEPS) if len(reached) else 1.0


def calibrate(logits: Tensor, labels: Tensor, certain_accuracy: float) -> Calibration:
    """Return the calibration fitted on a split's logits (n, classes) and labels (n,)."""
    temperature = round(fit_temperature(logits, labels), 4)  # as the card says it: labelling divides by that
    probabilities = softmax(logits.numpy(), temperature)
    prior = learned_prior(probabilities, labels.numpy())
    return Calibration(
        prior=() if prior is None else tuple(max(round(float(share), 6), 1e-6) for share in prior),
        temperature=temperature,
        uncertain_below=fit_threshold(probabilities, labels.numpy(), certain_accuracy),
    )


def cross_fitted(logits: Tensor, labels: Tensor, groups: NDArray[np.integer]) -> tuple[Tensor, tuple[float, float]]:
    """Return probabilities (n, classes) after temperature scaling, each half scored under the temperature of the other.

    Images of one group (n,), which are copies of each other, are in one half; so none is scored under a temperature that it
    helped to fit. The halves' own temperatures come with it. Raise ValueError where the groups do not make two halves.
    """
    names, members = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(names))
    half = torch.from_numpy((order % 2 == 0)[members])
    if half.all() or not half.any():
        raise ValueError("one group of copies cannot be cut into halves")
    temperatures = fit_temperature(logits[half], labels[half]), fit_temperature(logits[~half], labels[~half])
    divisor = torch.where(half, temperatures[1], temperatures[0])[:, None]
    return torch.softmax(logits / divisor, 1), temperatures
