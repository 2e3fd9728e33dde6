"""Compares two models on the same images: is the candidate better than chance explains, and which classes lose recall?"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fer_pipeline.base.config import Config


class Rule(Config):
    """Conditions to move an alias to a candidate, applied to images that neither model saw in training, not even as a copy."""

    min_gain: float = Field(0.0, ge=0, le=1)
    """Minimum gain in accuracy."""
    max_p: float = Field(0.05, gt=0, le=1)
    """Maximum p-value of McNemar's exact two-sided test. With 1, the difference need not be significant."""
    max_recall_loss: float = Field(0.1, ge=0, le=1)
    """Maximum loss of recall of a class. Classes with fewer than `min_images` images are not checked."""
    min_images: int = Field(30, ge=1)
    """Minimum number of images of a class, and of the whole comparison, to draw a conclusion."""
    allow_unchecked_leaks: bool = False
    """Promote even if it is unknown which images either model, its initial model or its teachers learned."""


class Comparison(Config):
    """A comparison of a candidate with the incumbent on the same images."""

    images: int
    left_out: int
    """Images that a model saw in training, perhaps as a copy."""
    accuracy: float
    incumbent_accuracy: float
    only_candidate_right: int
    only_incumbent_right: int
    p: float
    recalls: dict[str, tuple[float, float, int]]
    """By class: the candidate's recall, the incumbent's recall, the number of images."""
    leaks: Literal["checked", "cannot be checked"] = "checked"
    """Whether all images that either model learned are known and were searched for."""
    reasons: list[str]
    """The conditions that the candidate fails; empty if it is promoted."""


def mcnemar(only_first_right: int, only_second_right: int) -> float:
    """Return the two-sided p-value of McNemar's exact test (1947): the probability that chance alone is this uneven or more."""
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
    """Return the comparison of two models' labels (n,) of the same images. `fresh` (n,) selects the images to use.

    `unchecked` names the models for which leaks cannot be checked.
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
        reasons.append(f"{images} images are too few for a conclusion (min_images {rule.min_images})")
    if accuracy - before < rule.min_gain or won <= lost:
        reasons.append(f"accuracy {before:.4f} becomes {accuracy:.4f}: the gain must be above 0 and at least {rule.min_gain:g}")
    if p > rule.max_p:
        reasons.append(f"the difference may be chance (p = {p:.3f}, must be at most {rule.max_p:g})")
    reasons += [
        f"the recall of {name} falls by {was - now:.3f} (must be at most {rule.max_recall_loss:g})"
        for name, (now, was, count) in recalls.items()
        if count >= rule.min_images and was - now > rule.max_recall_loss
    ]
    if unchecked and not rule.allow_unchecked_leaks:
        reasons.append(
            f"leaks cannot be checked, because it is unknown what {' and '.join(unchecked)} learned (allow_unchecked_leaks)"
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
