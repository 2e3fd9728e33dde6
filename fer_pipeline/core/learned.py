"""What a model learned, image by image, as digests: so that a leak is found in any dataset, however that was cut into splits."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.core.duplicates import BLANK_BELOW, Copies, find_copies, near_to

LEARNED = pa.schema(
    [
        pa.field("pixels", pa.binary(16), nullable=False),  # first half of the sha256 of the pixels
        pa.field("phash", pa.binary(32)),  # perceptual hash; null of a blank image, which is near to nothing
    ]
)
MOST_IMAGES = 2_000_000
"""Images that a bundle keeps digests of, 48 bytes each: 1.5 MB for 30,000 and 48 MB for a million."""


def learned_images(samples: pa.Table) -> pa.Table:
    """Return the digests of samples (`duplicates.DUPLICATE_COLUMNS`) as rows of `LEARNED`."""
    pixels = pa.array([bytes.fromhex(digest[:32]) for digest in samples["sha256"].to_pylist()], pa.binary(16))
    blank = (samples["contrast"].to_numpy() < BLANK_BELOW).tolist()
    hashes = [None if hidden else bits for bits, hidden in zip(samples["phash"].to_pylist(), blank, strict=True)]
    return pa.table([pixels, pa.array(hashes, pa.binary(32))], schema=LEARNED)


def joined(parts: Iterable[pa.Table]) -> pa.Table:
    """Return what several trainings learned, each image once, ordered by digest."""
    rows = pa.concat_tables([LEARNED.empty_table(), *parts])
    each = rows.group_by("pixels", use_threads=False).aggregate([("phash", "first")])
    return each.rename_columns(LEARNED.names).cast(LEARNED).sort_by("pixels")


def find_learned(samples: pa.Table, split: str, learned: pa.Table) -> Copies:
    """Return the copies that the samples in `split` have there and among learned images (rows of `LEARNED`)."""
    groups = find_copies(samples, split, None).groups
    mine = samples.filter(pc.equal(samples["split"], split))
    ours, ids = learned_images(mine), np.array(mine["sample_id"].to_pylist(), object)
    exact = pc.is_in(ours["pixels"], learned["pixels"].combine_chunks()).to_numpy()
    near = near_to(ours["phash"], learned["phash"].drop_null()) & ~exact
    return Copies(groups, frozenset(ids[exact]), frozenset(ids[near]))
