"""Class priors: how often each expression occurs in an archive, and how probabilities are corrected for these frequencies."""

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float64]

MAX_STEPS = 2000
"""Maximum number of steps of an estimate."""
TOLERANCE = 1e-7
"""An estimate has converged when every class share changes by less than this in a step."""


def estimated_prior(probabilities: NDArray[np.floating], learned: Probabilities) -> Probabilities:
    """Return the shares (classes,) of the classes among unlabelled samples (Saerens, Latinne & Decaestecker, 2002).

    `probabilities` (n, classes) come from a calibrated model, `learned` (classes,) is its `learned_prior`. Expectation
    maximisation: the corrected probabilities give a new prior; they are corrected again with it, until it stops changing.
    """
    prior = learned
    for _ in range(MAX_STEPS):
        after = np.mean(corrected(probabilities, learned, prior), 0)
        if np.abs(after - prior).max() < TOLERANCE:
            return np.asarray(after)
        prior = after
    return prior


def learned_prior(probabilities: NDArray[np.floating], truth: NDArray[np.integer]) -> Probabilities | None:
    """Return the prior (classes,) that a model's probabilities (n, classes) imply; None if a class has no sample.

    This prior differs from the class shares of the training data if the loss weighs rare classes more. Corrected from this prior
    to the shares in `truth` (n,), the probabilities have those shares as their mean.
    """
    shares = np.bincount(truth, minlength=probabilities.shape[1]) / max(1, len(truth))
    if not shares.all():
        return None
    learned = shares
    for _ in range(MAX_STEPS):
        mean = np.mean(corrected(probabilities, learned, shares), 0)
        if np.abs(mean - shares).max() < TOLERANCE:
            break
        learned = learned * mean / shares
        learned = learned / learned.sum()
    return np.asarray(learned)


def corrected(probabilities: NDArray[np.floating], learned: Probabilities, prior: Probabilities) -> Probabilities:
    """Return probabilities (n, classes) corrected from the prior `learned` to another `prior`, by Bayes' rule."""
    weighted = np.asarray(probabilities, np.float64) * (prior / learned)
    return np.asarray(weighted / weighted.sum(1, keepdims=True))
