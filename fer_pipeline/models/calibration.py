"""Calibration: a temperature that makes probabilities match accuracy, and the confidence below which a label is uncertain."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fer_pipeline.models.card import Calibration
from fer_pipeline.models.metrics import softmax
from fer_pipeline.models.prior import learned_prior

MAX_TEMPERATURE = 1000.0
"""Limit of the card's schema, at which probabilities are almost equal."""
THRESHOLD_STEPS = 10_000
"""Number of confidence thresholds to try between 0 and 1."""


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature that minimises the Brier score of logits (n, classes).

    Guo et al. (2017) scale by the temperature that minimises the cross-entropy. On held-out halves of FER-2013's PublicTest that
    left the confidence two points above the accuracy (ECE .032); the Brier score does not (ECE .024). If the logits say nothing
    about the labels, there is no best temperature, so the result stays between 1 / `MAX_TEMPERATURE` and `MAX_TEMPERATURE`.
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
    return min(max(float(log_temperature.detach().exp()), 1 / MAX_TEMPERATURE), MAX_TEMPERATURE)


def fit_threshold(probabilities: NDArray[np.floating], labels: NDArray[np.integer], accuracy: float) -> float:
    """Return the lowest confidence threshold at or above which at least a share `accuracy` of the labels is right.

    It is a multiple of 1 / `THRESHOLD_STEPS` below 1, so labels between two multiples are either all certain or all uncertain. It
    is 1.0 (every label is uncertain) if no threshold reaches the accuracy.
    """
    confidence = probabilities.max(1).astype(np.float64)
    step = np.floor(confidence * THRESHOLD_STEPS)
    step = np.minimum(step - (step / THRESHOLD_STEPS > confidence), THRESHOLD_STEPS - 1)
    order = np.argsort(-step, kind="stable")
    step, correct = step[order], (probabilities.argmax(1) == labels)[order]
    last_of_step = np.append(step[1:] != step[:-1], True)
    reached = np.nonzero((np.cumsum(correct) / np.arange(1, len(order) + 1) >= accuracy) & last_of_step)[0]
    return float(step[reached[-1]] / THRESHOLD_STEPS) if len(reached) else 1.0


def calibrate(logits: Tensor, labels: Tensor, certain_accuracy: float) -> Calibration:
    """Return the calibration fitted on a split's logits (n, classes) and labels (n,)."""
    temperature = round(fit_temperature(logits, labels), 4)  # rounded as in the card, because labelling uses that value
    probabilities = softmax(logits.numpy(), temperature)
    prior = learned_prior(probabilities, labels.numpy())
    return Calibration(
        prior=() if prior is None else tuple(max(round(float(share), 6), 1e-6) for share in prior),
        temperature=temperature,
        uncertain_below=fit_threshold(probabilities, labels.numpy(), certain_accuracy),
    )


def cross_fitted(logits: Tensor, labels: Tensor, groups: NDArray[np.integer]) -> tuple[Tensor, tuple[float, float]]:
    """Return probabilities (n, classes) of each half under the temperature fitted on the other, and the halves' temperatures.

    Images of one group in `groups` (n,) are copies of each other and stay in one half, so no image is scored under a temperature
    that it helped to fit. Raise ValueError if the groups cannot form two halves.
    """
    names, members = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(names))
    half = torch.from_numpy((order % 2 == 0)[members])
    if half.all() or not half.any():
        raise ValueError("one group of copies cannot be split into halves")
    temperatures = fit_temperature(logits[half], labels[half]), fit_temperature(logits[~half], labels[~half])
    divisor = torch.where(half, temperatures[1], temperatures[0])[:, None]
    return torch.softmax(logits / divisor, 1), temperatures
