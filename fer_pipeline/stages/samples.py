"""Samples: what a layout names becomes validated rows, and a dataset's split the arrays that a network learns from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fer_pipeline.core import storage
from fer_pipeline.core.dataset import DatasetCard, sample_files
from fer_pipeline.core.errors import RecordError, UserError
from fer_pipeline.core.labels import LabelSpace, mapping
from fer_pipeline.core.schemas import SAMPLES
from fer_pipeline.models.card import Framing, NetworkConfig
from fer_pipeline.sources.layouts.samples import DAMAGED, Excluded, Reading, Sample
from fer_pipeline.stages.align import align
from fer_pipeline.stages.crops import Cropper, NoCrop, perceptual_hash, pixel_digest
from fer_pipeline.stages.decode import Pixels, decode
from fer_pipeline.stages.detect import WholeImage
from fer_pipeline.stages.fetch import Fetched, fetch

MAX_PIXELS = 100_000_000
MAX_BYTES = 100_000_000
ROWS = 256
COLUMNS = ["sample_id", "image", "label", "split", "votes"]
"""What a network learns from."""
EMPTY: Mapping[str, str] = MappingProxyType({})


def validate(reading: Reading, space: LabelSpace, cropper: Cropper | None) -> tuple[pa.Table, list[Excluded]]:
    """Return the samples that decode as rows of `schemas.SAMPLES`, and the records that are none.

    Without a cropper images are kept as they came, encoded; with one their face's crop is, as PNG.
    """
    items = list(reading)
    images = fetch((item.image for item in items if isinstance(item, Sample) and not isinstance(item.image, bytes)), MAX_BYTES)
    tables, rows, excluded = [], list[dict[str, Any]](), list[Excluded]()
    for item in items:
        if isinstance(item, Excluded):
            excluded.append(item)
            continue
        try:
            rows.append(_row(item, item.image if isinstance(item.image, bytes) else next(images), space, cropper))
        except RecordError as error:
            excluded.append(Excluded(DAMAGED, item.source, error.reason))
        except NoCrop as none:
            excluded.append(Excluded(none.kind, item.source, none.reason))
        if len(rows) == ROWS:
            tables.append(pa.Table.from_pylist(rows, schema=SAMPLES))
            rows = []
    return pa.concat_tables([*tables, pa.Table.from_pylist(rows, schema=SAMPLES)]), excluded


def _row(sample: Sample, image: Fetched, space: LabelSpace, cropper: Cropper | None) -> dict[str, Any]:
    photo = decode(image, MAX_PIXELS)
    pixels = cropper(photo.pixels, sample.face) if cropper else photo.pixels
    grey = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), np.uint8)
    return {
        "sample_id": sample.source,
        "image": cv2.imencode(".png", pixels)[1].tobytes() if cropper else image,
        "label": space.classes.index(sample.label),
        "split": sample.split,
        "source": sample.source,
        "votes": sample.votes,
        "sha256": pixel_digest(pixels),
        "phash": perceptual_hash(grey),
        "contrast": float(grey.std()),
        "width": pixels.shape[1],
        "height": pixels.shape[0],
    }


@dataclass(frozen=True)
class Split:
    """Samples as arrays: uint8 images (n, channels, side, side), int64 labels (n,), and their ids.

    `votes` (n, k) are shares of the votes, zeros where a sample has none.
    """

    images: Pixels
    labels: NDArray[np.int64]
    ids: list[str]
    votes: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)


def left_out_by_class(dataset: DatasetCard, split: str, space: LabelSpace, renamed: Mapping[str, str] = EMPTY) -> dict[str, int]:
    """Return how many images of a split have a class, by its name, that is none of `space`, `renamed` first.

    Raise UserError where the dataset has no such split, or the split no image of any of the classes.
    """
    if split not in dataset.counts:
        raise UserError(f"The dataset has no split '{split}'; it has {', '.join(dataset.counts)}.")
    theirs, ours = dataset.label_space.classes, space.classes
    for source, target in renamed.items():
        if source not in theirs or target not in ours:
            raise UserError(
                f"There is no '{source}' to be '{target}': the dataset has {', '.join(theirs)}, the model {', '.join(ours)}."
            )
    found = class_indices(theirs, space, renamed)
    if all(index is None for index in found):
        raise UserError(f"The classes of the dataset ({', '.join(theirs)}) and of the model ({', '.join(ours)}) have no mapping.")
    counts = dataset.counts[split]
    if not any(counts[name] for name, index in zip(theirs, found, strict=True) if index is not None):
        raise UserError(f"The split '{split}' has no image of a class that the model has.")
    return {name: counts[name] for name, index in zip(theirs, found, strict=True) if index is None and counts[name]}


def class_indices(names: tuple[str, ...], space: LabelSpace, renamed: Mapping[str, str] = EMPTY) -> tuple[int | None, ...]:
    """Return the index in `space` of each class name, `renamed` first; None for one that it does not have."""
    return mapping(tuple(renamed.get(name, name) for name in names), space)


@dataclass(frozen=True)
class SplitReader:
    """A split of a dataset, brought to a network's input as labelling does it.

    `labels` and `votes` give the new index of each of the dataset's classes and vote classes, None for one that is left out.
    """

    dataset: str
    split: str
    network: NetworkConfig
    labels: tuple[int | None, ...]
    votes: tuple[int | None, ...] = ()
    leave_out: frozenset[str] = frozenset()
    """Ids of samples that are passed over."""

    def prepare(self, samples: pa.Table) -> Split:
        """Return those of some samples that belong to the split, as arrays."""
        chosen = samples.filter(pc.equal(samples["split"], self.split))
        if self.leave_out:
            chosen = chosen.filter(pc.invert(pc.is_in(chosen["sample_id"], pa.array(self.leave_out, pa.string()))))
        known = np.array([-1 if index is None else index for index in self.labels])
        labels = known[chosen["label"].to_numpy()].astype(np.int64)
        chosen, labels = chosen.filter(pa.array(labels >= 0)), labels[labels >= 0]
        network, whole = self.network, WholeImage()
        images = np.empty((len(chosen), network.channels, network.image_px, network.image_px), np.uint8)
        for index, data in enumerate(chosen["image"].to_pylist()):
            pixels = decode(data, MAX_PIXELS).pixels
            images[index] = align(pixels, whole(pixels), network, Framing(), whole=True)[0]
        return Split(images, labels, chosen["sample_id"].to_pylist(), self._shares(chosen["votes"].to_pylist()))

    def _shares(self, votes: list[list[float] | None]) -> NDArray[np.float32]:
        kept = [index for index in self.votes if index is not None]
        shares = np.zeros((len(votes), max(kept) + 1 if kept else 0), np.float32)
        if kept:
            for row, cast in enumerate(votes):
                for index, count in zip(self.votes, cast or (), strict=False):
                    if index is not None:
                        shares[row, index] += count
        shares /= np.maximum(shares.sum(1, keepdims=True), 1e-9)
        return shares

    def chunks(self, rows: int = 4096) -> Iterator[Split]:
        """Yield the split in order, so many rows of the dataset at a time; a file is never held whole."""
        for uri in sample_files(self.dataset):
            yield from self.chunks_of(uri, rows)

    def chunks_of(self, uri: str, rows: int = 4096) -> Iterator[Split]:
        """Yield what one of the dataset's files holds of the split."""
        with storage.opened_parquet(uri) as parquet:
            for batch in parquet.iter_batches(rows, columns=COLUMNS):
                chunk = self.prepare(pa.Table.from_batches([batch]))
                if len(chunk):
                    yield chunk

    def load(self) -> Split:
        """Return the whole split; raise UserError where the dataset has none."""
        chunks = list(self.chunks())
        if not chunks:
            raise UserError(f"The dataset '{self.dataset}' has no samples in the split '{self.split}'.")
        return Split(
            np.concatenate([chunk.images for chunk in chunks]),
            np.concatenate([chunk.labels for chunk in chunks]),
            [sample for chunk in chunks for sample in chunk.ids],
            np.concatenate([chunk.votes for chunk in chunks]),
        )
