"""Evaluate a model on a split of an ingested dataset: predict each file on Ray, then write figures, a page and a table."""

import logging
from contextlib import closing
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, ValidationError

import fer_pipeline
from fer_pipeline.archive.record import Record
from fer_pipeline.base import storage
from fer_pipeline.base.config import MODEL, PLACE, Config, require_same
from fer_pipeline.base.errors import OutageError, RecordError, UserError
from fer_pipeline.base.identity import now
from fer_pipeline.base.memory import MAX_PIXELS
from fer_pipeline.base.storage import parquet
from fer_pipeline.datasets import duplicates
from fer_pipeline.datasets.dataset import read_dataset, read_flagged, read_samples, sample_files
from fer_pipeline.datasets.duplicates import Copies, split_digest
from fer_pipeline.datasets.leaks import find_leaks
from fer_pipeline.datasets.samples import MAX_BYTES
from fer_pipeline.datasets.training_data import SplitReader, class_indices, left_out_by_class
from fer_pipeline.engine.connect import ClusterConfig, connected
from fer_pipeline.engine.machines import Machines
from fer_pipeline.engine.tasks import Shared, fan_out, share
from fer_pipeline.faces.classify import read_tried
from fer_pipeline.jobs.lineage import traced
from fer_pipeline.jobs.scoring import ScoringContext, predict_split
from fer_pipeline.models.bundle import read_learned
from fer_pipeline.models.card import ModelCard
from fer_pipeline.models.evaluation import Predictions, evaluate
from fer_pipeline.models.figures import EvaluatedData, EvaluatedModel, Evaluation
from fer_pipeline.models.metrics import softmax
from fer_pipeline.report.evaluation import evaluation_page
from fer_pipeline.report.mistakes import Confusion, confusions
from fer_pipeline.report.page import drawn
from fer_pipeline.report.pictures import PictureLimits, PictureProcess, Wanted

log = logging.getLogger(__name__)

EVALUATION, PAGE, PREDICTIONS = "evaluation.json", "evaluation.html", "predictions.parquet"


