"""Which network, on which input: all from which a network is rebuilt. No torch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fer_pipeline.core.config import Config

Blocks = Annotated[int, Field(ge=1, le=100)]


class NetworkConfig(Config):
    """Which network, on which input; the network is rebuilt from it."""

    architecture: str = Field("residual_cnn", max_length=100)
    """One of `networks.NETWORKS`, or the name of a torchvision classifier such as `resnet50`."""
    image_px: int = Field(48, ge=1, le=1024)
    """Side of the square input."""
    channels: Literal[1, 3] = 1
    """1 for grey crops, 3 for RGB."""
    equalize: bool = False
    """Make the histogram of the crop's brightness flat, in training and labelling alike."""
    width: int = Field(32, ge=1, le=512)
    """Channels of the first layer of our own networks; every stage doubles them."""
    blocks: tuple[Blocks, Blocks, Blocks] = (1, 1, 1)
    """Residual blocks in each stage of `residual_cnn`."""
    dropout: float = Field(0.3, ge=0, lt=1)
    """Dropout before the last layer of our own networks."""
    flip_averaging: bool = False
    """Classify every crop and its mirror image and average the logits (test-time augmentation), at twice the cost."""
    mean: tuple[float, ...] = (0.5,)
    """Subtracted from pixels scaled to 0..1, per channel (one value serves all)."""
    std: tuple[float, ...] = (0.25,)
    """Divides them then."""

    @model_validator(mode="after")
    def _mean_and_std_fit_the_channels(self) -> "NetworkConfig":
        if {len(self.mean), len(self.std)} - {1, self.channels} or min(self.std) <= 0:
            raise ValueError(f"mean and std need one value or one for each of the {self.channels} channels, std above 0")
        return self
