import numpy as np
import pyarrow as pa

from fer_pipeline.labelling.picks import candidates, picked, with_margin

CLASSES = ("happy", "sad", "angry")


def faces(count: int, copies: int = 1, seed: int = 0) -> pa.Table:
    """Return faces with random probabilities; `copies` neighbours are near copies of one image."""
    rng = np.random.default_rng(seed)
    chances = rng.dirichlet((1, 1, 1), count).astype(np.float32)
    hashes = [rng.bytes(32) for _ in range(-(-count // copies))]
    table = {"number": range(count), "phash": [hashes[number // copies].hex() for number in range(count)]}
    return pa.table(table | {f"p_{name}": chances[:, index] for index, name in enumerate(CLASSES)})


def margins(table: pa.Table) -> list[float]:
    highest = np.sort(np.stack([table[f"p_{name}"].to_numpy() for name in CLASSES], 1), 1)
    return (highest[:, 2] - highest[:, 1]).tolist()  # type: ignore[no-any-return]


def test_a_tenth_is_random_and_the_rest_stands_between_two_labels() -> None:
    whole = faces(1000)
    found = picked(with_margin(whole, CLASSES, np.random.default_rng(1)), 50)
    chosen = found["chosen"].to_pylist()
    assert (chosen.count("random"), chosen.count("margin")) == (5, 45) and len(set(found["number"].to_pylist())) == 50
    close = [margin for margin, how in zip(margins(found), chosen, strict=True) if how == "margin"]
    assert max(close) <= sorted(margins(whole))[50] and {"margin", "lot"}.isdisjoint(found.column_names)


def test_near_copies_give_one_face() -> None:
    whole = faces(300, copies=10)
    found = picked(with_margin(whole, CLASSES, np.random.default_rng(1)), 40)
    close = [
        number // 10
        for number, how in zip(found["number"].to_pylist(), found["chosen"].to_pylist(), strict=True)
        if how == "margin"
    ]
    assert len(close) == len(set(close)) <= 30


def test_parts_give_what_the_whole_gives() -> None:
    """The choice holds few rows in memory, whatever the number of faces."""
    whole, kept = with_margin(faces(5000), CLASSES, np.random.default_rng(2)), None
    for start in range(0, 5000, 700):
        part = whole.slice(start, 700)
        kept = candidates(part if kept is None else pa.concat_tables([kept, part]), 30)
        assert len(kept) <= 5 * 30 + 6
    assert kept is not None
    assert sorted(picked(kept, 30)["number"].to_pylist()) == sorted(picked(whole, 30)["number"].to_pylist())


def test_fewer_faces_than_asked_for_are_all_picked() -> None:
    found = picked(with_margin(faces(7), CLASSES, np.random.default_rng(0)), 20)
    assert sorted(found["number"].to_pylist()) == list(range(7)) and found["chosen"].to_pylist().count("random") == 2
