"""Digests of the images that a model learned, to find leaks in any dataset, whatever its splits."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.datasets.duplicates import BLANK_CONTRAST, Copies, find_copies, split_digest
from fer_pipeline.faces.phash import near_to
from fer_pipeline.models.bundle import LEARNED
from fer_pipeline.models.card import ModelCard


def learned_images(samples: pa.Table) -> pa.Table:
    """Return the digests of samples (`duplicates.DUPLICATE_COLUMNS`) as rows of `LEARNED`."""
    pixels = pa.array([bytes.fromhex(digest[:32]) for digest in samples["sha256"].to_pylist()], pa.binary(16))
    blank = (samples["contrast"].to_numpy() < BLANK_CONTRAST).tolist()
    hashes = [None if is_blank else bits for bits, is_blank in zip(samples["phash"].to_pylist(), blank, strict=True)]
    return pa.table([pixels, pa.array(hashes, pa.binary(32))], schema=LEARNED)


def joined(parts: Iterable[pa.Table]) -> pa.Table:
    """Return the images that several trainings learned as rows of `LEARNED`, each image once, ordered by digest."""
    rows = pa.concat_tables([LEARNED.empty_table(), *parts])
    unique = rows.group_by("pixels", use_threads=False).aggregate([("phash", "first")])
    return unique.rename_columns(LEARNED.names).cast(LEARNED).sort_by("pixels")


def find_learned(samples: pa.Table, split: str, learned: pa.Table) -> Copies:
    """Return which samples of `split` are copies of each other or of learned images (rows of `LEARNED`)."""
    groups = find_copies(samples, split, None).groups
    mine = samples.filter(pc.equal(samples["split"], split))
    ours, ids = learned_images(mine), np.array(mine["sample_id"].to_pylist(), object)
    exact = pc.is_in(ours["pixels"], learned["pixels"].combine_chunks()).to_numpy()
    near = near_to(ours["phash"], learned["phash"].drop_null()) & ~exact
    return Copies(groups, frozenset(ids[exact]), frozenset(ids[near]))


@dataclass(frozen=True)
class Leaks:
    """Images of a split that are copies of images the model learned."""

    split: str | None
    """The split of the dataset that the model learned unchanged, or None."""
    copies: Copies
    checked: bool
    """Whether all images that the model learned, with its initial model and teachers, are known and were searched for."""


def _may_come_from(name: str, layout: str) -> bool:
    """Return whether the dataset named in a recipe could be one of this layout; some layouts hold any dataset."""
    own = {"fer2013", "affectnet", "rafdb"}
    kind = layout.split("-")[0]
    return name.lower() != "imagenet" and (kind not in own or name.lower().startswith(kind))


def find_leaks(
    card: ModelCard, learned: pa.Table | None, samples: pa.Table, split: str, flagged: pa.Table, layout: str, digest: str
) -> Leaks:
    """Return the images of a dataset's `split` that are copies of images the model learned.

    `learned` holds the digests in the model's bundle (`bundle.read_learned`). Without them, the training split is found by its
    digest; `flagged`: samples that were perhaps not used in training. `layout` and `digest` describe the dataset.
    """
    data = card.data
    names: list[str] = samples["split"].unique().to_pylist() if data.train_digest else []
    whole = next((name for name in names if split_digest(samples, name) == data.train_digest), None)
    if learned is not None:
        known = not data.unknown and not any(_may_come_from(name, layout) for name in data.external)
        return Leaks(whole, find_learned(samples, split, learned), known)
    rows = flagged.to_pylist() if data.left_out and data.digest == digest else []
    left_out = frozenset(row["sample_id"] for row in rows if row["split"] == whole)
    recipe = card.recipe
    others = recipe.get("initial"), recipe.get("pretrained"), (recipe.get("training") or {}).get("teacher_weight")
    return Leaks(whole, find_copies(samples, split, whole, left_out), whole is not None and not any(others))
