"""A candidate is promoted if it is better beyond chance and no class loses much recall."""

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import binomtest

from fer_pipeline.models.comparison import Comparison, Rule, compare, mcnemar


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (5, 5), (10, 2), (3, 40), (400, 300), (5000, 4800)])
def test_mcnemar_is_the_exact_binomial_test(won: int, lost: int) -> None:
    expected = binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert mcnemar(won, lost) == pytest.approx(expected, rel=1e-6)


def compared(gain: int, rule: Rule = Rule(), fresh: bool = True, only_sad: bool = False) -> Comparison:  # noqa: B008 (frozen)
    """Compare on 1,000 images, half happy, half sad. The incumbent is right on 600, the candidate on `gain` more."""
    labels = ["happy", "sad"] * 500
    other = {"happy": "sad", "sad": "happy"}
    right = np.zeros(1000, bool)
    right[:600] = True
    better = right.copy()
    better[600 : 600 + max(gain, 0)] = True
    better[600 + min(gain, 0) : 600] = False
    if only_sad:
        better = np.array([label == "sad" for label in labels])
        better[600:1000:2] = True
    incumbent = [label if ok else other[label] for label, ok in zip(labels, right, strict=True)]
    candidate = [label if ok else other[label] for label, ok in zip(labels, better, strict=True)]
    return compare(labels, candidate, incumbent, np.full(1000, fresh), rule)


def test_a_better_candidate_passes_and_a_worse_or_equal_one_does_not() -> None:
    assert compared(50).reasons == []
    assert any("the gain must be above 0" in reason for reason in compared(-50).reasons)
    assert any("the gain must be above 0" in reason for reason in compared(0).reasons)


def test_a_gain_that_chance_explains_does_not_pass_unless_it_is_allowed() -> None:
    assert any("may be chance" in reason for reason in compared(4).reasons)
    assert compared(4, Rule(max_p=1)).reasons == []


def test_a_gain_at_the_cost_of_a_class_does_not_pass() -> None:
    found = compared(0, only_sad=True)
    assert found.accuracy > found.incumbent_accuracy and any("recall of happy" in reason for reason in found.reasons)


def test_images_that_a_model_learned_from_do_not_count() -> None:
    found = compared(50, fresh=False)
    assert (found.images, found.left_out) == (0, 1000) and "too few" in found.reasons[0]


def test_a_gain_below_nothing_cannot_be_asked_for() -> None:
    with pytest.raises(ValidationError, match="min_gain"):
        Rule(min_gain=-0.05)
