"""Writes the flat table of faces from `images/`, and counts what a run reports."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fer_pipeline.base.errors import ClusterError
from fer_pipeline.base.storage import parquet
from fer_pipeline.labelling.manifest import SHARDS_PER_FILE, read_manifest_file
from fer_pipeline.labelling.run import BINS, MOST_FACES, READERS, RunFolder, RunRecord
from fer_pipeline.labelling.schemas import FACES, FAILED, IMAGES, OF_FACES, SUCCEEDED

FAILURES_KEPT = 20
MOST_CONTENTS = 16_000_000
"""Digests of contents that are in memory to count copies: 128 MB."""


class Contents:
    """The contents of a run's images, by the first 8 bytes of their digests, to count copies in bounded memory.

    Above `MOST_CONTENTS` only digests divisible by a growing power of two are kept, and the count becomes an estimate.
    """

    def __init__(self) -> None:
        self._digests: list[NDArray[np.uint64]] = []
        self._kept, self._step = 0, 1

    def add(self, digests: NDArray[np.uint64]) -> None:
        """Add digests (n,)."""
        self._digests.append(digests[digests % np.uint64(self._step) == 0])
        self._kept += len(self._digests[-1])
        while self._kept > MOST_CONTENTS:
            self._step *= 2
            self._digests = [one[one % np.uint64(self._step) == 0] for one in self._digests]
            self._kept = sum(map(len, self._digests))

    @property
    def copies(self) -> int:
        """Number of images that repeat the content of another one, without one original for each content."""
        kept = np.concatenate([np.empty(0, np.uint64), *self._digests])
        return int(len(kept) - len(np.unique(kept))) * self._step

    def merge(self, other: "Contents") -> None:
        """Add the contents of another part."""
        for digests in other._digests:
            self.add(digests)


def content_digests(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Return the first 8 bytes of each digest of a column `content_sha256`; what is no digest is left out."""
    digests = column.filter(pc.match_substring_regex(column, "^[0-9a-f]{64}$"))
    starts = pc.utf8_slice_codeunits(digests, 0, 16).to_pylist()
    return np.frombuffer(bytes.fromhex("".join(starts)), ">u8").astype(np.uint64)


@dataclass
class Tally:
    """Counts over rows of `images/`."""

    statuses: Counter[str] = field(default_factory=Counter)
    expressions: Counter[str] = field(default_factory=Counter)
    faces: int = 0
    uncertain: int = 0
    confidences: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    faces_per_image: NDArray[np.int64] = field(default_factory=lambda: np.zeros(MOST_FACES + 1, np.int64))
    carried: int = 0
    failed_again: int = 0
    failures: list[dict[str, str | None]] = field(default_factory=list)
    """The first failed records: uri, member, status, error."""
    contents: Contents = field(default_factory=Contents)
    with_frames: list[int] = field(default_factory=list)
    """The shards that hold frames of videos, in ascending order."""

    @property
    def failed(self) -> int:
        return sum(self.statuses[status] for status in FAILED)

    def add(self, images: pa.Table, faces: pa.Table, run_id: str) -> None:
        """Count the rows of one shard."""
        self.statuses.update(images["status"].to_pylist())
        self.expressions.update(faces["expression"].to_pylist())
        self.faces += len(faces)
        self.uncertain += pc.sum(faces["uncertain"]).as_py() or 0
        self.confidences += np.histogram(faces["confidence"].to_numpy(), BINS, (0, 1))[0]
        labelled = images.filter(pc.is_in(images["status"].cast(pa.string()), pa.array(SUCCEEDED)))
        counts = pc.min_element_wise(pc.list_value_length(labelled["faces"]), MOST_FACES)
        self.faces_per_image += np.bincount(counts.to_numpy(), minlength=MOST_FACES + 1)
        self.carried += pc.sum(pc.not_equal(images["run_id"].cast(pa.string()), run_id)).as_py() or 0
        failed = images.filter(pc.is_in(images["status"].cast(pa.string()), pa.array(FAILED)))
        self.failed_again += pc.sum(pc.greater(failed["attempt"], 1)).as_py() or 0
        self.contents.add(content_digests(images["content_sha256"]))
        if images["time_ms"].null_count < len(images):
            self.with_frames.append(images["shard"][0].as_py())
        if len(self.failures) < FAILURES_KEPT:
            rows = failed.select(["uri", "member", "status", "error"]).to_pylist()
            self.failures += rows[: FAILURES_KEPT - len(self.failures)]

    def merge(self, other: "Tally") -> None:
        """Add the counts of the rows that follow."""
        self.statuses.update(other.statuses)
        self.expressions.update(other.expressions)
        self.faces += other.faces
        self.uncertain += other.uncertain
        self.confidences += other.confidences
        self.faces_per_image += other.faces_per_image
        self.carried += other.carried
        self.failed_again += other.failed_again
        self.contents.merge(other.contents)
        self.with_frames += other.with_frames
        self.failures += other.failures[: FAILURES_KEPT - len(self.failures)]


