"""Evaluate a model on a split of an ingested dataset: predictions file by file on Ray, then figures, a page and a table."""

import json
import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from pydantic import Field

import fer_pipeline
from fer_pipeline.core import duplicates, storage
from fer_pipeline.core.config import Config
from fer_pipeline.core.dataset import read_card, read_samples, read_suspects, sample_files
from fer_pipeline.core.duplicates import Copies, find_copies, split_digest
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.run import now
from fer_pipeline.jobs.cluster import ClusterConfig, connected
from fer_pipeline.jobs.progress import progress
from fer_pipeline.models.calibration import scaled
from fer_pipeline.models.card import BundleFiles, ModelCard, read_bundle
from fer_pipeline.models.evaluation import Predictions, evaluate, joined, predictions_of
from fer_pipeline.report.evaluation import evaluation_page
from fer_pipeline.stages.classify import Classifier
from fer_pipeline.stages.samples import SplitReader, class_indices, left_out_by_class

log = logging.getLogger(__name__)

EVALUATION, PAGE, PREDICTIONS = "evaluation.json", "evaluation.html", "predictions.parquet"
ROWS = 512
"""Samples that a task holds as images."""
AHEAD = 4
"""Files in work or waiting, for each core."""


class EvaluateConfig(Config):
    """Evaluate a model on a split of an ingested dataset."""

    model: str
    """Folder of a model bundle, NAME@ALIAS of a registry, or `embedded`."""
    data: str
    """Folder of an ingested dataset; its label space may be another one."""
    split: str
    """Which of its splits."""
    out: str
    """Folder of the results; those of an earlier evaluation there are replaced."""
    map: dict[str, str] = Field(default_factory=dict)
    """Classes of the dataset that stand for a class of the model of another name, such as `--map.contempt disgust`."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the classifier."""
    use_gpu: bool = False
    """A GPU for each task."""


class EvaluateResult(Config):
    """The figures that are asked for first; all of them stand in `evaluation.json`."""

    out: str
    images: int
    accuracy: float
    accuracy_95: tuple[float, float]
    macro_f1: float
    uar: float
    ece_before: float | None
    ece_cross_fitted: float | None
    images_without_training_images: int | None
    accuracy_without_training_images: float | None
    selected_on_this_split: bool


@dataclass(frozen=True)
class Scoring:
    """What every task needs."""

    bundle: BundleFiles
    reader: SplitReader
    precision: Literal["fp32", "bf16"]
    device: str


Reference = tuple["ray.ObjectRef[Scoring]"]
"""The scoring in a tuple of one, so that Ray hands tasks the reference and not a copy."""


def run(config: EvaluateConfig, cluster: ClusterConfig = ClusterConfig()) -> EvaluateResult:
    """Write `evaluation.json`, its page and the table of predictions into the folder `out`. Raise UserError before any work."""
    data, out = storage.normalize(config.data), storage.normalize(config.out)
    storage.require_access(data, out)
    bundle, dataset = read_bundle(config.model), read_card(data)
    card = bundle.card
    left_out = left_out_by_class(dataset, config.split, card.label_space, config.map)
    others = set(storage.list_names(out)) - {EVALUATION, PAGE, PREDICTIONS}
    if others:
        raise UserError(f"'{out}' holds other files ({min(others)}): choose a new folder for --out.")
    Classifier(bundle, config.precision)
    classes = class_indices(dataset.label_space.classes, card.label_space, config.map)
    reader = SplitReader(data, config.split, card.network, classes, tuple(range(len(dataset.vote_classes))))
    samples = read_samples(data, duplicates.COLUMNS)
    learned_split = _learned_split(card, samples)
    copies = find_copies(samples, config.split, learned_split, _left_out(card, data, learned_split))
    with connected(cluster, data, out):
        if config.use_gpu and not ray.cluster_resources().get("GPU"):
            raise UserError("This cluster has no GPU: leave out --use-gpu.")
        scored = list(_scored(Scoring(bundle, reader, config.precision, "cuda" if config.use_gpu else "cpu"), sample_files(data)))
    predictions = joined([predictions_of(one.ids, one.logits, one.labels, one.votes, copies) for one in scored])
    figures = {
        "model": {"name": card.name, "digest": bundle.digest, "format": card.format},
        "data": {
            "layout": dataset.layout,
            "digest": dataset.digest,
            "split": config.split,
            "left_out_by_class": left_out,
            "training_split": learned_split,
            "exact_copies_of_training_images": len(copies.exact),
            "near_copies_of_training_images": len(copies.near),
        },
        "selected_on_this_split": split_digest(samples, config.split) == card.data.validation_digest,
        "views": 2 if card.network.flip_averaging else 1,
        "precision": config.precision if card.format == "safetensors" else "as exported",
        "version": fer_pipeline.__version__,
        "evaluated_at": now(),
    } | _views(predictions, card, tuple(config.map.get(name, name) for name in dataset.vote_classes))
    page = evaluation_page(figures, card)
    storage.write_table(storage.join(out, PREDICTIONS), _table(scored, card, copies))
    storage.write_bytes(storage.join(out, EVALUATION), json.dumps(figures, indent=1).encode())
    storage.write_bytes(storage.join(out, PAGE), page.encode())
    log.info("%s", storage.join(out, PAGE))
    return _result(out, figures)


