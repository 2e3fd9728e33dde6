"""Class priors: how often each expression occurs in an archive, and what that makes of probabilities learned from another."""

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float64]

MOST_STEPS = 2000
CHANGE = 1e-7
"""Of every class's share in a step, below which the estimate stands."""


def estimated_prior(probabilities: NDArray[np.floating], learned: Probabilities) -> Probabilities:
    """Return the shares (classes,) of the classes among unlabelled samples (Saerens, Latinne & Decaestecker, 2002).

    `probabilities` (n, classes) are a calibrated model's, `learned` (classes,) its `learned_prior`. Expectation maximisation: the
    samples' corrected probabilities give a prior, which corrects them anew.
    """
    prior = learned
    for _ in range(MOST_STEPS):
        after = np.mean(corrected(probabilities, learned, prior), 0)
        if np.abs(after - prior).max() < CHANGE:
            return np.asarray(after)
        prior = after
    return prior


def learned_prior(probabilities: NDArray[np.floating], truth: NDArray[np.integer]) -> Probabilities | None:
    """Return the prior (classes,) that a model's probabilities (n, classes) go by; None where a class has no sample.

    Not the shares of the classes in what it learned, where its loss weighed rare classes more: the prior from which correcting to
    the shares in `truth` (n,) gives probabilities that add up to these shares.
    """
    shares = np.bincount(truth, minlength=probabilities.shape[1]) / max(1, len(truth))
    if not shares.all():
        return None
    learned = shares
    for _ in range(MOST_STEPS):
        mean = np.mean(corrected(probabilities, learned, shares), 0)
        if np.abs(mean - shares).max() < CHANGE:
            break
        learned = learned * mean / shares
        learned = learned / learned.sum()
    return np.asarray(learned)


def corrected(probabilities: NDArray[np.floating], learned: Probabilities, prior: Probabilities) -> Probabilities:
    """Return what probabilities (n, classes) learned under one prior are under another, by Bayes' rule."""
    weighted = np.asarray(probabilities, np.float64) * (prior / learned)
    return np.asarray(weighted / weighted.sum(1, keepdims=True))
