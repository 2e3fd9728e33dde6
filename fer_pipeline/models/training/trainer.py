"""The loop: epochs, steps, validation and the selection of the best epoch."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fer_pipeline.models.augmentation import AugmentationConfig, move, shrink, spoil
from fer_pipeline.models.labelled_images import LabelledImages
from fer_pipeline.models.training.config import TrainingConfig
from fer_pipeline.models.training.feed import Feed
from fer_pipeline.models.training.loss import Draws, soft_targets
from fer_pipeline.models.training.optimizer import make_optimizer, make_schedule
from fer_pipeline.models.training.ranks import rank_and_world, reduce_over_ranks, share_buffers, sum_over_ranks
from fer_pipeline.models.training.teachers import Teachers

State = dict[str, Any]

WINDOW = 25
"""Steps between two looks at the loss, which on a GPU make the host wait."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to; one line of the history. Training figures are on augmented images."""

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    images_per_s: float


class DivergedError(Exception):
    """The loss is no number any more; `step` counts from 1 over all epochs."""

    def __init__(self, step: int, epoch: int) -> None:
        super().__init__(f"the loss is not finite at step {step} (epoch {epoch})")
        self.step, self.epoch = step, epoch


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor, precision: str = "fp32", batch_size: int = 512) -> Tensor:
    """Return float32 logits (n, classes) on the CPU for uint8 images (n, c, h, w), in evaluation mode."""
    network.eval()
    device = next(network.parameters()).device
    out = []
    for chunk in images.split(batch_size):
        with _autocast(device, precision):
            out.append(network(chunk.to(device)).float().cpu())
    return torch.cat(out)


def _evaluate(network: nn.Module, shares: Iterable[LabelledImages], classes: int, precision: str) -> tuple[float, float]:
    """Return cross-entropy and accuracy over this rank's share of a split and the other ranks'."""
    loss = correct = count = 0.0
    for chunk in shares:
        logits = predict(network, chunk.images, precision)[:, :classes]
        labels = chunk.labels.cpu()
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        correct += float((logits.argmax(1) == labels).sum())
        count += len(chunk)
    loss, correct, count = sum_over_ranks(loss, correct, count)
    return loss / count, correct / count


def kept_epoch(history: Sequence[Epoch], config: TrainingConfig) -> int:
    """Return the number of the epoch, from 1, whose weights are kept: the best, the first of equals, or the last."""
    best = max(history, key=lambda epoch: epoch.validation_accuracy)
    return (best if config.keep == "best" else history[-1]).epoch


