"""The images that are never labelled again: what `table forget` erased, by digest, beside the table."""

from dataclasses import dataclass
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fer_pipeline.base import storage
from fer_pipeline.base.storage import parquet
from fer_pipeline.faces.phash import hashes_of, near_to
from fer_pipeline.labelling.manifest import shards_in
from fer_pipeline.labelling.run import RunFolder, RunRecord
from fer_pipeline.labelling.schemas import ADDED, BLOCKED, IMAGES, OF_CONTENT
from fer_pipeline.table.rows import ROWS

FOLDER = "_blocked"
"""Folder below the table. Readers and vacuum ignore names that begin with an underscore."""
ENTRIES = pa.schema([pa.field("content_sha256", pa.string(), nullable=False), pa.field("phash", pa.string())])


@dataclass(frozen=True)
class Blocklist:
    """Images that were erased from a table."""

    contents: frozenset[str] = frozenset()
    phashes: tuple[str, ...] = ()

    def near(self, phashes: pa.ChunkedArray) -> NDArray[np.bool_]:
        """Return which images (n,) are near copies of erased ones, by their perceptual hashes; one without a hash is not."""
        return near_to(hashes_of(phashes), hashes_of(pa.chunked_array([self.phashes], pa.string())).drop_null())


NOTHING_BLOCKED = Blocklist()


def read_blocklist(table: str) -> Blocklist:
    """Return what was erased from a table. Raise UserError for a damaged list."""
    folder = storage.join(table, FOLDER)
    names = [name for name in storage.list_names(folder) if name.endswith(".parquet")]
    parts = [parquet.read_own(storage.join(folder, name), ENTRIES) for name in names]
    rows = pa.concat_tables([ENTRIES.empty_table(), *parts])
    hashes = set(rows["phash"].drop_null().to_pylist())
    return Blocklist(frozenset(rows["content_sha256"].to_pylist()), tuple(sorted(hashes)))


def near_copies(folder: RunFolder, record: RunRecord, blocked: Blocklist, number: int) -> list[str]:
    """Return the paths of images in the shards of one manifest file that are near copies of erased ones."""
    found = list[str]()
    for shard in shards_in(number, record.shards):
        rows = parquet.read_own(folder.images_path(shard), IMAGES, ["path", "phash"], added=ADDED)
        found += rows.filter(pa.array(blocked.near(rows["phash"])))["path"].to_pylist()
    return found


def block(table: str, rows: pa.Table) -> None:
    """Add the contents of rows of a table, if they have a digest."""
    entries = parquet.with_columns(rows, ENTRIES).select(ENTRIES.names)
    entries = entries.filter(pc.is_valid(entries["content_sha256"]))
    if len(entries):
        parquet.write_table(storage.join(table, FOLDER, f"{uuid4().hex}.parquet"), entries.cast(ENTRIES))


def without_blocked(images: pa.Table, blocked: Blocklist) -> pa.Table:
    """Return rows of `schemas.IMAGES` without what is known of blocked images: they have no faces, and the status `blocked`."""
    is_blocked = pc.is_in(images["content_sha256"], pa.array(sorted(blocked.contents), pa.string()))
    if not pc.any(is_blocked).as_py():
        return images
    for name in OF_CONTENT:
        column = images[name].cast(ROWS.field(name).type)
        images = _set(images, name, pc.if_else(is_blocked, pa.scalar(None, column.type), column))
    images = _set(images, "status", pc.if_else(is_blocked, BLOCKED, images["status"].cast(pa.string())))
    faces = [[] if hidden else found for hidden, found in zip(is_blocked.to_pylist(), images["faces"].to_pylist(), strict=True)]
    return _set(images, "faces", pa.chunked_array([pa.array(faces, IMAGES.field("faces").type)]))


def _set(images: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    return images.set_column(images.column_names.index(name), IMAGES.field(name), column.cast(IMAGES.field(name).type))