def shards_with(folder: RunFolder, statuses: set[str]) -> list[int]:
    """Return the committed shards that hold a row with one of these statuses."""

    def holds(shard: int) -> bool:
        return not statuses.isdisjoint(parquet.read_own(folder.images_path(shard), IMAGES, ["status"])["status"].to_pylist())

    shards = sorted(folder.committed())
    with ThreadPoolExecutor(READERS) as pool:
        return [shard for shard, found in zip(shards, pool.map(holds, shards), strict=True) if found]


def flatten(images: pa.Table) -> pa.Table:
    """Return one row of `schemas.FACES` for each face in rows of `schemas.IMAGES`, with the columns that are kept beside them."""
    nested = images["faces"].combine_chunks()
    parents = images.drop_columns(["faces", *OF_FACES]).take(pc.list_parent_indices(nested))
    faces = pa.Table.from_struct_array(pc.list_flatten(nested))
    faces = parquet.joined(faces, qualities_of_faces(images)).append_column("outputs", outputs_of_faces(images))
    columns = {name: (faces if name in faces.column_names else parents)[name] for name in FACES.names}
    return parquet.joined(pa.table(columns).cast(FACES), parquet.beyond(parents, IMAGES))


def qualities_of_faces(images: pa.Table) -> pa.Table:
    """Return a row of `schemas.QUALITY` for each face in rows of images; null for those of earlier versions."""
    return pa.Table.from_struct_array(_of_faces(images, "qualities"))


def outputs_of_faces(images: pa.Table) -> pa.Array:
    """Return the further outputs of each face in rows of images, a list of numbers; null where the model has none."""
    return _of_faces(images, "outputs")


def _of_faces(images: pa.Table, column: str) -> pa.Array:
    """Return the values of a list column, one for each face of an image; null where an image has another number of them."""
    faces, found = images["faces"].combine_chunks(), images[column].combine_chunks()
    known = pc.fill_null(pc.equal(pc.list_value_length(found), pc.list_value_length(faces)), False)
    of_face = known.take(pc.list_parent_indices(faces)).to_numpy(zero_copy_only=False)
    return pc.list_flatten(found.filter(known)).take(pa.array(np.cumsum(of_face) - 1, mask=~of_face))


def _read_shard(path: str) -> pa.Table:
    try:
        rows = parquet.read_table(path)
        return parquet.joined(parquet.with_columns(rows, IMAGES), parquet.beyond(rows, IMAGES))
    except pa.ArrowException as error:
        raise ClusterError(f"'{path}' is damaged: delete it and run again.") from error


def write_faces(folder: RunFolder, record: RunRecord, number: int) -> Tally:
    """Write `faces/<number>.parquet` from the shards of one manifest file and return their counts.

    Raise ClusterError unless the record ids of each shard are exactly those of the manifest.
    """
    manifest = read_manifest_file(folder.manifest_prefix(record.run_id), number)
    paths = [folder.images_path(number * SHARDS_PER_FILE + index) for index in range(len(manifest))]
    tally, faces = Tally(), []
    with ThreadPoolExecutor(READERS) as pool:
        for path, rows, images in zip(paths, manifest, pool.map(_read_shard, paths), strict=True):
            if not images["record_id"].equals(rows["record_id"]):
                raise ClusterError(f"'{path}' does not hold exactly the records of its shard: delete it and run again.")
            faces.append(flatten(images))
            tally.add(images, faces[-1], record.run_id)
    table = pa.concat_tables(faces).unify_dictionaries().replace_schema_metadata(record.metadata)
    parquet.write_table(folder.path("faces", f"{number:05d}.parquet"), table, row_group_size=65_536)
    return tally
