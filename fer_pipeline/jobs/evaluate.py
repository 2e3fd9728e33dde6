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
from fer_pipeline.core.dataset import DatasetCard, read_card, read_samples, sample_files
from fer_pipeline.core.duplicates import Copies, find_copies, split_digest
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.labels import LabelSpace, canonical, mapping
from fer_pipeline.core.run import now
from fer_pipeline.jobs.cluster import ClusterConfig, connected
from fer_pipeline.jobs.progress import progress
from fer_pipeline.models.card import BundleFiles, ModelCard, read_bundle
from fer_pipeline.models.evaluation import Predictions, evaluate, joined, predictions_of
from fer_pipeline.report.evaluation import evaluation_page
from fer_pipeline.stages.classify import Classifier
from fer_pipeline.stages.samples import SplitReader

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
    classes = _mapped(config, bundle.card, dataset)
    left_out = _left_out(config.split, dataset, classes)
    others = set(storage.list_names(out)) - {EVALUATION, PAGE, PREDICTIONS}
    if others:
        raise UserError(f"'{out}' holds other files ({min(others)}): choose a new folder for --out.")
    Classifier(bundle, config.precision)
    votes = tuple(range(len(dataset.vote_classes)))
    reader = SplitReader(data, config.split, bundle.card.network, classes, votes)
    scoring = Scoring(bundle, reader, config.precision, "cuda" if config.use_gpu else "cpu")
    with connected(cluster, data, out):
        if config.use_gpu and not ray.cluster_resources().get("GPU"):
            raise UserError("This cluster has no GPU: leave out --use-gpu.")
        scored = list(_scored(scoring, sample_files(data)))
    samples = read_samples(data, duplicates.COLUMNS)
    learned_split = bundle.card.data.get("train_split", "train")
    copies = find_copies(samples, config.split, learned_split)
    predictions = joined([predictions_of(one.ids, one.logits, one.labels, one.votes, copies) for one in scored])
    figures = {
        "model": {"name": bundle.card.name, "digest": bundle.digest, "format": bundle.card.format},
        "data": {
            "layout": dataset.layout,
            "digest": dataset.digest,
            "split": config.split,
            "left_out_by_class": left_out,
            "training_split": learned_split if learned_split in dataset.counts else None,
            "exact_copies_of_training_images": len(copies.exact),
            "near_copies_of_training_images": len(copies.near),
        },
        "selected_on_this_split": split_digest(samples, config.split) == bundle.card.data.get("validation_digest"),
        "views": 2 if bundle.card.network.flip_averaging else 1,
        "precision": config.precision if bundle.card.format == "safetensors" else "as exported",
        "version": fer_pipeline.__version__,
        "evaluated_at": now(),
    } | _views(predictions, bundle.card, dataset)
    storage.write_table(storage.join(out, PREDICTIONS), _table(scored, bundle.card, copies))
    storage.write_bytes(storage.join(out, EVALUATION), json.dumps(figures, indent=1).encode())
    storage.write_bytes(storage.join(out, PAGE), evaluation_page(figures, bundle.card).encode())
    log.info("%s", storage.join(out, PAGE))
    return _result(out, figures)


def _views(predictions: Predictions, card: ModelCard, dataset: DatasetCard) -> dict[str, Any]:
    """Return the figures on all images, and on those that are no copies of training images, if there are both kinds."""
    fresh = predictions[~predictions.learned]
    kinds = {"all": predictions, "without_training_images": fresh if 0 < len(fresh) < len(predictions) else None}
    return {
        name: some and evaluate(some, card.label_space, card.calibration, dataset.vote_classes) for name, some in kinds.items()
    }


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


def _mapped(config: EvaluateConfig, card: ModelCard, dataset: DatasetCard) -> tuple[int | None, ...]:
    """Return the index in the model's classes of each class of the dataset; None where it has none."""
    theirs, ours = dataset.label_space.classes, card.label_space.classes
    for source, target in config.map.items():
        if source not in theirs or target not in ours:
            raise UserError(
                f"--map.{source} {target} does not fit: the dataset has {', '.join(theirs)}, the model {', '.join(ours)}."
            )
    renamed = tuple(config.map.get(name, name) for name in theirs)
    known = {canonical(name): index for index, name in enumerate(ours)}
    found = mapping(renamed, LabelSpace(name=card.label_space.name, classes=tuple(known)))
    if all(index is None for index in found):
        raise UserError(
            f"The classes of the dataset ({', '.join(theirs)}) and of the model '{card.name}' ({', '.join(ours)}) have no "
            "mapping: name one with --map.THEIRS OURS."
        )
    return found


def _left_out(split: str, dataset: DatasetCard, classes: tuple[int | None, ...]) -> dict[str, int]:
    """Return how many images of the split are left out, by class of the dataset that the model does not have."""
    if split not in dataset.counts:
        raise UserError(f"The dataset has no split '{split}'; it has {', '.join(dataset.counts)}.")
    counts = dataset.counts[split]
    missing = {name: counts[name] for name, index in zip(dataset.label_space.classes, classes, strict=True) if index is None}
    if sum(missing.values()) == sum(counts.values()):
        raise UserError(f"The split '{split}' has no image of a class that the model has.")
    return {name: count for name, count in missing.items() if count}


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
    logits = np.concatenate([one.logits for one in scored])
    scaled = np.exp((logits - logits.max(1, keepdims=True)) / card.calibration.temperature)
    probabilities = scaled / scaled.sum(1, keepdims=True)
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
