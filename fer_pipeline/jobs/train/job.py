"""Train an expression classifier: the loop of `models/training/` under Ray Train on 1..N workers."""

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

from ray.train import Checkpoint, CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig

from fer_pipeline.base import storage
from fer_pipeline.base.config import require_same
from fer_pipeline.base.errors import UserError
from fer_pipeline.datasets.dataset import read_dataset
from fer_pipeline.engine.connect import ClusterConfig, connected
from fer_pipeline.engine.machines import Machines, by_node, cluster_cores
from fer_pipeline.engine.progress import progress
from fer_pipeline.engine.tasks import share
from fer_pipeline.faces.classify import read_tried
from fer_pipeline.jobs.lineage import traced
from fer_pipeline.jobs.train.bundle import FILES_BEFORE_CARD, selected_epoch, write_bundle
from fer_pipeline.jobs.train.config import TrainConfig, TrainResult
from fer_pipeline.jobs.train.plan import facts_of, identity_of, make_plan
from fer_pipeline.jobs.train.private_ray_train import LocalTrainer, Trainer, rendezvous
from fer_pipeline.jobs.train.rank import DIVERGED, PROGRESS, Plan, pretrained_weights, read_checkpoint, stream, worker
from fer_pipeline.models.bundle import HISTORY, MODEL_FILE, read_bundle, read_learned
from fer_pipeline.models.card import ModelCard
from fer_pipeline.models.figures import SplitFigures
from fer_pipeline.models.recipe import Recipe, load_recipe
from fer_pipeline.models.training.trainer import State

log = logging.getLogger(__name__)


@traced("train", ("data", "mix"), ("out",))
def run(config: TrainConfig, cluster: ClusterConfig = ClusterConfig()) -> TrainResult:
    """Train, evaluate on the validation split, calibrate, write the bundle, and return the outcome.

    Raise UserError, before any work, if the configuration is invalid.
    """
    data, out = storage.normalize(config.data), storage.normalize(config.out)
    mix = [storage.normalize(config.mix)] if config.mix else []
    storage.require_access(data, out, *mix)
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
    with connected(cluster, data, out, checkpoints, *mix) as machines:
        _require_resources(config, plan, machines)
        state = _train(plan, config, checkpoints, identity_of(facts), machines.is_local)
        validation = write_bundle(plan, dataset, out, state, lineage, facts, machines)
    return _result(out, recipe, plan, validation, state["history"])


def _done_before(out: str, facts: dict[str, Any]) -> ModelCard | None:
    """Return the card of the bundle with these facts in `out`; None if there is none. Raise UserError if the facts differ."""
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


def _require_resources(config: TrainConfig, plan: Plan, machines: Machines) -> None:
    """Wait for a GPU for each worker; raise UserError if there are too few GPUs, or too few cores on this machine."""
    if config.use_gpu:
        machines.wait_for_gpus(config.min_workers or config.num_workers, "--use-gpu", on_one_node=False)
    needed = config.num_workers + plan.streamed
    if machines.is_local and cluster_cores() < needed:
        beside = " and one for the streamed data" if plan.streamed else ""
        raise UserError(f"This machine has fewer than {needed} cores, one for each worker{beside}: ask for fewer --num-workers.")


def _train(plan: Plan, config: TrainConfig, checkpoints: str, name: str, is_local: bool) -> State:
    """Run the loop on the workers and return the last checkpoint's state. `name`: the training's folder in `checkpoints`."""
    recipe = plan.recipe
    live = storage.join(checkpoints, name)
    cores = 1 if config.use_gpu else max(1, _cores_of_a_node() // _workers_of_a_node(config.num_workers))
    pretrained = share(pretrained_weights(recipe, plan.outputs)) if recipe.pretrained else None
    plan = replace(plan, threads=cores, live=live, pretrained=pretrained)
    filesystem, path = storage.checkpoint_filesystem(checkpoints)
    storage.remove(storage.join(live, DIVERGED))
    workers: Any = (config.min_workers, config.num_workers) if config.min_workers else config.num_workers
    with rendezvous("nccl" if config.use_gpu else "gloo") as meeting, _watched(live, recipe.training.epochs):
        trainer = (LocalTrainer if is_local else Trainer)(
            worker,
            train_loop_config={"plan": plan},
            torch_config=meeting,
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=config.use_gpu,
                # One core is left to the reading tasks; the worker computes on it too while they wait.
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
    """Return the number of workers on a node, if they are spread evenly over the nodes with cores."""
    return -(-workers // len(_cores()))


def _cores_of_a_node() -> int:
    """Return the cores of the smallest node that has any."""
    return min(_cores())


def _cores() -> list[int]:
    """Return the cores of each node that has any."""
    return [int(cores) for cores in by_node("CPU") if cores >= 1] or [1]


def _require_finite(live: str, checkpoint: Checkpoint | None) -> None:
    if storage.exists(storage.join(live, DIVERGED)):
        what = storage.read_bytes(storage.join(live, DIVERGED)).decode()
        kept = f"the last good checkpoint is {checkpoint.path}" if checkpoint else "no epoch was finished"
        raise UserError(f'The training diverged: {what}; {kept}. Lower learning_rate in the recipe, or set precision = "fp32".')


@contextmanager
def _watched(live: str, epochs: int) -> Iterator[None]:
    """Show the workers' progress, from the file that the first rank keeps writing."""
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
    """Return one line of text about a finished epoch."""
    left_s = (epochs - epoch["epoch"]) * epoch["seconds"]
    return (
        f"epoch {epoch['epoch']} of {epochs}: training loss {epoch['train_loss']:.3f}, accuracy {epoch['train_accuracy']:.3f}; "
        f"validation {epoch['validation_loss']:.3f}, {epoch['validation_accuracy']:.4f}; {epoch['images_per_s']:.0f} images/s, "
        f"about {left_s / 60:.0f} min left"
    )
