"""The configuration of a training, and what it came to."""

from typing import Annotated, Literal

from pydantic import Field

from fer_pipeline.base.config import MODEL, NAME_OR_PLACE, PLACE, Config


class TrainConfig(Config):
    """Train a recipe on an ingested dataset into a model bundle."""

    recipe: Annotated[str, NAME_OR_PLACE]
    """Name of a recipe that comes with the package, or a .toml file."""
    data: Annotated[str, PLACE]
    """Folder of an ingested dataset."""
    mix: Annotated[str | None, PLACE] = None
    """Folder of a further dataset whose training split is learned beside that of `data`, such as corrected faces. Copies of
    validation images in it are left out."""
    mix_weight: int = Field(1, ge=1)
    """How often each image of `mix` comes in an epoch."""
    out: Annotated[str, PLACE]
    """Folder of the model bundle: new or empty."""
    initial: Annotated[str | None, MODEL] = None
    """Model bundle with the initial weights; by default the weights are random, from the recipe's seed."""
    teachers: Annotated[tuple[str, ...], MODEL] = ()
    """Model bundles whose probabilities are learned beside the labels, weighted by the recipe's `teacher_weight`."""
    from_scratch: bool = False
    """Start from random weights although the recipe names pretrained ones, for when those are not available."""
    drop_leaks: bool = False
    """Exclude the dataset's flagged samples from training: copies of images of other splits, copies, conflicts, blank images."""
    allow_missing_classes: bool = False
    """Train although the training split has no images of some classes."""
    epochs: int | None = Field(None, ge=1)
    """Passes over the training split, for a first try; overrides the recipe's."""
    batch_size: int | None = Field(None, ge=1)
    """Images per step over all workers together; overrides the recipe's."""
    num_workers: int = Field(1, ge=1)
    """Training processes; each takes its share of the recipe's batch."""
    min_workers: int | None = Field(None, ge=1)
    """Continue with as few workers as this if the cluster loses machines; by default, wait for all `num_workers`."""
    use_gpu: bool = False
    """Use one GPU for each worker (nccl); without it, CPUs (gloo)."""
    data_from: Literal["auto", "device", "stream"] = "auto"
    """Hold the training split on the device, or stream it from Ray Data; `auto` streams a split larger than `resident_gb`."""
    resident_gb: float = Field(4.0, ge=0)
    """Largest training split, in GB of network input, that each worker holds on its device."""
    max_failures: int = Field(3, ge=0)
    """How often failed workers are replaced, not counting announced preemptions; training resumes from the last checkpoint."""
    checkpoints: Annotated[str | None, PLACE] = None
    """Folder of checkpoints, from which a killed run resumes; by default `OUT.checkpoints`."""


class TrainResult(Config):
    """The outcome of a training."""

    out: str
    name: str
    epochs: int
    selected_epoch: int
    validation_accuracy: float
    validation_macro_f1: float
    images_per_s: float
    data_from: Literal["device", "stream"]
