"""Train an expression classifier: the plain loop of `models/training.py` under Ray Train on 1..N workers."""

import hashlib
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
from pydantic import Field
from ray.train import Checkpoint, CheckpointConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from fer_pipeline.core import storage
from fer_pipeline.core.config import Config
from fer_pipeline.core.dataset import DatasetCard, read_card
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.metrics import summarize
from fer_pipeline.jobs.cluster import ClusterConfig, connected
from fer_pipeline.models.bundle import load_network, save_bundle
from fer_pipeline.models.calibration import calibrate, cross_fitted_ece
from fer_pipeline.models.card import CARD, WEIGHTS, BundleFiles, ModelCard, NetworkConfig, read_bundle
from fer_pipeline.models.networks import build
from fer_pipeline.models.recipe import Recipe, load_recipe
from fer_pipeline.models.training import Epoch, Images, State, Trainer, predict
from fer_pipeline.report.training import confusion_png, curves_png
from fer_pipeline.stages.samples import Split, load_split

log = logging.getLogger(__name__)

CHECKPOINT = "state.pt"
FILES_BEFORE_CARD = ("history.json", "curves.png", "confusion.png", WEIGHTS)
"""What a training that was killed while it published its bundle may have left."""
TERMS = {"fer2013-csv": "FER-2013 (Goodfellow et al., 2013): research data, not for commercial use."}


class TrainConfig(Config):
    """Train a recipe on an ingested dataset into a model bundle."""

    recipe: str
    """Name of a recipe that comes with the package, or a .toml file."""
    data: str
    """Folder of an ingested dataset."""
    out: str
    """Folder of the model bundle: new or empty."""
    initial: str | None = None
    """Model bundle whose weights to start from; by default the recipe's seed decides them."""
    num_workers: int = Field(1, ge=1)
    """Training processes; the recipe's batch is shared out among them."""
    use_gpu: bool = False
    """One GPU for each worker (nccl); without it, CPUs (gloo)."""
    checkpoints: str | None = None
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


def run(config: TrainConfig, cluster: ClusterConfig = ClusterConfig()) -> TrainResult:
    """Train, evaluate on the validation split, calibrate, and write the bundle. Raise UserError before any work."""
    data, out = storage.normalize(config.data), storage.normalize(config.out)
    storage.require_access(data, out)
    recipe, dataset = load_recipe(config.recipe), read_card(data)
    initial = read_bundle(config.initial) if config.initial else None
    _check(recipe, dataset, out, initial)
    checkpoints = storage.normalize(config.checkpoints or f"{out}.checkpoints")
    with connected(cluster, data, out, checkpoints):
        if config.use_gpu and ray.cluster_resources().get("GPU", 0) < config.num_workers:
            raise UserError(f"{config.num_workers} GPUs were asked for, which this cluster does not have: leave out --use-gpu.")
        if not cluster.address and ray.cluster_resources().get("CPU", 0) < config.num_workers:
            raise UserError(f"This machine has fewer than {config.num_workers} cores: ask for fewer with --num-workers.")
        state = _train(recipe, data, config, initial, checkpoints)
    return _publish(recipe, dataset, data, out, state, initial)


def _check(recipe: Recipe, dataset: DatasetCard, out: str, initial: BundleFiles | None) -> None:
    if dataset.label_space.name != recipe.label_space:
        raise UserError(
            f"The recipe's labels are {recipe.label_space}, the dataset's {dataset.label_space.name}: they must agree."
        )
    for split in (recipe.train_split, recipe.validation_split):
        if split not in dataset.counts:
            raise UserError(f"The dataset has no split '{split}'; it has {', '.join(dataset.counts)}.")
    build(recipe.network, len(dataset.label_space.classes))
    if initial and (initial.card.label_space, _shape(initial.card.network)) != (dataset.label_space, _shape(recipe.network)):
        raise UserError(
            f"The initial model '{initial.card.name}' has another network or other classes than the recipe and its data."
        )
    if set(storage.list_names(out)) - set(FILES_BEFORE_CARD):
        raise UserError(f"'{out}' is not empty: choose a new folder for --out.")


def _shape(network: NetworkConfig) -> NetworkConfig:
    """Return what two networks must share for the weights of one to serve the other."""
    return network.model_copy(update={"dropout": 0.0})


def _train(recipe: Recipe, data: str, config: TrainConfig, initial: BundleFiles | None, checkpoints: str) -> State:
    """Run the loop on the workers and return the last checkpoint's state."""
    parts = recipe.model_dump_json(), read_card(data).digest, initial.digest if initial else ""
    name = hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
    filesystem, path = storage.arrow_filesystem(checkpoints)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"recipe": recipe, "data": data, "initial": initial, "use_gpu": config.use_gpu},
        torch_config=TorchConfig(backend="nccl" if config.use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=config.num_workers, use_gpu=config.use_gpu),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    result = trainer.fit()
    if result.checkpoint is None:
        raise RuntimeError("the training ended without a checkpoint")
    return _read_checkpoint(result.checkpoint)