class Trainer:
    """A network in training: `fit` runs the epochs that are left, `state` and `load` carry it over a restart.

    `network` is on `device` already; its outputs are `classes` and, where votes are auxiliary, those of the votes.
    `class_counts` are the training split's. In a torch.distributed group every rank builds the same trainer.
    """

    def __init__(
        self,
        network: nn.Module,
        class_counts: list[int],
        config: TrainingConfig,
        augmentation: AugmentationConfig,
        train: Feed,
        device: torch.device,
        teachers: Teachers | None = None,
    ) -> None:
        if config.sync_batch_norm and dist.is_initialized() and device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.network = network.to(memory_format=torch.channels_last)
        self.classes, self.config, self.augmentation = len(class_counts), config, augmentation
        self.train, self.device, self.teachers = train, device, teachers
        self.replica: nn.Module = DistributedDataParallel(network) if dist.is_initialized() else network
        self.steps = max(1, len(train) // config.batch_size)
        self.optimizer = make_optimizer(network, config)
        self.schedule = make_schedule(self.optimizer, config, config.epochs * self.steps)
        averaging = get_ema_multi_avg_fn(config.ema_decay)
        self.average = AveragedModel(network, multi_avg_fn=averaging, use_buffers=True) if config.ema_decay else None
        counts = torch.tensor(class_counts, dtype=torch.float32).clamp(min=1)
        weight = (counts.sum() / (len(counts) * counts)) ** config.balance_power
        self.class_weight = weight.to(device) if config.class_balance == "loss" else None
        self.history: list[Epoch] = []
        self.kept: dict[str, Tensor] = {}

    def fit(
        self,
        validation: Iterable[LabelledImages],
        on_epoch: Callable[[Epoch], None],
        on_window: Callable[[int, float], None] = lambda step, loss: None,
    ) -> None:
        """Train the epochs that are left; `on_epoch` is called after each, on every rank.

        `validation` yields this rank's share of the validation split, anew for every epoch. `on_window` gets the step of the
        epoch and the mean loss since it was last called. Afterwards the network holds the weights of the epoch that the
        configuration keeps. Raise DivergedError where the loss is not finite; the last state handed to `on_epoch` is good.
        """
        for epoch in range(len(self.history), self.config.epochs):
            started = time.perf_counter()
            loss, accuracy, images = self._train_epoch(epoch, on_window)
            seconds = time.perf_counter() - started
            judged: nn.Module = self.average.module if self.average else self.network
            share_buffers(judged)
            validation_loss, validation_accuracy = _evaluate(judged, validation, self.classes, self.config.precision)
            done = Epoch(
                epoch=epoch + 1,
                train_loss=loss,
                train_accuracy=accuracy,
                validation_loss=validation_loss,
                validation_accuracy=validation_accuracy,
                learning_rate=float(self.schedule.get_last_lr()[0]),
                images_per_s=images / seconds,
            )
            self.history.append(done)
            if self.history[kept_epoch(self.history, self.config) - 1] is done:
                self.kept = {name: value.detach().cpu().clone() for name, value in judged.state_dict().items()}
            on_epoch(done)
        self.network.load_state_dict(self.kept)

    def _train_epoch(self, epoch: int, on_window: Callable[[int, float], None]) -> tuple[float, float, float]:
        """Return mean loss, accuracy and number of images of one pass over the training split, all ranks together."""
        self.replica.train()
        seed = self.config.seed * 100_003 + epoch
        torch.manual_seed(seed * 4096 + rank_and_world()[0])  # dropout
        draws = Draws(seed, rank_and_world()[0])
        batches = self.train.batches(seed)
        step, loss_sum, correct, images = 0, 0.0, 0.0, 0
        while window := [self._step(batch.to(self.device), draws) for batch in islice(batches, WINDOW)]:
            losses = torch.stack([loss for loss, _, _ in window]).cpu()
            self._require_finite(losses, epoch, step)
            sizes = torch.tensor([size for _, _, size in window])
            loss_sum += float((losses * sizes).sum())
            correct += float(torch.stack([right for _, right, _ in window]).sum())
            images += int(sizes.sum())
            step += len(window)
            on_window(step, float(losses.mean()))
        total_loss, total_correct, total = sum_over_ranks(loss_sum, correct, images)
        return total_loss / total, total_correct / total, total

    def _step(self, batch: LabelledImages, draws: "Draws") -> tuple[Tensor, Tensor, int]:
        """Take one step of the optimiser; return the mean loss and the numbers of right answers and images of this rank."""
        parts = range(min(self.config.accumulate, len(batch)))
        cuts = [part * len(batch) // len(parts) for part in (*parts, len(parts))]
        loss_sum, correct = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for part in parts:
            chunk = batch[slice(cuts[part], cuts[part + 1])]
            with self._synchronised(part == parts[-1]):
                loss, right = self._loss(chunk, draws)
                loss = loss * (len(chunk) / len(batch))
                loss.backward()
            loss_sum += loss.detach()
            correct += right
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        if self.average:
            self.average.update_parameters(self.network)
        return loss_sum, correct, len(batch)

    def _synchronised(self, last: bool) -> AbstractContextManager[None]:
        """Leave the gradients' exchange among ranks to the last part of a step."""
        if last or not isinstance(self.replica, DistributedDataParallel):
            return nullcontext()
        exchange: AbstractContextManager[None] = self.replica.no_sync()
        return exchange

    def _loss(self, batch: LabelledImages, draws: "Draws") -> tuple[Tensor, Tensor]:
        moved = move(batch.images, self.augmentation, draws.generator)
        targets = soft_targets(batch, self.classes, self.config, self.teachers(moved) if self.teachers else batch.taught)
        inputs = shrink(spoil(moved, self.augmentation, draws.generator), self._side(moved.shape[-1]))
        if self.config.mixup:
            share = draws.beta(self.config.mixup, len(batch)).to(self.device)[:, None]
            inputs = torch.lerp(inputs.flip(0).float(), inputs.float(), share[:, :, None, None])
            targets = torch.lerp(targets.flip(0), targets, share)
        with _autocast(self.device, self.config.precision):
            outputs = self.replica(inputs).float()
        logits, wanted = outputs[:, : self.classes], targets[:, : self.classes]
        loss = F.cross_entropy(logits, wanted, self.class_weight)
        if self.config.votes == "auxiliary":
            loss = loss + self.config.votes_weight * F.cross_entropy(outputs[:, self.classes :], targets[:, self.classes :])
        return loss, (logits.argmax(1) == wanted.argmax(1)).sum()

    def _side(self, full: int) -> int:
        """Return the side of this epoch's images, of a network that takes `full`."""
        left = self.config.epochs - 1 - len(self.history)
        first, third = self.config.first_px or full, 2 - 3 * left // self.config.epochs  # the last epoch is in the third one
        return first + (full - first) * third // 2

    def _require_finite(self, losses: Tensor, epoch: int, done: int) -> None:
        """Raise DivergedError, on all ranks at once, naming the first step after `done` at which a rank's loss is not finite."""
        bad = (~torch.isfinite(losses)).nonzero()
        first = epoch * self.steps + done + int(bad[0]) + 1 if len(bad) else math.inf
        first = float(reduce_over_ranks(torch.tensor([first], dtype=torch.float64), dist.ReduceOp.MIN))
        if math.isfinite(first):
            raise DivergedError(int(first), epoch + 1)

    def state(self) -> State:
        """Return all that a restart needs, in types that `torch.load(weights_only=True)` reads."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": [vars(epoch) for epoch in self.history],
            "kept": self.kept,
            "average": self.average.state_dict() if self.average else {},
        }

    def load(self, state: State) -> None:
        """Continue from `state`; the epochs, seeds and batches that follow are those of an undisturbed run."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.kept = state["kept"]
        if self.average:
            self.average.load_state_dict(state["average"])
