"""Which faces are most worth a person's answer: those between two labels, of different images, and some at random."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.faces.phash import NEAR_BITS, hashes_of

RANDOM_SHARE = 0.1
"""Only faces that are chosen at random may stand for all: an estimate uses their answers alone."""
SPARE = 4
"""Candidates for each pick, of which those of one image, or of near copies, give one."""


def with_margin(faces: pa.Table, classes: Sequence[str], rng: np.random.Generator) -> pa.Table:
    """Return rows of `flat_faces` with `margin`, between the two highest probabilities, and `lot`, a random number."""
    chances = np.stack([faces[f"p_{name}"].to_numpy() for name in classes], 1) if len(faces) else np.zeros((0, len(classes)))
    highest = np.sort(chances, 1)[:, -2:] if len(classes) > 1 else np.ones((len(faces), 2))
    faces = faces.append_column("margin", pa.array(highest[:, -1] - highest[:, 0], pa.float64()))
    return faces.append_column("lot", pa.array(rng.random(len(faces))))


def candidates(faces: pa.Table, pick: int) -> pa.Table:
    """Return the rows of which `picked` needs no others, however many rows there were before."""
    by_lot = pc.sort_indices(faces, [("lot", "ascending")])[: _at_random(pick)]
    by_margin = pc.sort_indices(faces, [("margin", "ascending"), ("lot", "ascending")])[: SPARE * pick + len(by_lot)]
    return faces.take(pc.unique(pa.chunked_array([by_lot, by_margin]).combine_chunks()))


def picked(faces: pa.Table, pick: int) -> pa.Table:
    """Return at most `pick` rows with `chosen`, `random` or `margin`, in random order.

    Of an image and its near copies, by `phash`, at most one face is chosen by its margin.
    """
    lots, margins = faces["lot"].to_numpy(), faces["margin"].to_numpy()
    at_random = np.argsort(lots)[: _at_random(pick)].tolist()
    hashes = hashes_of(faces["phash"]).to_pylist() if "phash" in faces.column_names else [None] * len(faces)
    chosen, seen = dict.fromkeys(at_random, "random"), np.zeros((pick, 32), np.uint8)
    count = 0
    for place in np.lexsort((lots, margins)).tolist():
        if len(chosen) >= pick:
            break
        own = hashes[place]
        if place in chosen:
            continue
        if own is not None:
            packed = np.frombuffer(own, np.uint8)
            if (np.bitwise_count(seen[:count] ^ packed).sum(1) <= NEAR_BITS).any():
                continue
            seen[count], count = packed, count + 1
        chosen[place] = "margin"
    order = sorted(chosen, key=lambda place: float(lots[place]))
    rows = faces.take(pa.array(order, pa.int64())).append_column("chosen", pa.array([chosen[place] for place in order]))
    return rows.drop_columns(["margin", "lot"])


def _at_random(pick: int) -> int:
    return max(1, round(RANDOM_SHARE * pick))
