"""What rows of earlier runs save: labels of bytes that appear again, under any key, and faces that a new model labels."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fer_pipeline.archive.record import Record
from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.storage import parquet
from fer_pipeline.faces.attributes import FACE_ATTRIBUTES
from fer_pipeline.faces.detectors.detections import Detections
from fer_pipeline.labelling.labeller import KnownFaces
from fer_pipeline.labelling.run import READERS, RunFolder
from fer_pipeline.labelling.schemas import CARRIED, FACE_PLACES, IMAGES, LABELLED, LINEAGE, OF_CONTENT, SUCCEEDED
from fer_pipeline.table.delta import LabelTable, is_table, require_file_names
from fer_pipeline.table.rows import (
    DECODED,
    KEY,
    ROWS,
    Digests,
    DigestSet,
    all_true,
    concatenated,
    decoded_differently,
    digests_of,
    digests_of_records,
    version_hashes,
)

log = logging.getLogger(__name__)

PLACES = pa.schema([("content_sha256", pa.string()), ("path", pa.string()), ("row", pa.int64())])
_SAME = ("detector_digest", "settings_digest")
_PLACE = [*KEY, "size_bytes", "etag"]
_KNOWN_COLUMNS = [*_PLACE, *_SAME, "content_sha256", "width", "height", "faces"]
_CARRIED_COLUMNS = [*OF_CONTENT, "status", "faces", *(field.name for field in LINEAGE)]


class Reusable:
    """Locates rows of a table by the digest of their image bytes."""

    def __init__(self, table: str, places: pa.Table) -> None:
        """`places`: rows of `PLACES`, sorted by digest."""
        self.table = table
        self._digests = np.array(places["content_sha256"].to_pylist(), "S64")
        self._paths, self._rows = places["path"].combine_chunks().dictionary_encode(), places["row"].to_numpy()

    def __contains__(self, content_sha256: object) -> bool:
        digest = np.bytes_(content_sha256)
        index = np.searchsorted(self._digests, digest)
        return bool(index < len(self._digests) and self._digests[index] == digest)

    def carry_over(self, images: pa.Table) -> pa.Table:
        """Return rows of `schemas.IMAGES` in which `CARRIED` rows have the values of their old rows, including the lineage."""
        carried = pc.equal(images["status"].cast(pa.string()), CARRIED)
        rows = images.filter(carried)
        if not len(rows):
            return images
        old = self._read(rows["content_sha256"].to_pylist())
        for name in _CARRIED_COLUMNS:
            rows = rows.set_column(IMAGES.get_field_index(name), IMAGES.field(name), old[name].cast(IMAGES.field(name).type))
        rest = images.filter(pc.invert(carried))
        return pa.concat_tables([rest, rows]).unify_dictionaries().sort_by("record_id")

    def _read(self, digests: list[str]) -> pa.Table:
        indices = np.searchsorted(self._digests, np.array(digests, "S64")).tolist()
        try:
            return pa.concat_tables([self._row(index) for index in indices])
        except FileNotFoundError:
            raise UserError(
                f"`table vacuum` deleted files of '{self.table}' that this run needs: start a new run, and use a longer "
                "--retention-hours."
            ) from None

    def _row(self, index: int) -> pa.Table:
        return _row(storage.join(self.table, self._paths[index].as_py()), int(self._rows[index]), _CARRIED_COLUMNS)


def read_reusable(table: str, url: str) -> Reusable | None:
    """Return the places that `Comparison.write_places` wrote, None if it wrote none. Raise UserError for an invalid path."""
    places = parquet.read_own(url, PLACES)
    require_file_names(pc.unique(places["path"]).to_pylist(), table)
    return Reusable(table, places) if len(places) else None


class FacePlaces:
    """Locates rows of a table or a run by key and version: those whose faces the same detector would find again."""

    def __init__(self, url: str, identity: Mapping[str, str], detect_px: int) -> None:
        """`identity`: what a run writes into each row (`LabelPlan.identity`). Raise UserError if there are no labels at `url`."""
        self.url, self.identity, self.detect_px, self.located = url, identity, detect_px, 0
        if is_table(url):
            self.files = [file.path for file in LabelTable(url).files]
        else:
            self.files = [RunFolder.images_name(shard) for shard in sorted(RunFolder(url).committed())]
        with ThreadPoolExecutor(READERS) as pool:
            parts = list(pool.map(self._read, self.files))
        self._find = DigestSet(concatenated(part[0] for part in parts)).find
        self._versions = np.concatenate([np.empty(0, np.uint64), *(part[1] for part in parts)])
        self._rows = np.concatenate([np.empty(0, np.int64), *(part[2] for part in parts)])
        self._of_file = np.repeat(np.arange(len(parts)), [len(part[2]) for part in parts])

    def __len__(self) -> int:
        return len(self._rows)

    def _read(self, file: str) -> tuple[Digests, NDArray[np.uint64], NDArray[np.int64]]:
        """Return key, version and number of the rows of a file whose faces are found again."""
        columns, url = [*_PLACE, "status", *DECODED, *_SAME], storage.join(self.url, file)
        try:
            found = parquet.read_columns(url, columns)
            schema = pa.schema([ROWS.field(name) for name in columns])
            rows = parquet.with_columns(found, schema).cast(schema)
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, OSError) and not storage.says_damage(error):
                raise
            raise UserError(
                f"'{url}', whose faces are to be used again, is damaged, or another program wrote it: leave --reuse-faces out "
                f"or name another run or table ({storage.reason(error)[:200]})."
            ) from error
        same = all_true(
            [pc.is_in(rows["status"], pa.array(SUCCEEDED)), *(pc.equal(rows[name], self.identity[name]) for name in _SAME)]
        )
        numbers = np.flatnonzero(same.to_numpy() & ~decoded_differently(rows, self.detect_px))
        rows = rows.take(numbers)
        return digests_of(rows), version_hashes(rows["size_bytes"].to_pylist(), rows["etag"].to_pylist()), numbers

    def __call__(self, records: Sequence[Record]) -> pa.Table:
        """Return the rows of `FACE_PLACES` of records; null where their faces are not known."""
        found = self._find(digests_of_records(records))
        versions = version_hashes([one.size_bytes for one in records], [one.etag for one in records])
        known = [row >= 0 and self._versions[row] == version for row, version in zip(found.tolist(), versions, strict=True)]
        self.located += sum(known)
        rows = [row if is_known else None for row, is_known in zip(found.tolist(), known, strict=True)]
        files = [None if row is None else self.files[self._of_file[row]] for row in rows]
        return pa.table([files, [None if row is None else int(self._rows[row]) for row in rows]], schema=FACE_PLACES)


def read_faces(url: str, manifest: pa.Table, identity: Mapping[str, str]) -> list[KnownFaces | None]:
    """Return the faces of each record of a manifest that `FacePlaces` located at `url`; None where they are not there now.

    `identity`: what the run of the manifest writes into each row.
    """
    known: list[KnownFaces | None] = [None] * len(manifest)
    if not set(FACE_PLACES.names) <= set(manifest.column_names):
        return known
    places = [
        (row.pop("faces_file"), row.pop("faces_row"), row) for row in manifest.select([*FACE_PLACES.names, *_PLACE]).to_pylist()
    ]
    require_file_names({file for file, *_ in places if file is not None}, url)
    located = [index for index, (file, row, _) in enumerate(places) if file is not None and row is not None]
    for index in sorted(located, key=lambda index: places[index][:2]):  # each row group is read once
        file, row, record = places[index]
        known[index] = _known(storage.join(url, file), row, record | {name: identity[name] for name in _SAME})
    return known


def _known(file: str, row: int, wanted: Mapping[str, Any]) -> KnownFaces | None:
    """Return the faces in a row with the `wanted` values. A run that is labelled anew meanwhile has others in its place."""
    try:
        (found,) = _row(file, row, _KNOWN_COLUMNS).to_pylist()
        if all(found[name] == value for name, value in wanted.items()):
            size_px = found["width"], found["height"]
            return KnownFaces(found["content_sha256"], size_px, _detections(found["faces"]))
    except Exception as error:  # noqa: BLE001 (the boundary around rows of others: their faces are detected anew)
        log.debug("The faces in row %d of '%s' cannot be used: %s", row, file, storage.reason(error))
    return None


def _detections(faces: list[dict[str, Any]]) -> Detections:
    """Return the faces of a row as they were detected. Raise an error unless they are whole."""
    boxes = np.array([[face[name] for name in "xywh"] for face in faces], np.float32).reshape(-1, 4)
    scores = np.array([face["detection_score"] for face in faces], np.float32)
    attributes = {}
    for name in FACE_ATTRIBUTES:
        values = [face[name] for face in faces]
        if any(value is not None for value in values):
            attributes[name] = np.array(values, np.float32).reshape(len(faces), -1, 2)
    found = Detections(boxes, scores, attributes)
    whole = all(np.isfinite(one).all() for one in (boxes, scores, *attributes.values())) and (boxes[:, 2:] > 0).all()
    if not whole or (found.landmarks is not None and found.landmarks.shape[1:] != (5, 2)):
        raise ValueError("a box or a landmark is no place")
    return found


def _row(file: str, row: int, columns: Sequence[str]) -> pa.Table:
    """Return some columns of one row of a file of a table or a run, of any version."""
    starts = _starts(file)
    number = int(np.searchsorted(starts, row, "right")) - 1
    return _read_group(file, number, tuple(columns)).slice(row - int(starts[number]), 1)


@lru_cache(64)
def _starts(file: str) -> Any:
    """Return the number of the first row of each row group of a file."""
    with parquet.opened(file) as opened:
        sizes = [opened.metadata.row_group(index).num_rows for index in range(opened.num_row_groups)]
    return np.cumsum([0, *sizes[:-1]])


@lru_cache(32)
def _read_group(file: str, number: int, columns: tuple[str, ...]) -> pa.Table:
    with parquet.opened(file) as opened:
        found = opened.read_row_group(number, columns=list(columns))
    return parquet.with_columns(found, pa.schema([ROWS.field(name) for name in columns]))


assert set(_CARRIED_COLUMNS) <= {*LABELLED.names, *IMAGES.names}
