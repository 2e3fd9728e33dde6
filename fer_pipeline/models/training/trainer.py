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

from fer_pipeline.models.augmentation import AugmentationConfig, degrade, move, shrink
from fer_pipeline.models.labelled_images import LabelledImages
from fer_pipeline.models.training.config import TrainingConfig
from fer_pipeline.models.training.feed import Feed
from fer_pipeline.models.training.loss import Draws, soft_targets
from fer_pipeline.models.training.optimizer import make_optimizer, make_schedule
from fer_pipeline.models.training.ranks import rank_and_world, reduce_over_ranks, share_buffers, sum_over_ranks
from fer_pipeline.models.training.teachers import Teachers

State = dict[str, Any]

LOSS_CHECK_STEPS = 25
"""Steps between two checks of the loss. On a GPU each check makes the host wait."""


@dataclass(frozen=True)
class Epoch:
    """The results of one epoch, a line of the history. Training figures are on augmented images."""

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    images_per_s: float


class DivergedError(Exception):
    """The loss is not finite. `step` counts from 1 over all epochs."""

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
    """Return cross-entropy and accuracy over the shares of a split on all ranks."""
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
    """Return the number, from 1, of the epoch to keep: the best (the first of equal ones) or the last."""
    best = max(history, key=lambda epoch: epoch.validation_accuracy)
    return (best if config.keep == "best" else history[-1]).epoch


class Trainer:
    """A network in training. `fit` runs the remaining epochs; `state` and `load` allow a restart.

    `network` is already on `device`. Its outputs are the classes, followed by auxiliary votes if the configuration uses them.
    `class_counts` describe the training split. In a torch.distributed group every rank builds the same trainer.
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
        """Train the remaining epochs and call `on_epoch` after each, on every rank.

        `validation` yields this rank's share of the validation split and is iterated in every epoch. `on_window` gets the step of
        the epoch and the mean loss since its last call. Afterwards the network holds the weights of the epoch that the
        configuration keeps. Raise DivergedError if the loss is not finite; the state at the last `on_epoch` is valid.
        """
        for epoch in range(len(self.history), self.config.epochs):
            started = time.perf_counter()
            loss, accuracy, images = self._train_epoch(epoch, on_window)
            seconds = time.perf_counter() - started
            evaluated: nn.Module = self.average.module if self.average else self.network
            share_buffers(evaluated)
            validation_loss, validation_accuracy = _evaluate(evaluated, validation, self.classes, self.config.precision)
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
                self.kept = {name: value.detach().cpu().clone() for name, value in evaluated.state_dict().items()}
            on_epoch(done)
        self.network.load_state_dict(self.kept)

    def _train_epoch(self, epoch: int, on_window: Callable[[int, float], None]) -> tuple[float, float, float]:
        """Return mean loss, accuracy and number of images of one pass over the training split, over all ranks."""
        self.replica.train()
        seed = self.config.seed * 100_003 + epoch
        torch.manual_seed(seed * 4096 + rank_and_world()[0])  # dropout
        draws = Draws(seed, rank_and_world()[0])
        batches = self.train.batches(seed)
        step, loss_sum, correct, images = 0, 0.0, 0.0, 0
        while window := [self._step(batch.to(self.device), draws) for batch in islice(batches, LOSS_CHECK_STEPS)]:
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
        """Take an optimiser step; return this rank's mean loss, number of correct predictions and number of images."""
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
        """Return a context that delays the exchange of gradients between ranks until the last part of a step."""
        if last or not isinstance(self.replica, DistributedDataParallel):
            return nullcontext()
        exchange: AbstractContextManager[None] = self.replica.no_sync()
        return exchange

    def _loss(self, batch: LabelledImages, draws: "Draws") -> tuple[Tensor, Tensor]:
        moved = move(batch.images, self.augmentation, draws.generator)
        targets = soft_targets(batch, self.classes, self.config, self.teachers(moved) if self.teachers else batch.taught)
        inputs = shrink(degrade(moved, self.augmentation, draws.generator), self._side(moved.shape[-1]))
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
        """Return the side of this epoch's images for a network with inputs of side `full`."""
        remaining = self.config.epochs - 1 - len(self.history)
        first, third = self.config.first_px or full, 2 - 3 * remaining // self.config.epochs  # 0, 1 or 2; 2 in the last epoch
        return first + (full - first) * third // 2

    def _require_finite(self, losses: Tensor, epoch: int, done: int) -> None:
        """Raise DivergedError on all ranks with the first step after `done` in which any rank's loss is not finite."""
        bad = (~torch.isfinite(losses)).nonzero()
        first = epoch * self.steps + done + int(bad[0]) + 1 if len(bad) else math.inf
        first = float(reduce_over_ranks(torch.tensor([first], dtype=torch.float64), dist.ReduceOp.MIN))
        if math.isfinite(first):
            raise DivergedError(int(first), epoch + 1)

    def state(self) -> State:
        """Return everything that a restart needs, in types that `torch.load(weights_only=True)` can read."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": [vars(epoch) for epoch in self.history],
            "kept": self.kept,
            "average": self.average.state_dict() if self.average else {},
        }

    def load(self, state: State) -> None:
        """Continue from `state`. The following epochs, seeds and batches equal those of an uninterrupted run."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.kept = state["kept"]
        if self.average:
            self.average.load_state_dict(state["average"])
