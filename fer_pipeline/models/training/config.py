"""The settings of a training: a recipe's `[training]`."""

from typing import Literal

from pydantic import Field, model_validator

from fer_pipeline.core.config import Config


class TrainingConfig(Config):
    """Optimisation: by default SGD with Nesterov momentum under a one-cycle schedule (Smith & Topin, 2018)."""

    epochs: int = Field(40, ge=1)
    batch_size: int = Field(128, ge=1)
    """Images per step over all workers together."""
    accumulate: int = Field(1, ge=1)
    """Parts in which each worker's share of a step is computed, where it does not fit on the device at once."""
    sync_batch_norm: bool = False
    """Normalise over the batch of all workers, not of each alone; for small shares of a batch on GPUs, which alone can do it."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = Field(0.1, gt=0)
    """Highest learning rate of the schedule."""
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    """`one_cycle` rises for the share `warmup` of the steps and falls to zero, `cosine` only falls, `constant` does neither."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of SGD, with Nesterov's correction."""
    weight_decay: float = Field(5e-4, ge=0)
    label_smoothing: float = Field(0.1, ge=0, le=1)
    warmup: float = Field(0.2, ge=0, le=1)
    """Share of the steps in which the learning rate rises."""
    class_balance: Literal["none", "loss", "sampling"] = "none"
    """Against unequal classes: weigh the loss by their inverse frequency, or draw images so that classes come equally often."""
    balance_power: float = Field(1.0, gt=0, le=1)
    """Exponent of the inverse frequency: 1 balances the classes in full, 0.5 half of the way."""
    votes: Literal["ignore", "target", "auxiliary"] = "ignore"
    """What annotators' votes are for: in place of the label, by `votes_weight`; or learned beside it, as outputs of their own
    that are cut off after training. Images without votes keep their label alone."""
    votes_weight: float = Field(1.0, ge=0)
    """Share of the target that the votes take (`target`), at most 1, or weight of their loss beside the labels' (`auxiliary`)."""
    teacher_weight: float = Field(0.0, ge=0, le=1)
    """Share of the target that the teachers' mean probabilities take from the label (Hinton et al., 2015)."""
    teacher_view: Literal["moved", "original"] = "moved"
    """What the teachers see: each image as it was moved for this epoch (Beyer et al., 2022), or each image once, before training,
    so that an epoch costs no more than one without teachers."""
    first_px: int = Field(0, ge=0)
    """Side of the images in the first third of the epochs; half of the way to the network's in the second, the network's in the
    third, and in the last epoch of any number (Tan & Le, 2021): early epochs cost less. 0: the network's throughout."""
    mixup: float = Field(0.0, ge=0)
    """Alpha of mixup (Zhang et al., 2018), drawn for each image; 0 turns it off."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay per step of an exponential moving average of the weights, which is then what is evaluated; 0 turns it off."""
    keep: Literal["best", "last"] = "best"
    """Whose weights are kept: those of the epoch with the best validation accuracy, or the last one's, unselected."""
    keep_initial: float = Field(0.0, ge=0, lt=1)
    """Share of the initial model's weights in those that are published (Wortsman et al., 2022): what it could do outside the
    training split is kept in part. Epochs are evaluated without it."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the arithmetic; a CPU that has no bf16 computes in fp32."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _votes_take_a_share_of_the_target(self) -> "TrainingConfig":
        if self.votes == "target" and self.votes_weight > 1:
            raise ValueError(f'votes_weight is {self.votes_weight:g}, but votes = "target" take a share from 0 to 1')
        return self
