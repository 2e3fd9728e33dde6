"""What a training decides once, before any work: the plan of its ranks, and the facts that decide its weights."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.datasets.dataset import DatasetInfo, read_dataset, read_flagged, read_samples
from fer_pipeline.datasets.duplicates import DUPLICATE_COLUMNS
from fer_pipeline.datasets.layouts.layout import AUDIT
from fer_pipeline.datasets.leaks import find_learned, joined, learned_images
from fer_pipeline.datasets.training_data import SplitReader
from fer_pipeline.jobs.train.config import TrainConfig
from fer_pipeline.jobs.train.rank import Mixed, Plan
from fer_pipeline.models.bundle import Bundle
from fer_pipeline.models.label_space import LabelSpace, load_label_space, mapping
from fer_pipeline.models.network_config import NetworkConfig
from fer_pipeline.models.networks import build
from fer_pipeline.models.recipe import Recipe

log = logging.getLogger(__name__)


def make_plan(
    config: TrainConfig,
    recipe: Recipe,
    dataset: DatasetInfo,
    data: str,
    initial: Bundle | None,
    teachers: tuple[Bundle, ...] = (),
) -> Plan:
    """Return the plan for the ranks; raise UserError if recipe, data, initial model and teachers do not fit together."""
    given = {name: value for name in ("epochs", "batch_size") if (value := getattr(config, name))}
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update=given)})
    if config.from_scratch:
        recipe = recipe.model_copy(update={"pretrained": None})
    space = load_label_space(recipe.label_space)
    _require_none(_conflicts(config, recipe, dataset, space, initial, teachers))
    build(recipe.network, len(space.classes))
    labels = mapping(dataset.label_space.classes, space)
    mix = storage.normalize(config.mix) if config.mix else None
    further = read_dataset(mix) if mix else None
    _require_none(_mix_conflicts(recipe, dataset, further) if further else iter(()))
    both = {data: dataset} | ({mix: further} if mix and further else {})
    audits = [_images_of(url, AUDIT) for url, info in both.items() if AUDIT in info.counts]
    leave_out = _left_out(config, recipe, data, audits)
    mixed = None
    if mix and further:
        held = [*audits, _images_of(data, recipe.validation_split)]
        mixed = _mixed(config, recipe, dataset, further, space, mix, held)
    counts = _class_counts(dataset, data, recipe.train_split, space, leave_out)
    side, mixed_images = recipe.network.image_px, mixed.weight * sum(mixed.class_counts) if mixed else 0
    size_gb = (sum(counts) + mixed_images) * recipe.network.channels * side * side / 1e9
    streamed = config.data_from == "stream" or (config.data_from == "auto" and size_gb > config.resident_gb)
    plan = Plan(
        recipe=recipe,
        space=space,
        framing=dataset.faces.framing,
        train=SplitReader(data, recipe.train_split, recipe.network, labels, _votes(recipe, dataset, space), leave_out),
        validation=SplitReader(
            data,
            recipe.validation_split,
            recipe.network,
            labels,
            tuple(range(len(dataset.vote_classes))),
            _copies(data, recipe.validation_split, audits),
        ),
        class_counts=tuple(counts),
        mixed=mixed,
        initial=initial,
        teachers=teachers,
        pretrained=None,
        streamed=streamed,
        use_gpu=config.use_gpu,
        threads=1,
        live="",
    )
    _require_none(_data_conflicts(config, plan))
    return plan


def _images_of(data: str, split: str) -> pa.Table:
    """Return the images of a split as rows of `LEARNED`."""
    return learned_images(read_samples(data, DUPLICATE_COLUMNS).filter(pc.field("split") == split))


def _left_out(config: TrainConfig, recipe: Recipe, data: str, held: list[pa.Table]) -> frozenset[str]:
    """Return the ids of training samples that are not learned: flagged ones if that is asked for, and copies of held images."""
    flagged = read_flagged(data).to_pylist() if config.drop_leaks else []
    found = {row["sample_id"] for row in flagged if row["split"] == recipe.train_split}
    return _copies(data, recipe.train_split, held) | found


def _copies(data: str, split: str, held: list[pa.Table]) -> frozenset[str]:
    """Return the ids of a split's samples that are copies of held images."""
    return find_learned(read_samples(data, DUPLICATE_COLUMNS), split, joined(held)).learned if held else frozenset()


def _mixed(
    config: TrainConfig,
    recipe: Recipe,
    dataset: DatasetInfo,
    further: DatasetInfo,
    space: LabelSpace,
    mix: str,
    held: list[pa.Table],
) -> Mixed:
    """Return the mixed dataset. Its votes are for the outputs that learn those of `dataset`."""
    votes = _votes(recipe, further, space)
    if recipe.training.votes == "auxiliary":
        places = {name: index for index, name in enumerate(dataset.vote_classes)}
        votes = tuple(places.get(name) for name in further.vote_classes)
    leave_out = _left_out(config, recipe, mix, held)
    counts = _class_counts(further, mix, recipe.train_split, space, leave_out)
    labels = mapping(further.label_space.classes, space)
    reader = SplitReader(mix, recipe.train_split, recipe.network, labels, votes, leave_out)
    return Mixed(further, reader, config.mix_weight, tuple(counts))