class EvaluateConfig(Config):
    """Evaluate a model on a split of an ingested dataset."""

    model: Annotated[str, MODEL]
    """Folder of a model bundle, NAME@ALIAS of a registry, or `embedded`."""
    data: Annotated[str, PLACE]
    """Folder of an ingested dataset; its label space may differ from the model's."""
    split: str
    """Split of the dataset to evaluate on."""
    out: Annotated[str, PLACE]
    """Folder of the results. If it holds this evaluation already, there is nothing to do."""
    map: dict[str, str] = Field(default_factory=dict)
    """Map classes of the dataset to classes of the model that have another name, such as `--map.contempt disgust`."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """Arithmetic of the classifier."""
    corrupted: float = Field(0.0, ge=0, le=1)
    """Share of the images that are spoiled first, each in one way: blur, fewer pixels, noise, light from a side, gamma, JPEG."""
    use_gpu: bool = False
    """Use one GPU for each task."""
    thumbnails: bool = True
    """Show pictures of the worst mistakes on the page."""


class EvaluateResult(Config):
    """The main figures; `evaluation.json` has all of them."""

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
    leaks_checked: bool
    """Whether all images that the model learned are known and the split was checked for them."""


@traced("evaluate", ("data", "model"), ("out",))
def run(config: EvaluateConfig, cluster: ClusterConfig = ClusterConfig()) -> EvaluateResult:
    """Write `evaluation.json`, its page and the table of predictions into the folder `out`, and return the main figures.

    Raise UserError, before any work, if the configuration is invalid.
    """
    data, out = storage.normalize(config.data), storage.normalize(config.out)
    storage.require_access(data, out)
    bundle, dataset = read_tried(config.model, config.precision).computing_in(config.precision), read_dataset(data)
    card = bundle.card
    left_out = left_out_by_class(dataset, config.split, card.label_space, config.map)
    settings: dict[str, Any] = config.model_dump(mode="json", include={"split", "precision", "map"})
    settings |= {
        "corrupted": config.corrupted or None,
        "model": bundle.digest,
        "data": dataset.digest,
        "faces": dataset.faces.model_dump(mode="json"),
    }
    settings |= {"votes": list(dataset.vote_classes)}
    if done := _done_before(out, settings):
        log.info("This evaluation is finished, there is nothing to do: %s", out)
        return _result(out, done)
    others = set(storage.list_names(out)) - {EVALUATION, PAGE, PREDICTIONS}
    if others:
        raise UserError(f"'{out}' holds other files ({min(others)}): choose a new folder for --out.")
    classes = class_indices(dataset.label_space.classes, card.label_space, config.map)
    reader = SplitReader(data, config.split, card.network, classes, tuple(range(len(dataset.vote_classes))))
    samples = read_samples(data, duplicates.DUPLICATE_COLUMNS)
    learned = read_learned(config.model, card)
    leaks = find_leaks(card, learned, samples, config.split, read_flagged(data), dataset.layout, dataset.digest)
    copies = leaks.copies
    with connected(cluster, data, out) as machines:
        if config.use_gpu:
            machines.wait_for_gpus(1, "--use-gpu", on_one_node=True)
        context = ScoringContext(bundle, reader, config.precision, "cuda" if config.use_gpu else "cpu", config.corrupted)
        predictions = predict_split(context, machines)
        probabilities = softmax(predictions.logits, card.calibration.temperature)
        mistakes = confusions(predictions.ids, predictions.labels, probabilities, card.label_space.classes)
        pictures = _pictures(data, mistakes, machines) if config.thumbnails else {}
    votes = tuple(config.map.get(name, name) for name in dataset.vote_classes)
    fresh = predictions.without(copies.learned)
    evaluation = Evaluation(
        model=EvaluatedModel(name=card.name, digest=bundle.digest, format=card.format),
        data=EvaluatedData(
            layout=dataset.layout,
            digest=dataset.digest,
            split=config.split,
            left_out_by_class=left_out,
            framed_as_the_model=dataset.faces.framing == card.framing,
            leaks_checked=leaks.checked,
            training_split=leaks.split,
            exact_copies_of_training_images=len(copies.exact),
            near_copies_of_training_images=len(copies.near),
        ),
        selected_on_this_split=split_digest(samples, config.split) == card.data.validation_digest,
        views=2 if card.network.flip_averaging else 1,
        precision=config.precision if card.format == "safetensors" or config.precision == "int8" else "as exported",
        version=fer_pipeline.__version__,
        settings=settings,
        evaluated_at=now(),
        all=evaluate(predictions, card.label_space, card.calibration, votes, copies.groups),
        without_training_images=evaluate(fresh, card.label_space, card.calibration, votes, copies.groups)
        if 0 < len(fresh) < len(predictions)
        else None,
    )
    parquet.write_table(storage.join(out, PREDICTIONS), _table(predictions, probabilities, card, copies))
    draw = partial(evaluation_page, evaluation, card, mistakes, pictures)
    page = drawn("An evaluation", draw, f"To get the page, evaluate again into a folder other than '{out}'.")
    storage.write_bytes(storage.join(out, PAGE), page.encode())
    storage.write_bytes(storage.join(out, EVALUATION), evaluation.model_dump_json(indent=1).encode())
    log.info("%s", storage.join(out, PAGE))
    return _result(out, evaluation)


def _done_before(out: str, settings: dict[str, Any]) -> Evaluation | None:
    """Return the evaluation with these settings in `out`; None if there is none. Raise UserError if the settings differ."""
    path = storage.join(out, EVALUATION)
    if not storage.exists(path):
        return None
    try:
        found = Evaluation.model_validate_json(storage.read_bytes(path))
    except ValidationError as error:
        raise UserError(f"This version cannot read the evaluation '{path}': choose a new folder for --out.") from error
    if not found.settings:  # an earlier version wrote it, and overwrote evaluations: so does this one
        return None
    require_same(f"The evaluation in '{out}'", settings, found.settings)
    return found


def _pictures(data: str, mistakes: list[Confusion], machines: Machines) -> dict[str, str]:
    """Return pictures of the mistakes by sample id; one task searches each file of the dataset."""
    wanted = pa.array([one.sample for confusion in mistakes for one in confusion.worst], pa.string())
    pictures: dict[str, str] = {}
    for found in fan_out(_pictures_of_file, sample_files(data) if len(wanted) else (), share(wanted), machines=machines):
        pictures |= found
    return pictures


def _pictures_of_file(wanted: Shared[pa.Array], uri: str) -> dict[str, str]:
    """Return pictures of the wanted samples in a file, by sample id; leave out samples that cannot be decoded."""
    ids = parquet.read_columns(uri, ["sample_id"])["sample_id"]
    rows = np.flatnonzero(pc.is_in(ids, wanted.get()).to_numpy()).tolist()
    if not rows:
        return {}
    with closing(PictureProcess(PictureLimits(MAX_PIXELS, MAX_BYTES, "image"))) as process:
        try:
            found = process.cut([Wanted(Record(uri, f"row {row}", row)) for row in rows])
        except OutageError as error:
            log.warning("The page lacks the pictures of mistakes from '%s': %s", uri, error)
            return {}
    samples = ids.take(pa.array(rows)).to_pylist()
    return {sample: urls[0] for sample, urls in zip(samples, found, strict=True) if not isinstance(urls, RecordError)}


def _result(out: str, evaluation: Evaluation) -> EvaluateResult:
    figures, without = evaluation.all, evaluation.without_training_images
    calibration = figures.calibration
    return EvaluateResult(
        out=out,
        images=figures.images,
        accuracy=figures.accuracy,
        accuracy_95=figures.intervals_95["accuracy"],
        macro_f1=figures.macro_f1,
        uar=figures.uar,
        ece_before=calibration.before.ece if calibration else None,
        ece_cross_fitted=calibration.cross_fitted.ece if calibration else None,
        images_without_training_images=without.images if without else None,
        accuracy_without_training_images=without.accuracy if without else None,
        selected_on_this_split=evaluation.selected_on_this_split,
        leaks_checked=evaluation.data.leaks_checked,
    )


def _table(predictions: Predictions, probabilities: NDArray[np.float32], card: ModelCard, copies: Copies) -> pa.Table:
    """Return one row per image: its label, its prediction, and whether the model learned from a copy of it."""
    classes = pa.array(card.label_space.classes)
    ids = predictions.ids.tolist()
    return pa.table(
        {
            "sample_id": ids,
            "label": classes.take(pa.array(predictions.labels)),
            "expression": classes.take(pa.array(probabilities.argmax(1))),
            "confidence": probabilities.max(1),
            "probabilities": pa.FixedSizeListArray.from_arrays(probabilities.ravel(), probabilities.shape[1]),
            "copy_of_training": ["exact" if one in copies.exact else "near" if one in copies.near else None for one in ids],
        }
    )
