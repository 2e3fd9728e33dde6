"""The settings of a training: a recipe's `[training]`."""

from typing import Literal

from pydantic import Field, model_validator

from fer_pipeline.base.config import Config


class TrainingConfig(Config):
    """Optimisation: by default SGD with Nesterov momentum under a one-cycle schedule (Smith & Topin, 2018)."""

    epochs: int = Field(40, ge=1)
    batch_size: int = Field(128, ge=1)
    """Images per step over all workers together."""
    accumulate: int = Field(1, ge=1)
    """Number of parts in which each worker computes its share of a step, if the device cannot hold it at once."""
    sync_batch_norm: bool = False
    """Normalise over the batch of all workers, not of each alone. For small shares of a batch; it works only on GPUs."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = Field(0.1, gt=0)
    """Highest learning rate of the schedule."""
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    """`one_cycle` rises for the share `warmup` of the steps, then falls to zero; `cosine` only falls; `constant` does neither."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Nesterov momentum of SGD."""
    weight_decay: float = Field(5e-4, ge=0)
    label_smoothing: float = Field(0.1, ge=0, le=1)
    warmup: float = Field(0.2, ge=0, le=1)
    """Share of the steps during which the learning rate rises."""
    class_balance: Literal["none", "loss", "sampling"] = "none"
    """For unequal classes: weigh the loss by inverse class frequency, or sample images so that classes are equally frequent."""
    balance_power: float = Field(1.0, gt=0, le=1)
    """Exponent of the inverse frequency: 1 balances the classes fully, 0.5 halfway."""
    votes: Literal["ignore", "target", "auxiliary"] = "ignore"
    """Use of annotators' votes. `target`: they replace the share `votes_weight` of the label. `auxiliary`: extra outputs learn
    them and are removed after training. Images without votes use only their label."""
    votes_weight: float = Field(1.0, ge=0)
    """Share of the votes in the target (`target`), at most 1, or weight of their loss relative to the labels' (`auxiliary`)."""
    teacher_weight: float = Field(0.0, ge=0, le=1)
    """Share of the teachers' mean probabilities in the target (Hinton et al., 2015)."""
    teacher_view: Literal["moved", "original"] = "moved"
    """Input of the teachers: each image as moved for this epoch (Beyer et al., 2022), or each original image once before
    training, which makes an epoch as cheap as without teachers."""
    first_px: int = Field(0, ge=0)
    """Side of the images in the first third of the epochs, to make early epochs cheaper (Tan & Le, 2021). The second third uses
    the size halfway to the network's; the last third and the last epoch use the network's. 0: always the network's size."""
    mixup: float = Field(0.0, ge=0)
    """Alpha of mixup (Zhang et al., 2018), with one draw per image. 0 turns it off."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay per step of an exponential moving average of the weights, which replaces them in evaluation. 0 turns it off."""
    keep: Literal["best", "last"] = "best"
    """Which weights to keep: those of the epoch with the best validation accuracy, or those of the last, without selection."""
    keep_initial: float = Field(0.0, ge=0, lt=1)
    """Share of the initial model's weights in the published ones, to keep part of its abilities outside the training split
    (Wortsman et al., 2022). Epochs are evaluated without it."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Precision of the arithmetic. A CPU without bf16 computes in fp32."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _require_votes_weight_as_share(self) -> "TrainingConfig":
        if self.votes == "target" and self.votes_weight > 1:
            raise ValueError(f'votes_weight is {self.votes_weight:g}, but votes = "target" needs a share from 0 to 1')
        return self
