import numpy as np

from fer_pipeline.datasets.splits import hold_out

LABELS = np.repeat(np.arange(4), (1000, 300, 50, 7))


def test_every_class_gives_its_share() -> None:
    held = hold_out(LABELS, np.arange(len(LABELS)), 0.2, seed=1)
    shares = [int(held[label == LABELS].sum()) for label in range(4)]
    assert shares == [200, 60, 10, 1]


def test_groups_stay_together_and_shares_are_kept_nearly() -> None:
    groups = np.random.default_rng(0).integers(0, 200, len(LABELS))
    held = hold_out(LABELS, groups, 0.2, seed=1)
    assert all(len(set(held[groups == group])) == 1 for group in set(groups.tolist()))
    assert abs(held.mean() - 0.2) < 0.03
    assert abs(held[LABELS == 1].mean() - 0.2) < 0.05


def test_the_seed_decides() -> None:
    alone = np.arange(len(LABELS))
    first, again, other = (hold_out(LABELS, alone, 0.2, seed) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_copies_are_no_commoner_among_what_is_held_out() -> None:
    labels = np.repeat(np.arange(4), 1000)
    groups = np.concatenate([np.arange(3600), np.repeat(np.arange(3500, 3600), 4)])
    labels = labels[groups]
    held = hold_out(labels, groups, 0.2, seed=1)
    assert 0.1 < held[3600:].mean() < 0.3
