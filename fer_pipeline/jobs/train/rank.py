"""What each rank of a training does: read its share of the data, train its network, write checkpoints. `job.py` starts them."""

import io
import json
import posixpath
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint

from fer_pipeline.base import storage
from fer_pipeline.base.processor import has_native_bf16
from fer_pipeline.datasets.dataset import DatasetInfo, sample_files
from fer_pipeline.datasets.training_data import SplitReader
from fer_pipeline.engine.tasks import Shared
from fer_pipeline.models.bundle import Bundle
from fer_pipeline.models.framing import Framing
from fer_pipeline.models.label_space import LabelSpace
from fer_pipeline.models.labelled_images import LabelledImages, concatenate
from fer_pipeline.models.networks import build
from fer_pipeline.models.pretrained import load_pretrained
from fer_pipeline.models.recipe import Recipe
from fer_pipeline.models.training.feed import Feed, Resident
from fer_pipeline.models.training.ranks import rank_and_world
from fer_pipeline.models.training.teachers import Teachers
from fer_pipeline.models.training.trainer import DivergedError, Epoch, State, Trainer
from fer_pipeline.models.weights import Weights, load_network, take_over

CHECKPOINT, PROGRESS, DIVERGED = "state.pt", "progress.json", "diverged.txt"
PROGRESS_EVERY_S = 5.0
ROWS_PER_CHUNK = 512
"""Rows of the dataset that are read and decoded at a time."""
SHUFFLE_BYTES = 256 * 1024**2
"""Size of the buffer from which streamed images are drawn at random."""


@dataclass(frozen=True)
class Mixed:
    """A further dataset that is learned beside the first."""

    dataset: DatasetInfo
    train: SplitReader
    weight: int
    """How often each of its images comes in an epoch."""
    class_counts: tuple[int, ...]
    """Number of its images, by the recipe's classes."""


@dataclass(frozen=True)
class Plan:
    """Everything that a rank needs."""

    recipe: Recipe
    space: LabelSpace
    framing: Framing
    """Framing of the dataset's faces; labelling cuts faces with it."""
    train: SplitReader
    validation: SplitReader
    class_counts: tuple[int, ...]
    """Number of training images in `train`, by the recipe's classes."""
    mixed: Mixed | None
    initial: Bundle | None
    teachers: tuple[Bundle, ...]
    pretrained: Shared[Weights] | None
    """The whole network's weights, if the recipe names pretrained ones and the driver has read them for all ranks."""
    streamed: bool
    use_gpu: bool
    threads: int
    live: str
    """Folder of the progress file and the checkpoints."""

    @property
    def epoch_counts(self) -> list[int]:
        """Number of images in an epoch, by the recipe's classes."""
        if self.mixed is None:
            return list(self.class_counts)
        pairs = zip(self.class_counts, self.mixed.class_counts, strict=True)
        return [count + self.mixed.weight * further for count, further in pairs]

    @property
    def outputs(self) -> int:
        """Number of the network's outputs during training: the classes, plus the votes if they are auxiliary."""
        votes = len(self.train.votes) if self.recipe.training.votes == "auxiliary" else 0
        return len(self.space.classes) + votes


