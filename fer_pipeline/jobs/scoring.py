"""Predict a split of a dataset, one task per file: evaluation and training compute their figures from the predictions."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fer_pipeline.base.memory import lift_memory_limit
from fer_pipeline.datasets.dataset import sample_files
from fer_pipeline.datasets.training_data import SplitReader
from fer_pipeline.engine.machines import Machines
from fer_pipeline.engine.progress import progress
from fer_pipeline.engine.tasks import Shared, fan_out, share
from fer_pipeline.faces.classify import Classifier, Precision
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

    classifier = shared.load(_make_classifier)
    return [
        Predictions(np.array(chunk.ids, object), classifier.logits(chunk.images), chunk.labels, chunk.votes)
        for chunk in shared.get().reader.chunks_of(uri, ROWS_PER_BATCH)
    ]


def _make_classifier(context: ScoringContext) -> Classifier:
    return Classifier(context.bundle, context.precision, context.device)