def _mix_conflicts(recipe: Recipe, dataset: DatasetInfo, further: DatasetInfo) -> Iterator[str]:
    """Yield why a dataset cannot be mixed with another one."""
    if recipe.train_split not in further.counts:
        yield f"The dataset to mix has no split '{recipe.train_split}'; it has {', '.join(further.counts)}."
    if further.faces.framing != dataset.faces.framing:
        yield (
            "The faces of the dataset to mix are cut in another framing than those of --data: ingest it again with --framing "
            "and --faces as the other one."
        )


def _require_none(conflicts: Iterator[str]) -> None:
    """Raise UserError with the first conflict, if there is one."""
    for conflict in conflicts:
        raise UserError(conflict)


def _conflicts(
    config: TrainConfig,
    recipe: Recipe,
    dataset: DatasetInfo,
    space: LabelSpace,
    initial: Bundle | None,
    teachers: tuple[Bundle, ...],
) -> Iterator[str]:
    """Yield why the recipe, the dataset, the initial model and the teachers do not fit together, before any sample is read."""
    training = recipe.training
    if training.sync_batch_norm and not config.use_gpu:
        yield "The recipe's sync_batch_norm works on GPUs only: use --use-gpu, or remove it from the recipe."
    for split in (recipe.train_split, recipe.validation_split):
        if split == AUDIT:
            yield f"The split '{AUDIT}' measures models and is never learned: choose another split in the recipe."
        if split not in dataset.counts:
            yield f"The dataset has no split '{split}'; it has {', '.join(dataset.counts)}."
    if recipe.framing and recipe.framing != dataset.faces.framing:
        yield (
            f"The recipe '{recipe.name}' has another framing than the dataset's faces: remove its [framing], or ingest the "
            "dataset again with --framing."
        )
    if training.votes != "ignore" and not dataset.vote_classes:
        yield "The recipe learns from annotators' votes, but the dataset has none: ingest it with --votes."
    if initial:
        yield from _initial_conflicts(recipe, dataset, space, initial)
    elif training.keep_initial:
        yield "The recipe's keep_initial needs an initial model: use --initial, or remove it from the recipe."
    if bool(teachers) != bool(training.teacher_weight):
        wanted = "names no teacher_weight" if teachers else "learns from teachers"
        yield f"The recipe '{recipe.name}' {wanted}: {'leave out' if teachers else 'name them by'} --teachers."
    for teacher in teachers:
        yield from _teacher_conflicts(recipe, space, teacher)
    crop_px, image_px = dataset.faces.crop_px, recipe.network.image_px
    if crop_px and crop_px != image_px:
        log.warning(
            "The dataset's faces are %d px, the network's input is %d px: shrunk crops are smoother than those that labelling "
            "cuts. Ingest with --crop-px %d to train on the same pixels.", crop_px, image_px, image_px
        )  # fmt: skip


def _initial_conflicts(recipe: Recipe, dataset: DatasetInfo, space: LabelSpace, initial: Bundle) -> Iterator[str]:
    card, network = initial.card, recipe.network
    if not (card.label_space == space and _may_begin_as(network, card.network)):
        yield (
            f"The initial model '{card.name}' has another network or other classes than the recipe: choose another model "
            "for --initial."
        )
    if card.format == "onnx":
        yield f"The initial model '{card.name}' is an ONNX network, which cannot be trained: choose another."
    if recipe.training.keep_initial and _size(card.network) != _size(network):
        yield f"The recipe's keep_initial needs a model as large as its network, which '{card.name}' is not."
    if card.framing != dataset.faces.framing:
        yield (
            f"The initial model '{card.name}' learned from faces of another framing than the dataset's: ingest the "
            "dataset again with its framing (--framing, --faces), or leave out --initial."
        )


def _teacher_conflicts(recipe: Recipe, space: LabelSpace, teacher: Bundle) -> Iterator[str]:
    card, network = teacher.card, recipe.network
    if card.format == "onnx" or (card.network.channels, card.network.image_px) != (network.channels, network.image_px):
        yield (
            f"The teacher '{card.name}' has another input than the recipe's network: choose a torch network with the same "
            "channels and image_px."
        )
    if card.label_space != space:
        yield f"The teacher '{card.name}' has other classes than the recipe: its {space.name} has {', '.join(space.classes)}."


