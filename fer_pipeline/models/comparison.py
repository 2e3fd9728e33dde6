"""Two models on the same images: is one better beyond chance, and what does it cost by class?"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fer_pipeline.core.config import Config


class Rule(Config):
    """What a candidate must show, on images of which neither model learned a copy, before an alias moves onto it."""

    min_gain: float = Field(0.0, ge=0, le=1)
    """Accuracy that it is better by, at least."""
    max_p: float = Field(0.05, gt=0, le=1)
    """Of McNemar's exact test, two-sided: 1 asks for no significance."""
    max_recall_loss: float = Field(0.1, ge=0, le=1)
    """Recall that a class may lose; classes of fewer than `min_images` images are not asked."""
    min_images: int = Field(30, ge=1)
    """Images of a class, and of the comparison, under which nothing is concluded."""
    allow_unchecked_leaks: bool = False
    """Promote although it is not known of all images that either model learned, by itself or by way of others."""


class Comparison(Config):
    """A candidate beside the incumbent on the same images."""

    images: int
    left_out: int
    """Images of which one of the models learned a copy."""
    accuracy: float
    incumbent_accuracy: float
    only_candidate_right: int
    only_incumbent_right: int
    p: float
    recalls: dict[str, tuple[float, float, int]]
    """By class: the candidate's recall, the incumbent's, images."""
    leaks: Literal["checked", "cannot be checked"] = "checked"
    """Whether all that both models learned is known, and was looked for among the images."""
    reasons: list[str]
    """In what the candidate falls short of the rule; none: it is promoted."""


def mcnemar(only_first_right: int, only_second_right: int) -> float:
    """Return the two-sided p-value of McNemar's exact test (1947): how likely so unequal a split is by chance."""
    n, least = only_first_right + only_second_right, min(only_first_right, only_second_right)
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(least + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def compare(
    labels: Sequence[str],
    candidate: Sequence[str],
    incumbent: Sequence[str],
    fresh: NDArray[np.bool_],
    rule: Rule,
    unchecked: Sequence[str] = (),
) -> Comparison:
    """Return what two models' answers (n,) to the same images are worth beside each other; `fresh` (n,) are the images to use.

    `unchecked` names the models whose leaks cannot be checked.
    """
    truth, first, second = (np.array(one, object)[fresh] for one in (labels, candidate, incumbent))
    right, was_right = first == truth, second == truth
    won, lost = int((right & ~was_right).sum()), int((was_right & ~right).sum())
    recalls = {
        name: (float(right[truth == name].mean()), float(was_right[truth == name].mean()), int((truth == name).sum()))
        for name in sorted(set(truth))
    }
    images = len(truth)
    accuracy, before = (float(one.mean()) if images else 0.0 for one in (right, was_right))
    p = mcnemar(won, lost)
    reasons = []
    if images < rule.min_images:
        reasons.append(f"{images} images are too few to conclude anything (min_images {rule.min_images})")
    if accuracy - before < rule.min_gain or won <= lost:
        reasons.append(f"its accuracy is {accuracy:.4f} beside {before:.4f}: the gain is less than {rule.min_gain:g}, or none")
    if p > rule.max_p:
        reasons.append(f"chance explains the difference (p = {p:.3f}, at most {rule.max_p:g})")
    reasons += [
        f"it loses {was - now:.3f} of the recall of {name} (at most {rule.max_recall_loss:g})"
        for name, (now, was, count) in recalls.items()
        if count >= rule.min_images and was - now > rule.max_recall_loss
    ]
    if unchecked and not rule.allow_unchecked_leaks:
        reasons.append(
            f"leaks cannot be checked, for it is not known what {' and '.join(unchecked)} learned (allow_unchecked_leaks)"
        )
    return Comparison(
        images=images,
        left_out=len(labels) - images,
        accuracy=accuracy,
        incumbent_accuracy=before,
        only_candidate_right=won,
        only_incumbent_right=lost,
        p=p,
        recalls=recalls,
        leaks="cannot be checked" if unchecked else "checked",
        reasons=reasons,
    )
