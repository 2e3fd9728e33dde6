"""Training data: a split of an ingested dataset as arrays for training and evaluation."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fer_pipeline.base.errors import UserError
from fer_pipeline.base.memory import MAX_PIXELS
from fer_pipeline.base.storage import parquet
from fer_pipeline.datasets.dataset import DatasetInfo, sample_files
from fer_pipeline.faces.align import empty_inputs, resize_whole
from fer_pipeline.faces.decode import decode
from fer_pipeline.models.label_space import LabelSpace, mapping
from fer_pipeline.models.labelled_images import LabelledImages, concatenate
from fer_pipeline.models.network_config import NetworkConfig


def left_out_by_class(dataset: DatasetInfo, split: str, space: LabelSpace, renamed: Mapping[str, str] = {}) -> dict[str, int]:
    """Return the number of images of a split in each class that `space` lacks; `renamed` maps class names first.

    Raise UserError if the dataset has no such split, or if the split has no image of a class of `space`.
    """
    if split not in dataset.counts:
        raise UserError(f"The dataset has no split '{split}'; it has {', '.join(dataset.counts)}.")
    data_classes, model_classes = dataset.label_space.classes, space.classes
    have = f"the dataset has {', '.join(data_classes)}; the model has {', '.join(model_classes)}."
    for source, target in renamed.items():
        if source not in data_classes or target not in model_classes:
            raise UserError(f"The class '{source}' cannot be mapped to '{target}': {have}")
    indices = class_indices(data_classes, space, renamed)
    if all(index is None for index in indices):
        raise UserError(f"The dataset and the model have no class in common: {have}")
    counts = dataset.counts[split]
    if not any(counts[name] for name, index in zip(data_classes, indices, strict=True) if index is not None):
        raise UserError(f"The split '{split}' has no image of a class that the model has: choose another split.")
    return {name: counts[name] for name, index in zip(data_classes, indices, strict=True) if index is None and counts[name]}


def class_indices(names: tuple[str, ...], space: LabelSpace, renamed: Mapping[str, str] = {}) -> tuple[int | None, ...]:
    """Return the index of each class in `space`, or None if `space` lacks it; `renamed` maps class names first."""
    return mapping(tuple(renamed.get(name, name) for name in names), space)


@dataclass(frozen=True)
class SplitReader:
    """Reads a split of a dataset as input of a network, resized as in labelling."""

    dataset: str
    """Folder or URL of the ingested dataset."""
    split: str
    network: NetworkConfig
    """Decides the size and the channels of the images."""
    labels: tuple[int | None, ...]
    """Index among the model's classes for each class of the dataset; None leaves its images out."""
    votes: tuple[int | None, ...] = ()
    """Column among the shares of votes for each vote class of the dataset; None leaves its votes out."""
    leave_out: frozenset[str] = frozenset()
    """Ids of the samples to leave out."""

    def prepare(self, samples: pa.Table) -> LabelledImages:
        """Return the samples that belong to the split as arrays."""
        chosen = samples.filter(pc.equal(samples["split"], self.split))
        if self.leave_out:
            chosen = chosen.filter(pc.invert(pc.is_in(chosen["sample_id"], pa.array(self.leave_out, pa.string()))))
        model_labels = np.array([-1 if index is None else index for index in self.labels])
        labels = model_labels[chosen["label"].to_numpy()].astype(np.int64)
        chosen, labels = chosen.filter(pa.array(labels >= 0)), labels[labels >= 0]
        images = empty_inputs(len(chosen), self.network)
        for index, data in enumerate(chosen["image"].to_pylist()):
            images[index] = resize_whole(decode(data, MAX_PIXELS).pixels, self.network)
        return LabelledImages(images, labels, self._shares(chosen["votes"].to_pylist()), chosen["sample_id"].to_pylist())

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

    def chunks(self, rows: int = 4096, share: int = 0, shares: int = 1) -> Iterator[LabelledImages]:
        """Yield the split in order, in chunks of at most `rows` rows, so that no whole file is in memory.

        With several `shares`, yield every `shares`-th chunk, beginning with number `share`; only these are decoded.
        """
        tables = (table for uri in sample_files(self.dataset) for table in self._tables(uri, rows))
        yield from self._prepared(table for number, table in enumerate(tables) if number % shares == share)

    def chunks_of(self, uri: str, rows: int = 4096) -> Iterator[LabelledImages]:
        """Yield the samples of the split in one file of the dataset."""
        yield from self._prepared(self._tables(uri, rows))

    def _prepared(self, tables: Iterable[pa.Table]) -> Iterator[LabelledImages]:
        return (chunk for table in tables if len(chunk := self.prepare(table)))

    def _tables(self, uri: str, rows: int) -> Iterator[pa.Table]:
        """Yield the split's samples in a file. Row groups without them are not read."""
        with parquet.opened(uri) as file:
            groups = parquet.groups_that_may_hold(file, "split", [self.split])
            for batch in file.iter_batches(rows, groups, ["sample_id", "image", "label", "split", "votes"]):
                table = pa.Table.from_batches([batch])
                mine = table.filter(pc.equal(table["split"], self.split))
                if len(mine):
                    yield mine

    def load(self) -> LabelledImages:
        """Return the whole split. Raise UserError if it has no samples."""
        chunks = list(self.chunks())
        if not chunks:
            raise UserError(f"The dataset '{self.dataset}' has no samples in the split '{self.split}'.")
        return concatenate(chunks)
