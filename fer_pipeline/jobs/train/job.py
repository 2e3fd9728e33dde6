"""Train an expression classifier: the plain loop of `models/training/` under Ray Train on 1..N workers."""

import hashlib
import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import ray
from pydantic import Field
from ray.train import Checkpoint, CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from fer_pipeline.core import storage
from fer_pipeline.core.config import MODEL, NAME_OR_PLACE, PLACE, Config, require_same
from fer_pipeline.core.dataset import DatasetInfo, read_dataset, read_flagged, read_samples
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.figures import SplitFigures
from fer_pipeline.core.framing import Framing
from fer_pipeline.core.labels import LabelSpace, load_label_space, mapping
from fer_pipeline.jobs.cluster import ClusterConfig, connected
from fer_pipeline.jobs.progress import progress
from fer_pipeline.jobs.shared import by_node, share
from fer_pipeline.jobs.train.group import rendezvous
from fer_pipeline.jobs.train.publish import FILES_BEFORE_CARD, publish, selected_epoch
from fer_pipeline.jobs.train.rank import DIVERGED, PROGRESS, Plan, pretrained_weights, read_checkpoint, stream, worker
from fer_pipeline.models.bundle import HISTORY, MODEL_FILE, Bundle, read_bundle, read_learned
from fer_pipeline.models.card import ModelCard
from fer_pipeline.models.network_config import NetworkConfig
from fer_pipeline.models.networks import build
from fer_pipeline.models.recipe import Recipe, load_recipe
from fer_pipeline.models.training.trainer import State
from fer_pipeline.stages.classify import read_tried
from fer_pipeline.stages.training_data import SplitReader

log = logging.getLogger(__name__)


class TrainConfig(Config):
    """Train a recipe on an ingested dataset into a model bundle."""

    recipe: Annotated[str, NAME_OR_PLACE]
    """Name of a recipe that comes with the package, or a .toml file."""
    data: Annotated[str, PLACE]
    """Folder of an ingested dataset."""
    out: Annotated[str, PLACE]
    """Folder of the model bundle: new or empty."""
    initial: Annotated[str | None, MODEL] = None
    """Model bundle whose weights to start from; by default the recipe's seed decides them."""
    teachers: Annotated[tuple[str, ...], MODEL] = ()
    """Model bundles whose probabilities are learned beside the labels, by the recipe's `teacher_weight`."""
    from_scratch: bool = False
    """Let the seed decide the weights although the recipe names pretrained ones, where those cannot be had."""
    drop_leaks: bool = False
    """Leave the dataset's flagged samples out of training: copies of images of other splits, copies, conflicts, blank images."""
    allow_missing_classes: bool = False
    """Train although the training split has no images of some classes."""
    batch_size: int | None = Field(None, ge=1)
    """Images per step over all workers together, in place of the recipe's."""
    num_workers: int = Field(1, ge=1)
    """Training processes; the recipe's batch is shared out among them."""
    min_workers: int | None = Field(None, ge=1)
    """Go on with so many where a cluster has lost machines; by default `num_workers` are waited for."""
    use_gpu: bool = False
    """One GPU for each worker (nccl); without it, CPUs (gloo)."""
    data_from: Literal["auto", "device", "stream"] = "auto"
    """Hold the training split on the device, or stream it from Ray Data; `auto` streams what is larger than `resident_gb`."""
    resident_gb: float = Field(4.0, ge=0)
    """Largest training split, as the network's input, that every worker holds on its device."""
    max_failures: int = Field(3, ge=0)
    """How often failed workers are replaced, announced preemptions aside; training goes on from the last epoch's checkpoint."""
    checkpoints: Annotated[str | None, PLACE] = None
    """Folder in which checkpoints are kept and looked for, so that a killed run continues; by default `OUT.checkpoints`."""


class TrainResult(Config):
    """What came of it."""

    out: str
    name: str
    epochs: int
    selected_epoch: int
    validation_accuracy: float
    validation_macro_f1: float
    images_per_s: float
    data_from: Literal["device", "stream"]


