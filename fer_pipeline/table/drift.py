"""Distances between histograms, reduced by the distance that chance alone gives for samples of their sizes."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NORMAL_QUANTILE = 3.3
"""The 0.9995 quantile of the normal distribution: chance exceeds it once in two thousand nights, for each check."""
SMOOTHING = 0.5
"""Added to each count, so that an empty bin does not give an infinite distance (Krichevsky-Trofimov)."""


def population_stability(found: Sequence[float], reference: Sequence[float]) -> float:
    """Return the population stability index of two histograms (bins,), less the effect of chance; 0 if one is empty.

    For samples of one distribution the index is (1/n + 1/m) times a chi-square of bins - 1 degrees of freedom (Yurdakul, 2018).
    """
    p, q, n, m = _shares(found, reference)
    if not min(n, m):
        return 0.0
    index = float(((p - q) * np.log(p / q)).sum())
    return max(0.0, index - _chi_square(len(p) - 1) * (1 / n + 1 / m))


def jensen_shannon(found: Sequence[float], reference: Sequence[float]) -> float:
    """Return the Jensen-Shannon divergence in bits (0 to 1) of two histograms (bins,), less the effect of chance.

    For samples of one distribution the divergence is (1/n + 1/m) / (8 ln 2) times a chi-square of bins - 1 degrees of freedom.
    """
    p, q, n, m = _shares(found, reference)
    if not min(n, m):
        return 0.0
    mean = (p + q) / 2
    divergence = float((p * np.log2(p / mean) + q * np.log2(q / mean)).sum()) / 2
    return max(0.0, divergence - _chi_square(len(p) - 1) * (1 / n + 1 / m) / (8 * math.log(2)))


def share_difference(found: int, of: int, reference: int, of_reference: int) -> float:
    """Return the difference of two shares, less the effect of chance; 0 if one of the totals is 0."""
    if not min(of, of_reference):
        return 0.0
    pooled = (found + reference) / (of + of_reference)
    chance = NORMAL_QUANTILE * math.sqrt(pooled * (1 - pooled) * (1 / of + 1 / of_reference))
    return max(0.0, abs(found / of - reference / of_reference) - chance)


def excess(found: int, of: int, limit: float) -> float:
    """Return a share, less what chance adds to a true share of `limit`: one failure of one record proves little."""
    return max(0.0, found / of - NORMAL_QUANTILE * math.sqrt(limit * (1 - limit) / of)) if of else 0.0


def _shares(found: Sequence[float], reference: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64], float, float]:
    """Return both histograms as smoothed shares of the bins that are not empty in both, and their totals."""
    p, q = np.asarray(found, np.float64), np.asarray(reference, np.float64)
    filled = (p + q) > 0
    p, q = p[filled], q[filled]
    smooth = [(one + SMOOTHING) / (one + SMOOTHING).sum() if len(one) else one for one in (p, q)]
    return smooth[0], smooth[1], float(p.sum()), float(q.sum())


def _chi_square(degrees: int) -> float:
    """Return the 0.9995 quantile of a chi-square distribution (Wilson and Hilferty, 1931)."""
    if degrees < 1:
        return 0.0
    part = 2 / (9 * degrees)
    return degrees * (1 - part + NORMAL_QUANTILE * math.sqrt(part)) ** 3
