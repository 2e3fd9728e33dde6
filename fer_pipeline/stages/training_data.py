"""Training data: a split of an ingested dataset as the arrays that a network learns from and is evaluated on."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fer_pipeline.core import storage
from fer_pipeline.core.dataset import DatasetInfo, sample_files
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.labels import LabelSpace, mapping
from fer_pipeline.models.labelled_images import LabelledImages, concatenate
from fer_pipeline.models.network_config import NetworkConfig
from fer_pipeline.stages.align import empty_inputs, resize_whole
from fer_pipeline.stages.decode import decode
from fer_pipeline.stages.ingest import MAX_PIXELS

TRAINING_COLUMNS = ["sample_id", "image", "label", "split", "votes"]
"""What a network learns from."""
EMPTY: Mapping[str, str] = MappingProxyType({})


def left_out_by_class(dataset: DatasetInfo, split: str, space: LabelSpace, renamed: Mapping[str, str] = EMPTY) -> dict[str, int]:
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
    """A split of a dataset, brought to a network's input as labelling does it."""

    dataset: str
    """Folder of the ingested dataset."""
    split: str
    """Name of the split."""
    network: NetworkConfig
    """Decides size and channels of the images."""
    labels: tuple[int | None, ...]
    """For each class of the dataset its index among the model's classes; None: its images are left out."""
    votes: tuple[int | None, ...] = ()
    """For each vote class of the dataset its column among the shares of votes; None: its votes are left out."""
    leave_out: frozenset[str] = frozenset()
    """Ids of samples that are passed over."""

    def prepare(self, samples: pa.Table) -> LabelledImages:
        """Return those of some samples that belong to the split, as arrays."""
        chosen = samples.filter(pc.equal(samples["split"], self.split))
        if self.leave_out:
            chosen = chosen.filter(pc.invert(pc.is_in(chosen["sample_id"], pa.array(self.leave_out, pa.string()))))
        known = np.array([-1 if index is None else index for index in self.labels])
        labels = known[chosen["label"].to_numpy()].astype(np.int64)
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
        """Yield the split in order, so many rows of the dataset at a time; a file is never held whole.

        Of several `shares` only one is decoded: chunks are dealt out in turn.
        """
        tables = (table for uri in sample_files(self.dataset) for table in self._tables(uri, rows))
        yield from self._prepared(table for number, table in enumerate(tables) if number % shares == share)

    def chunks_of(self, uri: str, rows: int = 4096) -> Iterator[LabelledImages]:
        """Yield what one of the dataset's files holds of the split."""
        yield from self._prepared(self._tables(uri, rows))

    def _prepared(self, tables: Iterable[pa.Table]) -> Iterator[LabelledImages]:
        return (chunk for table in tables if len(chunk := self.prepare(table)))

    def _tables(self, uri: str, rows: int) -> Iterator[pa.Table]:
        """Yield the split's samples of a file; row groups that hold none of them are not read."""
        with storage.opened_parquet(uri) as parquet:
            groups = storage.groups_that_may_hold(parquet, "split", [self.split])
            for batch in parquet.iter_batches(rows, groups, TRAINING_COLUMNS):
                table = pa.Table.from_batches([batch])
                mine = table.filter(pc.equal(table["split"], self.split))
                if len(mine):
                    yield mine

    def load(self) -> LabelledImages:
        """Return the whole split; raise UserError where the dataset has none."""
        chunks = list(self.chunks())
        if not chunks:
            raise UserError(f"The dataset '{self.dataset}' has no samples in the split '{self.split}'.")
        return concatenate(chunks)
