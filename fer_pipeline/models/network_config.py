"""The configuration from which a network and its input are rebuilt. No torch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fer_pipeline.base.config import Config

Blocks = Annotated[int, Field(ge=1, le=100)]


class NetworkConfig(Config):
    """A network and its input. The network is rebuilt from these settings."""

    architecture: str = Field("residual_cnn", max_length=100)
    """One of `networks.NETWORKS`, or the name of a torchvision classifier such as `resnet50`."""
    image_px: int = Field(48, ge=1, le=1024)
    """Side of the square input."""
    channels: Literal[1, 3] = 1
    """1 for grey crops, 3 for RGB."""
    equalize: bool = False
    """Equalise the histogram of the crop's brightness, in training and in labelling."""
    width: int = Field(32, ge=1, le=512)
    """Channels of the first layer of our own networks. Every stage doubles them."""
    blocks: tuple[Blocks, Blocks, Blocks] = (1, 1, 1)
    """Residual blocks in each stage of `residual_cnn`."""
    dropout: float = Field(0.3, ge=0, lt=1)
    """Dropout before the last layer of our own networks."""
    flip_averaging: bool = False
    """Classify every crop and its mirror image and average the logits (test-time augmentation), at twice the cost."""
    mean: tuple[float, ...] = (0.5,)
    """Mean to subtract from pixels scaled to 0..1, per channel or one for all."""
    std: tuple[float, ...] = (0.25,)
    """Standard deviation to divide by afterwards, per channel or one for all."""

    @model_validator(mode="after")
    def _mean_and_std_fit_the_channels(self) -> "NetworkConfig":
        if {len(self.mean), len(self.std)} - {1, self.channels} or min(self.std) <= 0:
            raise ValueError(f"mean and std need one value or one for each of the {self.channels} channels, std above 0")
        return self