def run(config: TrainConfig, cluster: ClusterConfig = ClusterConfig()) -> TrainResult:
    """Train, evaluate on the validation split, calibrate, and write the bundle. Raise UserError before any work."""
    data, out = storage.normalize(config.data), storage.normalize(config.out)
    storage.require_access(data, out)
    recipe, dataset = load_recipe(config.recipe), read_dataset(data)
    initial = read_tried(config.initial, "fp32") if config.initial else None
    teachers = tuple(read_tried(url, "fp32") for url in config.teachers)
    checkpoints = storage.normalize(config.checkpoints or f"{out}.checkpoints")
    plan = make_plan(config, recipe, dataset, data, initial, teachers)
    facts = facts_of(plan, dataset)
    if done := _done_before(out, facts):
        log.info("This training is finished, there is nothing to do: %s", out)
        return _result(out, recipe, plan, done.metrics.validation, json.loads(storage.read_bytes(storage.join(out, HISTORY))))
    if set(storage.list_names(out)) - set(FILES_BEFORE_CARD):
        raise UserError(f"'{out}' is not empty: choose a new folder for --out.")
    ancestors = [(config.initial, initial), *zip(config.teachers, teachers, strict=True)]
    lineage = [(bundle.card, read_learned(url, bundle.card)) for url, bundle in ancestors if url and bundle]
    with connected(cluster, data, out, checkpoints):
        _require_resources(config, plan, cluster)
        state = _train(plan, config, checkpoints, identity_of(facts), not cluster.cluster)
        validation = publish(plan, dataset, out, state, lineage, facts, cluster.wait_s)
    return _result(out, recipe, plan, validation, state["history"])


def _done_before(out: str, facts: dict[str, Any]) -> ModelCard | None:
    """Return the card of the bundle that a training of the same left in `out`; raise UserError for one of another training."""
    if not storage.exists(storage.join(out, MODEL_FILE)):
        return None
    card = read_bundle(out).card
    if card.training is None:
        return None
    require_same(f"The training in '{out}'", facts, card.training)
    return card


def _result(out: str, recipe: Recipe, plan: Plan, validation: SplitFigures | None, history: list[dict[str, Any]]) -> TrainResult:
    assert validation is not None
    return TrainResult(
        out=out,
        name=recipe.name,
        epochs=len(history),
        selected_epoch=selected_epoch(history, recipe),
        validation_accuracy=validation.accuracy,
        validation_macro_f1=validation.macro_f1,
        images_per_s=round(median(epoch["images_per_s"] for epoch in history), 1),
        data_from="stream" if plan.streamed else "device",
    )


