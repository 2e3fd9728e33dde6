from typing import Any

import numpy as np
import pyarrow as pa

from fer_pipeline.datasets.duplicates import inspect, join_keys
from fer_pipeline.faces.phash import NEAR_BITS, near_pairs, near_to


def flipped(digest: bytes, bits: int) -> bytes:
    """Return a hash that differs in the last `bits` bits."""
    return (int.from_bytes(digest, "big") ^ ((1 << bits) - 1)).to_bytes(32, "big")


HASHES = [np.random.default_rng(seed).bytes(32) for seed in range(6)]


def samples(rows: list[tuple[str, str, int, bytes, float]]) -> pa.Table:
    names = ["sha256", "split", "label", "phash", "contrast"]
    columns: dict[str, list[Any]] = {name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
    return pa.table({"sample_id": [f"s{n}" for n in range(len(rows))]} | columns)


def test_exact_copies_are_told_within_and_across_splits() -> None:
    a, b, c = HASHES[:3]
    table = samples(
        [
            ("a", "train", 0, a, 50.0),
            ("a", "train", 0, a, 50.0),
            ("b", "train", 1, b, 50.0),
            ("c", "train", 2, c, 50.0),
            ("a", "validation", 0, a, 50.0),
            ("c", "validation", 3, c, 50.0),
        ]
    )
    found, flagged = inspect(table)
    assert (found.groups, found.images, found.conflicting_groups) == (2, 5, 1)
    assert found.within == {"train": 1, "validation": 0}
    assert found.across == {"train -> validation": 2, "validation -> train": 3}
    rows = {row["sample_id"]: (row["reason"], row["like"]) for row in flagged.to_pylist()}
    assert rows == {
        "s0": ("leak", "s4"),
        "s1": ("leak", "s4"),
        "s3": ("conflict", "s3"),
        "s4": ("leak", "s0"),
        "s5": ("conflict", "s3"),
    }


def test_near_copies_and_blank_images_are_suspect() -> None:
    a, b, c = HASHES[:3]
    table = samples(
        [
            ("a", "train", 0, a, 50.0),
            ("b", "validation", 0, flipped(a, NEAR_BITS), 50.0),
            ("c", "train", 0, b, 50.0),
            ("d", "train", 0, flipped(b, 3), 50.0),
            ("e", "train", 0, c, 0.0),
            ("f", "train", 0, flipped(c, 1), 0.0),
            ("g", "train", 0, flipped(HASHES[3], 1), 50.0),
            ("h", "train", 0, flipped(HASHES[3], NEAR_BITS + 2), 50.0),
        ]
    )
    found, flagged = inspect(table)
    assert (found.groups, found.near_pairs, found.blank) == (0, 2, 2)
    assert found.near_across == {"train -> validation": 1, "validation -> train": 1}
    reasons = dict(zip(flagged["sample_id"].to_pylist(), flagged["reason"].to_pylist(), strict=True))
    assert reasons == {
        "s0": "near leak",
        "s1": "near leak",
        "s3": "near copy",
        "s4": "blank",
        "s5": "blank",
    }


def test_near_pairs_are_those_of_a_full_comparison() -> None:
    rng = np.random.default_rng(1)
    hashes = [rng.bytes(32) for _ in range(60)]
    for bits in range(1, 30):
        spots = rng.choice(256, bits, replace=False)
        value = int.from_bytes(hashes[bits], "big")
        for spot in spots:
            value ^= 1 << int(spot)
        hashes.append(value.to_bytes(32, "big"))
    found = {(int(one), int(other)) for one, other in near_pairs(pa.chunked_array([hashes]))}
    number = [int.from_bytes(digest, "big") for digest in hashes]
    pairs = [(i, j) for i in range(len(number)) for j in range(i + 1, len(number))]
    assert found == {(i, j) for i, j in pairs if (number[i] ^ number[j]).bit_count() <= NEAR_BITS}
    assert len(found) == NEAR_BITS
    near = near_to(pa.chunked_array([[None, *hashes[60:]]]), pa.chunked_array([hashes[:60]]))
    assert near.tolist() == [False, *(bits <= NEAR_BITS for bits in range(1, 30))]


def test_keys_join_by_way_of_names() -> None:
    joined = join_keys(np.array([1, 2, 3, 1, 4]), ["x", None, "x", "y", "y"])
    assert joined[0] == joined[2] == joined[3] == joined[4] != joined[1]
