"""Samples: encoded images of a dataset to validated rows, and a dataset's split to the arrays that a network learns from."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fer_pipeline.core.dataset import read_samples
from fer_pipeline.core.errors import RecordError, UserError
from fer_pipeline.core.schemas import SAMPLES
from fer_pipeline.models.card import Framing, NetworkConfig
from fer_pipeline.sources.datasets import Quarantined, Reading
from fer_pipeline.stages.align import align
from fer_pipeline.stages.decode import Pixels, decode
from fer_pipeline.stages.detect import WholeImage

MAX_PIXELS = 100_000_000


def validate(reading: Reading) -> tuple[pa.Table, list[Quarantined]]:
    """Return the samples that decode as rows of `schemas.SAMPLES`, and the records that are none."""
    rows: list[dict[str, Any]] = []
    quarantined: list[Quarantined] = []
    for sample in reading:
        if isinstance(sample, Quarantined):
            quarantined.append(sample)
            continue
        try:
            photo = decode(sample.image, MAX_PIXELS)
        except RecordError as error:
            quarantined.append(Quarantined(sample.source, error.reason))
            continue
        values = {name: getattr(sample, name) for name in ("sample_id", "image", "label", "split", "source")}
        rows.append(values | {"sha256": _digest(photo.pixels), "width": photo.width, "height": photo.height})
    return pa.Table.from_pylist(rows, schema=SAMPLES), quarantined


def _digest(pixels: Pixels) -> str:
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()


@dataclass(frozen=True)
class Split:
    """A split as arrays: uint8 images (n, channels, side, side), int64 labels (n,), and the digest of each image."""

    images: Pixels
    labels: NDArray[np.int64]
    digests: list[str]


def load_split(dataset: str, split: str, network: NetworkConfig) -> Split:
    """Return a split brought to the network's input as labelling does it; raise UserError where the dataset has none."""
    samples = read_samples(dataset)
    chosen = samples.filter(pc.equal(samples["split"], split))
    if not len(chosen):
        has = ", ".join(sorted(set(samples["split"].to_pylist())))
        raise UserError(f"The dataset '{dataset}' has no split '{split}'; it has {has}.")
    whole = WholeImage()
    images = np.empty((len(chosen), network.channels, network.image_px, network.image_px), np.uint8)
    for index, data in enumerate(chosen["image"].to_pylist()):
        pixels = decode(data, MAX_PIXELS).pixels
        images[index] = align(pixels, whole(pixels), network, Framing(), whole=True)[0]
    return Split(images, chosen["label"].to_numpy().astype(np.int64), chosen["sha256"].to_pylist())