def _read_checkpoint(checkpoint: Checkpoint) -> State:
    with checkpoint.as_directory() as folder:
        state: State = torch.load(Path(folder) / CHECKPOINT, weights_only=True, map_location="cpu")
    return state


def _worker(arguments: dict[str, Any]) -> None:
    """One rank: load the splits, build the network from the recipe's seed, train, report every epoch."""
    recipe: Recipe = arguments["recipe"]
    device = ray.train.torch.get_device() if arguments["use_gpu"] else torch.device("cpu")
    splits = [load_split(arguments["data"], split, recipe.network) for split in (recipe.train_split, recipe.validation_split)]
    train, validation = (_tensors(split) for split in splits)
    torch.manual_seed(recipe.training.seed)
    network = build(recipe.network, len(read_card(arguments["data"]).label_space.classes)).to(device)
    if arguments["initial"]:
        network.load_state_dict(load_network(arguments["initial"]).state_dict())
    trainer = Trainer(network, recipe.training, recipe.augmentation, train, device)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        trainer.load(_read_checkpoint(checkpoint))

    def on_epoch(epoch: Epoch) -> None:
        if ray.train.get_context().get_world_rank() != 0:
            ray.train.report(vars(epoch))
            return
        log.info("epoch %d: %s", epoch.epoch, json.dumps(vars(epoch)))
        with tempfile.TemporaryDirectory() as folder:
            torch.save(trainer.state(), Path(folder) / CHECKPOINT)
            ray.train.report(vars(epoch), checkpoint=Checkpoint.from_directory(folder))

    trainer.fit(validation, on_epoch)


def _tensors(split: Split) -> Images:
    return Images(torch.from_numpy(split.images), torch.from_numpy(split.labels))


def _publish(recipe: Recipe, dataset: DatasetCard, data: str, out: str, state: State, initial: BundleFiles | None) -> TrainResult:
    """Evaluate and calibrate the selected weights, then write curves, confusion matrix and bundle."""
    network = build(recipe.network, len(dataset.label_space.classes))
    network.load_state_dict(state["best"])
    validation, train = (load_split(data, split, recipe.network) for split in (recipe.validation_split, recipe.train_split))
    logits, labels = predict(network, torch.from_numpy(validation.images)), torch.from_numpy(validation.labels)
    calibration = calibrate(logits, labels, recipe.calibration.certain_accuracy)
    probabilities = torch.softmax(logits / calibration.temperature, 1).numpy()
    selected = max(state["history"], key=lambda epoch: epoch["validation_accuracy"])
    metrics = _metrics(recipe, probabilities, validation, set(train.digests), dataset.label_space.classes)
    certain = probabilities.max(1) >= calibration.uncertain_below
    metrics["validation"] |= {
        "ece_cross_fitted": cross_fitted_ece(logits, labels, validation.digests),
        "coverage_certain": float(certain.mean()),
    }
    card = ModelCard(
        name=recipe.name,
        network=recipe.network,
        label_space=dataset.label_space,
        framing=recipe.framing,
        calibration=calibration,
        data={
            "layout": dataset.layout,
            "digest": dataset.digest,
            "train_split": recipe.train_split,
            "train_images": len(train.labels),
            "terms": TERMS.get(dataset.layout, "Those of the dataset that was ingested."),
        },
        metrics=metrics | {"selected_epoch": selected["epoch"], "epochs": len(state["history"])},
        recipe=recipe.model_dump(mode="json") | ({"initial": initial.card.recipe} if initial else {}),
    )
    confusion = metrics["validation"]["confusion"]
    storage.write_bytes(storage.join(out, "history.json"), json.dumps(state["history"], indent=1).encode())
    storage.write_bytes(storage.join(out, "curves.png"), curves_png(state["history"], selected["epoch"]))
    title = f"{recipe.name} on {recipe.validation_split}: accuracy {metrics['validation']['accuracy']:.3f}"
    storage.write_bytes(storage.join(out, "confusion.png"), confusion_png(confusion, dataset.label_space.classes, title))
    save_bundle(out, network, card)
    log.info("Model bundle: %s", storage.join(out, CARD))
    return TrainResult(
        out=out,
        name=recipe.name,
        epochs=len(state["history"]),
        selected_epoch=selected["epoch"],
        validation_accuracy=metrics["validation"]["accuracy"],
        validation_macro_f1=metrics["validation"]["macro_f1"],
        images_per_s=round(float(np.median([epoch["images_per_s"] for epoch in state["history"]])), 1),
    )


def _metrics(
    recipe: Recipe, probabilities: Any, validation: Split, learned: set[str], classes: tuple[str, ...]
) -> dict[str, Any]:
    """Return the figures on all of the validation split, and without the images that also stand in the training split."""
    fresh = np.array([digest not in learned for digest in validation.digests])
    measured = {"split": recipe.validation_split, "selected_on_this_split": True, "views": 1, "precision": "fp32"}
    whole = summarize(probabilities, validation.labels, classes)
    without = summarize(probabilities[fresh], validation.labels[fresh], classes)
    return {"validation": measured | whole, "validation_without_training_images": measured | without}