def make_plan(
    config: TrainConfig,
    recipe: Recipe,
    dataset: DatasetInfo,
    data: str,
    initial: Bundle | None,
    teachers: tuple[Bundle, ...] = (),
) -> Plan:
    """Return what the ranks must know; raise UserError where recipe, data, initial model and teachers do not go together."""
    if config.batch_size:
        training = recipe.training.model_copy(update={"batch_size": config.batch_size})
        recipe = recipe.model_copy(update={"training": training})
    if recipe.training.sync_batch_norm and not config.use_gpu:
        raise UserError("The recipe's sync_batch_norm works on GPUs only: say --use-gpu, or leave it out.")
    if config.from_scratch:
        recipe = recipe.model_copy(update={"pretrained": None})
    space = load_label_space(recipe.label_space)
    for split in (recipe.train_split, recipe.validation_split):
        if split not in dataset.counts:
            raise UserError(f"The dataset has no split '{split}'; it has {', '.join(dataset.counts)}.")
    build(recipe.network, len(space.classes))
    if initial and not (initial.card.label_space == space and _may_begin_as(recipe.network, initial.card.network)):
        raise UserError(
            f"The initial model '{initial.card.name}' has another network or other classes than the recipe and its data."
        )
    if initial and initial.card.format == "onnx":
        raise UserError(f"The initial model '{initial.card.name}' is an ONNX network, which is not trained on.")
    if recipe.training.keep_initial and not initial:
        raise UserError("The recipe's keep_initial keeps weights of a model to start from: say --initial, or leave it out.")
    if recipe.training.keep_initial and initial and _size(initial.card.network) != _size(recipe.network):
        raise UserError(f"The recipe's keep_initial needs a model as large as its network, which '{initial.card.name}' is not.")
    _require_teachers(recipe, teachers, space)
    framing = _framing(recipe, dataset, initial)
    labels = mapping(dataset.label_space.classes, space)
    flagged = read_flagged(data).to_pylist() if config.drop_leaks else []
    leave_out = frozenset(row["sample_id"] for row in flagged if row["split"] == recipe.train_split)
    train = SplitReader(data, recipe.train_split, recipe.network, labels, _votes(recipe, dataset, space), leave_out)
    counts = _class_counts(dataset, data, recipe.train_split, space, leave_out)
    missing = [name for name, count in zip(space.classes, counts, strict=True) if not count]
    if missing and not config.allow_missing_classes:
        raise UserError(
            f"The split '{recipe.train_split}' has no images of {', '.join(missing)}, which the recipe's {space.name} has: "
            "choose another label_space, or say --allow-missing-classes."
        )
    side = recipe.network.image_px
    size_gb = sum(counts) * recipe.network.channels * side * side / 1e9
    streamed = config.data_from == "stream" or (config.data_from == "auto" and size_gb > config.resident_gb)
    if streamed and recipe.training.class_balance == "sampling":
        raise UserError('Streamed data cannot be sampled by class: say class_balance = "loss" in the recipe.')
    if streamed and recipe.training.teacher_view == "original":
        raise UserError('Streamed images are not kept, so teachers see them as they are moved: say teacher_view = "moved".')
    if streamed and recipe.training.batch_size % config.num_workers:
        raise UserError(f"A streamed batch of {recipe.training.batch_size} cannot be shared out evenly to {config.num_workers}.")
    return Plan(
        recipe=recipe,
        space=space,
        framing=framing,
        train=train,
        validation=SplitReader(data, recipe.validation_split, recipe.network, labels, tuple(range(len(dataset.vote_classes)))),
        class_counts=tuple(counts),
        initial=initial,
        teachers=teachers,
        pretrained=None,
        streamed=streamed,
        use_gpu=config.use_gpu,
        threads=1,
        live="",
    )


def _class_counts(dataset: DatasetInfo, data: str, split: str, space: LabelSpace, leave_out: frozenset[str]) -> list[int]:
    """Return how many images of each class are learned: those of the split that are not left out."""
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


def _framing(recipe: Recipe, dataset: DatasetInfo, initial: Bundle | None) -> Framing:
    """Return the dataset's framing, which the model gets; raise UserError where the recipe or the initial model has another."""
    framing = dataset.faces.framing
    if recipe.framing and recipe.framing != framing:
        raise UserError(
            f"The recipe '{recipe.name}' has another framing than the dataset's faces were taken with: leave out its [framing], "
            "or ingest the dataset again with --framing."
        )
    if initial and initial.card.framing != framing:
        raise UserError(
            f"The initial model '{initial.card.name}' learned from faces of another framing than the dataset's: ingest the "
            "dataset again with its framing (--framing, --faces), or leave out --initial."
        )
    crop_px, image_px = dataset.faces.crop_px, recipe.network.image_px
    if crop_px and crop_px != image_px:
        log.warning(
            "The dataset's faces were cut at %d px, the network takes %d: shrunk crops are smoother than those that labelling "
            "cuts. Ingest with --crop-px %d to train on the same pixels.", crop_px, image_px, image_px
        )  # fmt: skip
    return framing


def _votes(recipe: Recipe, dataset: DatasetInfo, space: LabelSpace) -> tuple[int | None, ...]:
    """Return where each vote goes: to a class, to an output of its own, or nowhere."""
    if recipe.training.votes == "ignore":
        return ()
    if not dataset.vote_classes:
        raise UserError("The recipe learns from annotators' votes, which the dataset does not have: ingest it with --votes.")
    if recipe.training.votes == "target":
        return mapping(dataset.vote_classes, space)
    return tuple(range(len(dataset.vote_classes)))


