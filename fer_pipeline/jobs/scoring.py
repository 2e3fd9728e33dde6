"""Predict a split of a dataset, one task per file: evaluation and training compute their figures from the predictions."""

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from fer_pipeline.base.memory import lift_memory_limit
from fer_pipeline.datasets.dataset import sample_files
from fer_pipeline.datasets.training_data import SplitReader
from fer_pipeline.engine.machines import Machines
from fer_pipeline.engine.progress import progress
from fer_pipeline.engine.tasks import Shared, fan_out, share
from fer_pipeline.faces.classify import Classifier, Precision
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.faces.quality import input_quality
from fer_pipeline.models.bundle import Bundle

if TYPE_CHECKING:  # it imports torch, which a worker cannot load under the memory limit for untrusted files
    from fer_pipeline.models.evaluation import Predictions

ROWS_PER_BATCH = 512


@dataclass(frozen=True)
class ScoringContext:
    """What each task needs."""

    bundle: Bundle
    reader: SplitReader
    precision: Precision
    device: str
    corrupted: float = 0.0
    """Share of the images that are corrupted first (`models/corruption.py`)."""


def predict_split(context: ScoringContext, machines: Machines) -> "Predictions":
    """Return the predictions for the reader's split; the images stay in the tasks."""
    from fer_pipeline.models.evaluation import joined

    files, batches = sample_files(context.reader.dataset), list["Predictions"]()
    gpus = 1.0 if context.device == "cuda" else 0.0
    with progress("evaluating files", len(files)) as advance:
        for found in fan_out(_predict_file, files, share(context), machines=machines, num_gpus=gpus):
            batches += found
            advance(1)
    return joined(batches)


def _predict_file(shared: Shared[ScoringContext], uri: str) -> "list[Predictions]":
    """Return the predictions for one file's samples of the split."""
    lift_memory_limit()
    from fer_pipeline.models.evaluation import Predictions

    classifier, context, found = shared.load(_make_classifier), shared.get(), []
    for chunk in context.reader.chunks_of(uri, ROWS_PER_BATCH):
        images = _corrupted(chunk.images, chunk.ids[0], context.corrupted) if context.corrupted else chunk.images
        quality = np.array([input_quality(image) for image in images], np.float32)
        found.append(Predictions(np.array(chunk.ids, object), classifier.logits(images), chunk.labels, chunk.votes, quality))
    return found


def _corrupted(images: Pixels, seed: str, share: float) -> Pixels:
    """Return images (n, channels, side, side), a share of which is corrupted; the same for the same seed."""
    import torch

    from fer_pipeline.models.corruption import corrupt

    generator = torch.Generator().manual_seed(int.from_bytes(blake2b(seed.encode(), digest_size=4).digest()))
    return np.asarray(corrupt(torch.from_numpy(images), share, generator).numpy(), np.uint8)


def _make_classifier(context: ScoringContext) -> Classifier:
    return Classifier(context.bundle, context.precision, context.device)
