"""Drift exceeds chance: nights of one distribution are not held, and shifts of a stated size are."""

import numpy as np
import pytest

from fer_pipeline.table.drift import jensen_shannon, population_stability, share_difference
from fer_pipeline.table.thresholds import Thresholds
from tests.table.runs import multinomial

MIX = [0.35, 0.25, 0.15, 0.1, 0.08, 0.05, 0.02]


def test_equal_histograms_do_not_drift_and_disjoint_ones_do_as_far_as_can_be() -> None:
    assert jensen_shannon([500, 500], [500, 500]) == 0 and population_stability([500, 500], [500, 500]) == 0
    assert jensen_shannon([10**6, 0], [0, 10**6]) == pytest.approx(1, abs=1e-3)
    assert share_difference(900_000, 10**6, 100_000, 10**6) == pytest.approx(0.8, abs=0.01)


def test_nothing_to_compare_with_is_no_drift() -> None:
    assert jensen_shannon([0, 0], [5, 5]) == population_stability([], []) == share_difference(0, 0, 5, 10) == 0


@pytest.mark.parametrize("faces", [20, 200, 2_000, 20_000])
def test_chance_alone_alarms_less_than_once_in_a_hundred_nights(faces: int) -> None:
    """The thresholds are zero, so only the correction for chance prevents alarms."""
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(1000):
        night, before = multinomial(rng, faces, MIX), multinomial(rng, 7 * faces, MIX)
        of, of_before = sum(night), sum(before)
        alarms += bool(jensen_shannon(night, before) or share_difference(night[0], of, before[0], of_before))
    assert alarms <= 10


@pytest.mark.parametrize(("faces", "shift"), [(1_000, 0.3), (10_000, 0.2), (100_000, 0.2)])
def test_a_shift_of_the_mix_is_found_nine_times_in_ten(faces: int, shift: float) -> None:
    """A share of the faces changes from the first expression to the last."""
    rng, limit, found = np.random.default_rng(0), Thresholds().expressions, 0
    shifted = [MIX[0] - shift, *MIX[1:-1], MIX[-1] + shift]
    for _ in range(100):
        found += jensen_shannon(multinomial(rng, faces, shifted), multinomial(rng, 7 * faces, MIX)) > limit
    assert found >= 90