def _data_conflicts(config: TrainConfig, plan: Plan) -> Iterator[str]:
    """Yield why the recipe does not fit the images that are there, or the way in which they come."""
    recipe, space = plan.recipe, plan.space
    missing = [name for name, count in zip(space.classes, plan.epoch_counts, strict=True) if not count]
    if plan.mixed and not sum(plan.mixed.class_counts):
        yield "No image of the dataset to mix is left to learn: all are copies of images that only measure, or of other classes."
    if missing and not config.allow_missing_classes:
        yield (
            f"The split '{recipe.train_split}' has no images of {', '.join(missing)}, which the recipe's {space.name} has: "
            "choose another label_space, or use --allow-missing-classes."
        )
    if not plan.streamed:
        return
    if plan.mixed:
        yield "Streamed data cannot be mixed: hold the training split on the device (--data-from device, --resident-gb)."
    training, workers = recipe.training, config.num_workers
    if training.class_balance == "sampling":
        yield 'Streamed data cannot be sampled by class: set class_balance = "loss" in the recipe.'
    if training.teacher_view == "original":
        yield 'Streamed images are not kept, so teachers see only augmented ones: set teacher_view = "moved".'
    if training.batch_size % workers:
        yield f"A streamed batch of {training.batch_size} cannot be split evenly among {workers} workers: change --batch-size."


def _class_counts(dataset: DatasetInfo, data: str, split: str, space: LabelSpace, leave_out: frozenset[str]) -> list[int]:
    """Return the number of training images by class: those of the split that are not left out."""
    counts = Counter(dataset.counts[split])
    if leave_out:
        samples = read_samples(data, ["sample_id", "label", "split"]).filter(pc.field("split") == split)
        left_out = samples["label"].filter(pc.is_in(samples["sample_id"], pa.array(leave_out, pa.string())))
        counts.subtract(dataset.label_space.classes[label] for label in left_out.to_pylist())
    found = [0] * len(space.classes)
    for name, index in zip(dataset.label_space.classes, mapping(dataset.label_space.classes, space), strict=True):
        if index is not None:
            found[index] += counts[name]
    return found


def _votes(recipe: Recipe, dataset: DatasetInfo, space: LabelSpace) -> tuple[int | None, ...]:
    """Return the output that learns each vote class: a class, an auxiliary output, or none."""
    if recipe.training.votes == "ignore":
        return ()
    if recipe.training.votes == "target":
        return mapping(dataset.vote_classes, space)
    return tuple(range(len(dataset.vote_classes)))


def _may_begin_as(network: NetworkConfig, initial: NetworkConfig) -> bool:
    """Tell whether a network can start from the weights of `initial`: one like it, perhaps with fewer blocks or channels."""
    free = {"dropout": 0.0, "flip_averaging": False, "blocks": (1, 1, 1), "width": 1}
    no_smaller = all(own >= before for own, before in zip(_size(network), _size(initial), strict=True))
    return no_smaller and network.model_copy(update=free) == initial.model_copy(update=free)


def _size(network: NetworkConfig) -> tuple[int, ...]:
    return network.width, *network.blocks


def facts_of(plan: Plan, dataset: DatasetInfo) -> dict[str, Any]:
    """Return what decides the weights, as JSON; files that the recipe names are compared by their content.

    It includes class names and the mapping of labels: with a corrected label space it is another training.
    """
    recipe, reader = plan.recipe, plan.train
    facts = {
        "recipe": recipe.model_dump(mode="json", exclude={"description"}) | {"pretrained": _name_of(recipe.pretrained)},
        "classes": plan.space.model_dump(mode="json"),
        "data": dataset.digest,
        "faces": dataset.faces.model_dump(mode="json"),
        "labels": [dataset.label_space.classes, reader.labels],
        "votes": [dataset.vote_classes, reader.votes, _votes_digest(recipe, reader)],
        "left out": _ids_digest(reader.leave_out),
        "initial model": plan.initial.digest if plan.initial else None,
        "teachers": [teacher.digest for teacher in plan.teachers],
        "pretrained weights": _file_digest(recipe.pretrained),
    }
    if plan.validation.leave_out:
        facts["left out of validation"] = _ids_digest(plan.validation.leave_out)
    if plan.mixed:
        further, mixed = plan.mixed.dataset, plan.mixed.train
        facts["mixed"] = {
            "weight": plan.mixed.weight,
            "data": further.digest,
            "labels": [further.label_space.classes, mixed.labels],
            "votes": [further.vote_classes, mixed.votes, _votes_digest(recipe, mixed)],
            "left out": _ids_digest(mixed.leave_out),
        }
    found: dict[str, Any] = json.loads(json.dumps(facts))
    return found


def _ids_digest(ids: frozenset[str]) -> str:
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def _votes_digest(recipe: Recipe, reader: SplitReader) -> str | None:
    if recipe.training.votes == "ignore":
        return None
    return hashlib.sha256(str(read_samples(reader.dataset, ["votes"])["votes"].to_pylist()).encode()).hexdigest()


def _name_of(path: str | None) -> str | None:
    """Return a file's name without its folder; any other name unchanged."""
    return Path(path).name if path and Path(path).is_file() else path


def _file_digest(path: str | None) -> str | None:
    """Return the sha256 of a file; None if the path is not a file but a name."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path and Path(path).is_file() else None


def identity_of(facts: dict[str, Any]) -> str:
    """Return a digest of what decides a training's weights."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
