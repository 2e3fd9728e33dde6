"""A model's answers on a split of a dataset, predicted file by file in tasks: what evaluation and training publish figures of."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fer_pipeline.core.dataset import sample_files
from fer_pipeline.core.memory import lift_memory_limit
from fer_pipeline.jobs.progress import progress
from fer_pipeline.jobs.shared import Shared, fan_out, share
from fer_pipeline.models.bundle import Bundle
from fer_pipeline.stages.classify import Classifier, Precision
from fer_pipeline.stages.training_data import SplitReader

if TYPE_CHECKING:  # it imports torch, which a worker under the memory limit of strangers' files cannot load
    from fer_pipeline.models.evaluation import Predictions

ROWS_PER_BATCH = 512


@dataclass(frozen=True)
class ScoringContext:
    """What every task needs."""

    bundle: Bundle
    reader: SplitReader
    precision: Precision
    device: str


def predict_split(context: ScoringContext, wait_s: float) -> "Predictions":
    """Return the predictions for the reader's split; the images stay in the tasks. `wait_s`: see `fan_out`."""
    from fer_pipeline.models.evaluation import joined

    files, batches = sample_files(context.reader.dataset), list["Predictions"]()
    gpus = 1.0 if context.device == "cuda" else 0.0
    with progress("evaluating files", len(files)) as advance:
        for found in fan_out(_predict_file, files, share(context), wait_s=wait_s, num_gpus=gpus):
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