def _may_begin_as(network: NetworkConfig, initial: NetworkConfig) -> bool:
    """Tell whether a network can start from the weights of another one: one like it, or one with fewer blocks or channels."""
    free = {"dropout": 0.0, "flip_averaging": False, "blocks": (1, 1, 1), "width": 1}
    no_smaller = all(own >= before for own, before in zip(_size(network), _size(initial), strict=True))
    return no_smaller and network.model_copy(update=free) == initial.model_copy(update=free)


def _size(network: NetworkConfig) -> tuple[int, ...]:
    return network.width, *network.blocks


def _require_teachers(recipe: Recipe, teachers: tuple[Bundle, ...], space: LabelSpace) -> None:
    """Raise UserError for teachers that the recipe does not ask for or cannot learn from, or for none where it needs some."""
    if bool(teachers) != bool(recipe.training.teacher_weight):
        wanted = "names no teacher_weight" if teachers else "learns from teachers"
        raise UserError(f"The recipe '{recipe.name}' {wanted}: {'leave out' if teachers else 'name them by'} --teachers.")
    network = recipe.network
    for teacher in teachers:
        card = teacher.card
        if card.format == "onnx" or (card.network.channels, card.network.image_px) != (network.channels, network.image_px):
            raise UserError(
                f"The teacher '{card.name}' does not see what the recipe's network sees: name a torch network of its input."
            )
        if card.label_space != space:
            raise UserError(
                f"The teacher '{card.name}' has other classes than the recipe: its {space.name} has {', '.join(space.classes)}."
            )


def _require_resources(config: TrainConfig, plan: Plan, cluster: ClusterConfig) -> None:
    resources = ray.cluster_resources()
    if config.use_gpu and resources.get("GPU", 0) < config.num_workers:
        raise UserError(f"{config.num_workers} GPUs were asked for, which this cluster does not have: leave out --use-gpu.")
    needed = config.num_workers + plan.streamed
    if not cluster.cluster and resources.get("CPU", 0) < needed:
        beside = " and one for the data, which is streamed" if plan.streamed else ""
        raise UserError(f"This machine has fewer than {needed} cores, one for each worker{beside}: ask for fewer --num-workers.")


class _Trainer(TorchTrainer):
    """Ray's trainer without its handler of SIGINT, which waits for ever or exits with 0: this command's own ends it in order."""

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


class _LocalTrainer(_Trainer):
    """The trainer on a Ray of this process alone, whose placement groups end with it.

    What Ray has clean them up after a death asks a dashboard that such a Ray lacks, and is waited for at the end of each training
    for 12 s (Ray 2.60).
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        return [one for one in callbacks if not isinstance(one, PlacementGroupCleanerCallback)]


def facts_of(plan: Plan, dataset: DatasetInfo) -> dict[str, Any]:
    """Return what decides the weights, as JSON: of the files that the recipe names, what is in them.

    Class names and what became of the dataset's labels are among it: a corrected label space is another training.
    """
    recipe, reader = plan.recipe, plan.train
    facts = {
        "recipe": recipe.model_dump(mode="json", exclude={"description"}) | {"pretrained": _name_of(recipe.pretrained)},
        "classes": plan.space.model_dump(mode="json"),
        "data": dataset.digest,
        "faces": dataset.faces.model_dump(mode="json"),
        "labels": [dataset.label_space.classes, reader.labels],
        "votes": [dataset.vote_classes, reader.votes, _votes_digest(plan)],
        "left out": hashlib.sha256("\n".join(sorted(reader.leave_out)).encode()).hexdigest(),
        "initial model": plan.initial.digest if plan.initial else None,
        "teachers": [teacher.digest for teacher in plan.teachers],
        "pretrained weights": _file_digest(recipe.pretrained),
    }
    found: dict[str, Any] = json.loads(json.dumps(facts))
    return found


def _votes_digest(plan: Plan) -> str | None:
    if plan.recipe.training.votes == "ignore":
        return None
    return hashlib.sha256(str(read_samples(plan.train.dataset, ["votes"])["votes"].to_pylist()).encode()).hexdigest()


def _name_of(path: str | None) -> str | None:
    """Return the name of a file, wherever it stands; any other name as it is."""
    return Path(path).name if path and Path(path).is_file() else path


def _file_digest(path: str | None) -> str | None:
    """Return the sha256 of a file; None where there is no such file, but a name."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path and Path(path).is_file() else None