def stream(plan: Plan) -> ray.data.Dataset:
    """Return the training split as a Ray dataset of arrays; each epoch has another order of files, which its tasks decode."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    reader = plan.train
    files = sample_files(reader.dataset)

    def read(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for uri in batch["item"]:
            for chunk in reader.chunks_of(str(uri), ROWS_PER_CHUNK):
                yield {"images": chunk.images, "labels": chunk.labels, "votes": chunk.votes}

    order = ray.data.RandomSeedConfig(seed=plan.recipe.training.seed)
    shuffled = ray.data.from_items(files, override_num_blocks=len(files)).randomize_block_order(seed=order)
    return shuffled.map_batches(read, batch_size=1, batch_format="numpy")


@dataclass(frozen=True)
class Streamed:
    """This rank's share of a training split, streamed from Ray Data through a buffer of shuffled images."""

    shard: Any
    images: int
    batch_size: int
    image_bytes: int

    def __len__(self) -> int:
        return self.images

    def batches(self, seed: int) -> Iterator[LabelledImages]:
        """Yield this rank's batches, without the last, smaller one."""
        world = rank_and_world()[1]
        steps, size = max(1, self.images // self.batch_size), self.batch_size // world
        buffer = min(max(size, SHUFFLE_BYTES // self.image_bytes), max(size, self.images // (2 * world)))
        stream = self.shard.iter_batches(
            batch_size=size, batch_format="numpy", drop_last=True, local_shuffle_buffer_size=buffer, local_shuffle_seed=seed
        )
        for _, batch in zip(range(steps), stream, strict=False):
            images, labels, votes = (np.ascontiguousarray(batch[name]) for name in ("images", "labels", "votes"))
            yield LabelledImages(images, labels, votes).to("cpu")


@dataclass(frozen=True)
class ValidationShare:
    """This rank's share of the validation split, read again for every epoch."""

    reader: SplitReader

    def __iter__(self) -> Iterator[LabelledImages]:
        rank, world = rank_and_world()
        for chunk in self.reader.chunks(ROWS_PER_CHUNK, rank, world):
            yield chunk.to("cpu")


def pretrained_weights(recipe: Recipe, outputs: int) -> Weights:
    """Return the initial weights of the recipe's network: the pretrained ones, and a random last layer from the seed.

    Raise UserError if they are not available or belong to another network.
    """
    assert recipe.pretrained
    torch.manual_seed(recipe.training.seed)
    network = build(recipe.network, outputs)
    load_pretrained(network, recipe.network.architecture, recipe.pretrained)
    return network.state_dict()


def make_trainer(plan: Plan, device: torch.device, shard: Any = None) -> Trainer:
    """Return the trainer of a plan, with its initial network and its data. `shard`: this rank's share of streamed data."""
    recipe, training = plan.recipe, plan.recipe.training
    if device.type == "cpu" and not has_native_bf16():
        training = training.model_copy(update={"precision": "fp32"})
    torch.manual_seed(training.seed)
    network = build(recipe.network, plan.outputs)
    if plan.pretrained:
        network.load_state_dict(plan.pretrained.get())
    elif recipe.pretrained:
        load_pretrained(network, recipe.network.architecture, recipe.pretrained)
    if plan.initial:
        take_over(network, load_network(plan.initial).state_dict())
    batch, side = training.batch_size, recipe.network.image_px
    teachers = Teachers(plan.teachers, device, training.precision) if plan.teachers else None
    if shard is not None:
        feed: Feed = Streamed(shard, sum(plan.class_counts), batch, recipe.network.channels * side * side)
    else:
        balance = training.balance_power if training.class_balance == "sampling" else 0.0
        parts = [plan.train.load(), *([plan.mixed.train.load()] * plan.mixed.weight if plan.mixed else [])]
        data = concatenate(parts).to(device)
        if teachers and training.teacher_view == "original":
            data, teachers = teachers.teach(data), None
        feed = Resident(data, batch, balance)
    return Trainer(network.to(device), plan.epoch_counts, training, recipe.augmentation, feed, device, teachers)


def worker(arguments: dict[str, Any]) -> None:
    """Run one rank: load the splits, build the network, train, and report every epoch."""
    plan: Plan = arguments["plan"]
    torch.set_num_threads(plan.threads)
    device = ray.train.torch.get_device() if plan.use_gpu else torch.device("cpu")
    trainer = make_trainer(plan, device, ray.train.get_dataset_shard("train") if plan.streamed else None)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        trainer.load(read_checkpoint(checkpoint, plan.live))
    live = _ProgressFile(plan.live, trainer) if rank_and_world()[0] == 0 else None

    def on_epoch(epoch: Epoch) -> None:
        if not live:
            ray.train.report(asdict(epoch))
            return
        with tempfile.TemporaryDirectory() as folder:
            torch.save(trainer.state(), Path(folder) / CHECKPOINT)
            ray.train.report(asdict(epoch), checkpoint=Checkpoint.from_directory(folder))
        live.write()

    validation: Any = ValidationShare(plan.validation) if plan.streamed else _share(plan.validation.load())
    try:
        trainer.fit(validation, on_epoch, live.window if live else lambda step, loss: None)
    except DivergedError as diverged:  # the worker does not fail: a retry would diverge too
        if live:
            storage.write_bytes(storage.join(plan.live, DIVERGED), str(diverged).encode())


def _share(split: LabelledImages) -> list[LabelledImages]:
    rank, world = rank_and_world()
    cut = slice(rank * len(split) // world, (rank + 1) * len(split) // world)
    return [split[cut].to("cpu")]


class _ProgressFile:
    """Writes the training's progress to a file every few seconds."""

    def __init__(self, folder: str, trainer: Trainer) -> None:
        self.folder, self.trainer = folder, trainer
        self.started = self.written = time.monotonic()
        self.before = len(trainer.history)

    def window(self, step: int, loss: float) -> None:
        if time.monotonic() - self.written >= PROGRESS_EVERY_S:
            self.write(step, loss)

    def write(self, step: int = 0, loss: float | None = None) -> None:
        history = self.trainer.history
        seconds = (time.monotonic() - self.started) / max(1, len(history) - self.before)
        now = {
            "history": [asdict(epoch) | {"seconds": seconds} for epoch in history],
            "step": step,
            "steps": self.trainer.steps,
            "loss": loss,
        }
        storage.write_bytes(storage.join(self.folder, PROGRESS), json.dumps(now).encode())
        self.written = time.monotonic()


def read_checkpoint(checkpoint: Checkpoint, live: str) -> State:
    """Return the state in a checkpoint of the training in the folder `live`."""
    data = storage.read_bytes(storage.join(live, posixpath.basename(checkpoint.path), CHECKPOINT))
    state: State = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    return state
