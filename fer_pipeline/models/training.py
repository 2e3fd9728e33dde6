"""The training loop: plain torch, on one process or on every rank of a torch.distributed group. No Ray, no Prefect."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fer_pipeline.core.config import Config
from fer_pipeline.models.augmentation import AugmentationConfig, augment

State = dict[str, Any]


class TrainingConfig(Config):
    """Optimisation: SGD with Nesterov momentum under a one-cycle schedule (Smith & Topin, 2018)."""

    epochs: int = Field(40, ge=1)
    batch_size: int = Field(128, ge=1)
    """Images per step over all workers together."""
    learning_rate: float = Field(0.1, gt=0)
    """Peak of the cycle."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    warmup: float = 0.2
    """Share of the steps in which the learning rate rises."""
    mixup: float = Field(0.0, ge=0)
    """Alpha of mixup (Zhang et al., 2018); 0 turns it off."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay per step of an exponential moving average of the weights, which is then what is evaluated; 0 turns it off."""
    precision: Literal["bf16", "fp32"] = "bf16"
    seed: int = 0


@dataclass(frozen=True)
class Images:
    """A split in memory: uint8 images (n, c, h, w) and int64 labels (n,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Images":
        return Images(self.images.to(device), self.labels.to(device))


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


def _rank() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def batches(count: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Yield this rank's indices of each global batch: one permutation for all ranks, each takes its stretch.

    The last, smaller batch is left out unless it is the only one.
    """
    rank, world = _rank()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    for start in range(0, max(1, count - batch_size + 1), batch_size):
        batch = order[start : start + batch_size]
        yield batch[rank * len(batch) // world : (rank + 1) * len(batch) // world]


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


def _predict_shared(network: nn.Module, images: Tensor, precision: str) -> Tensor:
    """Like `predict`, every rank taking its share and getting the whole."""
    rank, world = _rank()
    mine = predict(network, images.tensor_split(world)[rank], precision)
    if world == 1:
        return mine
    shares: list[Any] = [None] * world
    dist.all_gather_object(shares, mine)
    return torch.cat(shares)


def _sum(*values: float) -> list[float]:
    """Add figures up over all ranks."""
    total = torch.tensor(values, dtype=torch.float64)
    if dist.is_initialized():
        if dist.get_backend() == "nccl":
            total = total.cuda()
        dist.all_reduce(total)
    return [float(value) for value in total]


def _share_buffers(network: nn.Module) -> None:
    """Give every rank the batch statistics of rank 0, whose weights are the ones that are kept."""
    if dist.is_initialized():
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


class Trainer:
    """A network in training: `fit` runs the epochs that are left, `state` and `load` carry it over a restart.

    `network` is on `device` already. In a torch.distributed group every rank builds the same trainer.
    """

    def __init__(
        self, network: nn.Module, config: TrainingConfig, augmentation: AugmentationConfig, train: Images, device: torch.device
    ) -> None:
        self.network = network.to(memory_format=torch.channels_last)
        self.config, self.augmentation, self.device = config, augmentation, device
        self.train = train.to(device)
        self.replica: nn.Module = DistributedDataParallel(network) if dist.is_initialized() else network
        self.optimizer = torch.optim.SGD(
            network.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            nesterov=True,
            weight_decay=config.weight_decay,
        )
        steps = config.epochs * max(1, len(train) // config.batch_size)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.learning_rate, total_steps=steps + 1, pct_start=config.warmup, cycle_momentum=False
        )
        averaging = get_ema_multi_avg_fn(config.ema_decay)
        self.average = AveragedModel(network, multi_avg_fn=averaging, use_buffers=True) if config.ema_decay else None
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}

    def fit(self, validation: Images, on_epoch: Callable[[Epoch], None]) -> None:
        """Train the epochs that are left; `on_epoch` is called after each, on every rank.

        Afterwards the network holds the weights of the epoch with the best validation accuracy.
        """
        for epoch in range(len(self.history), self.config.epochs):
            started = time.perf_counter()
            loss, accuracy, images = self._train_epoch(epoch)
            seconds = time.perf_counter() - started
            judged: nn.Module = self.average.module if self.average else self.network
            _share_buffers(judged)
            logits = _predict_shared(judged, validation.images, self.config.precision)
            done = Epoch(
                epoch=epoch + 1,
                train_loss=loss,
                train_accuracy=accuracy,
                validation_loss=float(F.cross_entropy(logits, validation.labels)),
                validation_accuracy=float((logits.argmax(1) == validation.labels).float().mean()),
                learning_rate=float(self.schedule.get_last_lr()[0]),
                images_per_s=images / seconds,
            )
            if done.validation_accuracy > max((e.validation_accuracy for e in self.history), default=-1.0):
                self.best = {name: value.detach().cpu().clone() for name, value in judged.state_dict().items()}
            self.history.append(done)
            on_epoch(done)
        self.network.load_state_dict(self.best)

    def _train_epoch(self, epoch: int) -> tuple[float, float, float]:
        """Return mean loss, accuracy and number of images of one pass over the training split, all ranks together."""
        self.replica.train()
        seed = self.config.seed * 100_003 + epoch
        generator = torch.Generator().manual_seed(seed * 4096 + _rank()[0])
        torch.manual_seed(seed * 4096 + _rank()[0])  # dropout
        mixing = np.random.default_rng(seed)  # the same on every rank
        loss_sum, correct, images = torch.zeros((), device=self.device), torch.zeros((), device=self.device), 0
        for indices in batches(len(self.train), self.config.batch_size, seed):
            indices = indices.to(self.device)
            labels = self.train.labels[indices]
            inputs = augment(self.train.images[indices], self.augmentation, generator)
            share = float(mixing.beta(self.config.mixup, self.config.mixup)) if self.config.mixup else 1.0
            if share < 1.0:
                inputs = share * inputs.float() + (1 - share) * inputs.flip(0).float()
            with _autocast(self.device, self.config.precision):
                logits = self.replica(inputs).float()
            loss = share * self._loss(logits, labels) + (1 - share) * self._loss(logits, labels.flip(0))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            if self.average:
                self.average.update_parameters(self.network)
            loss_sum += loss.detach() * len(labels)
            correct += (logits.argmax(1) == labels).sum()
            images += len(labels)
        total_loss, total_correct, total = _sum(float(loss_sum), float(correct), images)
        if not math.isfinite(total_loss):
            raise FloatingPointError(f"the training loss is not finite in epoch {epoch + 1}; lower the learning rate")
        return total_loss / total, total_correct / total, total

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)

    def state(self) -> State:
        """Return all that a restart needs, in types that `torch.load(weights_only=True)` reads."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": [vars(epoch) for epoch in self.history],
            "best": self.best,
            "average": self.average.state_dict() if self.average else {},
        }

    def load(self, state: State) -> None:
        """Continue from `state`; the epochs, seeds and batches that follow are those of an undisturbed run."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.best = state["best"]
        if self.average:
            self.average.load_state_dict(state["average"])