def identity_of(facts: dict[str, Any]) -> str:
    """Return a digest of what decides a training's weights."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _train(plan: Plan, config: TrainConfig, checkpoints: str, name: str, is_local: bool) -> State:
    """Run the loop on the workers and return the last checkpoint's state. `name`: the training's, below `checkpoints`."""
    recipe = plan.recipe
    live = storage.join(checkpoints, name)
    cores = 1 if config.use_gpu else max(1, _cores_of_a_node() // _workers_of_a_node(config.num_workers))
    pretrained = share(pretrained_weights(recipe, plan.outputs)) if recipe.pretrained else None
    plan = replace(plan, threads=cores, live=live, pretrained=pretrained)
    filesystem, path = storage.checkpoint_filesystem(checkpoints)
    storage.remove(storage.join(live, DIVERGED))
    workers: Any = (config.min_workers, config.num_workers) if config.min_workers else config.num_workers
    with rendezvous("nccl" if config.use_gpu else "gloo") as meeting, _watched(live, recipe.training.epochs):
        trainer = (_LocalTrainer if is_local else _Trainer)(
            worker,
            train_loop_config={"plan": plan},
            torch_config=meeting,
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=config.use_gpu,
                # A core is left to the tasks that read; the worker computes on it too while they wait.
                resources_per_worker={"CPU": max(1, cores - plan.streamed)} | ({"GPU": 1} if config.use_gpu else {}),
            ),
            run_config=RunConfig(
                name=name,
                storage_path=path,
                storage_filesystem=filesystem,
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                failure_config=FailureConfig(max_failures=config.max_failures),
            ),
            datasets={"train": stream(plan)} if plan.streamed else {},
            dataset_config=DataConfig(datasets_to_split=["train"]),
        )
        result = trainer.fit()
    _require_finite(live, result.checkpoint)
    if result.checkpoint is None:
        raise RuntimeError("the training ended without a checkpoint")
    return read_checkpoint(result.checkpoint, live)


def _workers_of_a_node(workers: int) -> int:
    """Return how many workers a node has, where they are spread evenly over those that have cores."""
    return -(-workers // len(_cores()))


def _cores_of_a_node() -> int:
    """Return the cores that Ray has on the smallest node that has any."""
    return min(_cores())


def _cores() -> list[int]:
    """Return the cores of each node that has any."""
    return [int(cores) for cores in by_node("CPU") if cores >= 1] or [1]


def _require_finite(live: str, checkpoint: Checkpoint | None) -> None:
    if storage.exists(storage.join(live, DIVERGED)):
        what = storage.read_bytes(storage.join(live, DIVERGED)).decode()
        kept = f"the last good checkpoint is {checkpoint.path}" if checkpoint else "no epoch was finished"
        raise UserError(f'The training diverged: {what}; {kept}. Lower learning_rate in the recipe, or say precision = "fp32".')


@contextmanager
def _watched(live: str, epochs: int) -> Iterator[None]:
    """Show how far the workers are, from the file that the first of them keeps writing."""
    ended = threading.Event()

    def watch() -> None:
        shown = 0
        with progress("training epochs", epochs) as advance:
            while not ended.wait(1.0):
                try:
                    now = json.loads(storage.read_bytes(storage.join(live, PROGRESS)))
                except (ValueError, *storage.STORAGE_ERRORS):
                    continue
                for epoch in now["history"][shown:]:
                    advance(1)
                    log.info("%s", describe(epoch, epochs))
                shown = len(now["history"])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(5)


def describe(epoch: dict[str, Any], epochs: int) -> str:
    """Return one line on an epoch that has ended."""
    left_s = (epochs - epoch["epoch"]) * epoch["seconds"]
    return (
        f"epoch {epoch['epoch']} of {epochs}: training loss {epoch['train_loss']:.3f}, accuracy {epoch['train_accuracy']:.3f}; "
        f"validation {epoch['validation_loss']:.3f}, {epoch['validation_accuracy']:.4f}; {epoch['images_per_s']:.0f} images/s, "
        f"about {left_s / 60:.0f} min left"
    )