def _views(predictions: Predictions, card: ModelCard, votes: tuple[str, ...]) -> dict[str, Any]:
    """Return the figures on all images, and on those that are no copies of training images, if there are both kinds."""
    fresh = predictions[~predictions.learned]
    kinds = {"all": predictions, "without_training_images": fresh if 0 < len(fresh) < len(predictions) else None}
    return {name: some and evaluate(some, card.label_space, card.calibration, votes) for name, some in kinds.items()}


def _result(out: str, figures: dict[str, Any]) -> EvaluateResult:
    whole, without = figures["all"], figures["without_training_images"]
    calibration = whole["calibration"] or {}
    return EvaluateResult(
        out=out,
        images=whole["images"],
        accuracy=whole["accuracy"],
        accuracy_95=whole["intervals_95"]["accuracy"],
        macro_f1=whole["macro_f1"],
        uar=whole["uar"],
        ece_before=calibration.get("before", {}).get("ece"),
        ece_cross_fitted=calibration.get("cross_fitted", {}).get("ece"),
        images_without_training_images=without and without["images"],
        accuracy_without_training_images=without and without["accuracy"],
        selected_on_this_split=figures["selected_on_this_split"],
    )


def _learned_split(card: ModelCard, samples: pa.Table) -> str | None:
    """Return the dataset's split that the model learned from, told by the digest of its images; None where it is none."""
    wanted = card.data.train_digest
    names: list[str] = samples["split"].unique().to_pylist() if wanted else []
    return next((name for name in names if split_digest(samples, name) == wanted), None)


def _left_out(card: ModelCard, data: str, learned_split: str | None) -> frozenset[str]:
    """Return the ids of the learned split's suspects, where the training left them out."""
    suspects = read_suspects(data).to_pylist() if card.data.left_out else []
    return frozenset(row["sample_id"] for row in suspects if row["split"] == learned_split)


@dataclass(frozen=True)
class Scored:
    """The predictions for some samples: ids, logits (n, classes), labels (n,), votes (n, vote classes)."""

    ids: list[str]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    votes: NDArray[np.float32]


def _scored(scoring: Scoring, files: list[str]) -> Iterator[Scored]:
    """Yield the predictions chunk by chunk, in order; few files are ahead of the one that is waited for."""
    reference: Reference = (ray.put(scoring),)
    score = _score.options(num_gpus=1 if scoring.device == "cuda" else 0)
    ahead = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: deque[Any] = deque()
    rest = iter(files)
    with progress("evaluating files", len(files)) as advance:
        while True:
            waiting += [score.remote(reference, uri) for uri in islice(rest, ahead - len(waiting))]
            if not waiting:
                return
            yield from ray.get(waiting.popleft())
            advance(1)


@ray.remote(num_cpus=1)
def _score(reference: Reference, uri: str) -> list[Scored]:
    """Return the predictions for one file's samples of the split."""
    scoring, classifier = _loaded(reference)
    chunks = scoring.reader.chunks_of(uri, ROWS)
    return [Scored(chunk.ids, classifier.logits(chunk.images), chunk.labels, chunk.votes) for chunk in chunks]


@lru_cache(maxsize=1)
def _loaded(reference: Reference) -> tuple[Scoring, Classifier]:
    """Return this process's classifier, loaded once."""
    scoring = ray.get(reference[0])
    return scoring, Classifier(scoring.bundle, scoring.precision, scoring.device)


def _table(scored: list[Scored], card: ModelCard, copies: Copies) -> pa.Table:
    """Return one row per image: what it was labelled and predicted as, and whether the model had learned from a copy of it."""
    classes = pa.array(card.label_space.classes)
    probabilities = scaled(np.concatenate([one.logits for one in scored]), card.calibration.temperature)
    ids = [sample for one in scored for sample in one.ids]
    return pa.table(
        {
            "sample_id": ids,
            "label": classes.take(pa.array(np.concatenate([one.labels for one in scored]))),
            "expression": classes.take(pa.array(probabilities.argmax(1))),
            "confidence": probabilities.max(1),
            "probabilities": pa.FixedSizeListArray.from_arrays(probabilities.ravel(), probabilities.shape[1]),
            "copy_of_training": ["exact" if one in copies.exact else "near" if one in copies.near else None for one in ids],
        }
    )
