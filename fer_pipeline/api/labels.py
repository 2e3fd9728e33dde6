"""The labels of a run folder or a published table: their faces and images as flat tables, and crops of the faces."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from fer_pipeline.api.crops import Crop, cut_crops
from fer_pipeline.archive.record import Record
from fer_pipeline.base import storage
from fer_pipeline.base.config import explain
from fer_pipeline.base.errors import RecordError, UserError
from fer_pipeline.base.memory import MAX_FILE_BYTES, MAX_PIXELS
from fer_pipeline.base.storage import parquet
from fer_pipeline.engine.connect import ClusterConfig
from fer_pipeline.faces.decode import decode
from fer_pipeline.faces.phash import perceptual_hash
from fer_pipeline.jobs.label import job
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.labelling.copies import COPIES, NEEDED, copies_among, like
from fer_pipeline.labelling.corrections import Reviews, read_corrections
from fer_pipeline.labelling.manifest import find_records
from fer_pipeline.labelling.run import AUDITS_FOLDER, CORRECTIONS_FOLDER, READERS, REPORT, RunFolder
from fer_pipeline.labelling.schemas import ADDED, IMAGES
from fer_pipeline.labelling.tracks import TRACKS, read_tracks
from fer_pipeline.report.copies import copies_page, to_show
from fer_pipeline.report.pictures import PictureLimits, cut_faces
from fer_pipeline.table.blocklist import read_blocklist
from fer_pipeline.table.delta import TABLE_AUDITS, TABLE_CORRECTIONS, LabelTable, is_table
from fer_pipeline.table.flat import TO_FIND, chosen, flat_faces, flat_images, flat_tracks, names_of_outputs
from fer_pipeline.table.places import find_images
from fer_pipeline.table.rows import ROWS

BATCH_ROWS = 16_384
"""Rows of a table that are in memory at once."""
SHARDS_AT_ONCE = 256


class Labels(ABC):
    """Labelled images and their faces."""

    url: str
    source: str | None
    """The folder or URL of the images, from which crops are cut."""

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """The classes of the probabilities, in order."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """What models say of a face besides the classes, by name: `further` of their cards."""

    @property
    @abstractmethod
    def corrections_folder(self) -> str:
        """Where the corrections of these labels are."""

    @property
    @abstractmethod
    def audits_folder(self) -> str:
        """Where the audits of these labels are."""

    def erased(self) -> Collection[str]:
        """Return the digests of what was erased, of which no correction is taken (`corrections.is_erased`)."""
        return frozenset()

    def corrections(self) -> pa.Table:
        """Return all answers of people, rows of `labelling.corrections.CORRECTIONS`."""
        return read_corrections(self.corrections_folder)

    @abstractmethod
    def image_batches(self) -> Iterator[pa.Table]:
        """Yield all rows of images, with their faces, part by part."""

    @abstractmethod
    def records_of(self, faces: pa.Table, source: str) -> list[Record | None]:
        """Return where the image of each face is; None where that is not known any more. Open only files below `source`."""

    @abstractmethod
    def limits(self) -> PictureLimits:
        """Return what an image may take that is opened for a picture."""

    @abstractmethod
    def root(self) -> str:
        """Return the folder to which `path` is relative, unless the rows name it."""

    def face_batches(
        self, *, certain: bool = False, where: str | None = None, columns: Sequence[str] = (), once: bool = False
    ) -> Iterator[pa.Table]:
        """Yield the faces as `faces` returns them, part by part."""
        names = [columns] if isinstance(columns, str) else columns
        for rows in self.faces_to_find(certain, where, once):
            faces = _exported(rows)
            yield faces.select(_required(names, faces.column_names)) if names else faces

    def faces_to_find(self, certain: bool, where: str | None, once: bool) -> Iterator[pa.Table]:
        """Yield the faces with the columns that find their pictures, part by part."""
        contents, reviews = set[str](), Reviews(self.corrections())
        for images in self.image_batches():
            with self.our_rows():
                images = images.filter(_without_copies(images, contents)) if once else images
                rows = flat_faces(images, self.classes, self.root(), self.outputs)
            rows = reviews.joined(rows) if len(reviews) else rows
            if certain:
                rows = rows.filter(pc.invert(rows["uncertain"]))
            yield chosen(rows, where) if where else rows

    @contextmanager
    def our_rows(self) -> Iterator[None]:
        """Raise UserError if rows are not those that this project writes."""
        try:
            yield
        except (pa.ArrowException, ValueError, TypeError, AttributeError, KeyError) as error:
            what = f"'{self.url}' does not hold the labels that this project writes"
            raise UserError(f"{what}: another program wrote it, or it is damaged ({storage.reason(error)[:200]}).") from error

    def faces(
        self, *, certain: bool = False, where: str | None = None, columns: Sequence[str] = (), once: bool = False
    ) -> pa.Table:
        """Return one row for each face, with its probabilities as `p_CLASS`; docs/python.md lists the columns.

        `certain`: only labels that are not uncertain. `where`: only those for which a condition of SQL is true, such as
        `"expression = 'happy' and confidence > 0.9"`. `columns`: only these. `once`: of images with equal bytes only
        the first. Raise UserError for an impossible column or condition.
        """
        parts = self.face_batches(certain=certain, where=where, columns=columns, once=once)
        return pa.concat_tables(parts, promote_options="permissive")

    def images(self, *, where: str | None = None) -> pa.Table:
        """Return one row for each image or frame: status, error, size, number of faces, and how it was labelled."""
        with self.our_rows():
            parts = [flat_images(images, self.root()) for images in self.image_batches()]
            rows = pa.concat_tables(parts, promote_options="permissive")
        return chosen(rows, where) if where else rows

    def like(self, picture: bytes) -> pa.Table:
        """Return one row for each image that is a copy of an encoded picture: equal, resized or encoded again, mirrored.

        The rows are those of `images`, with `kind`: `exact`, `near` or `mirrored`. Nobody is recognised. Raise UserError if the
        picture cannot be decoded.
        """
        digest = hashlib.sha256(picture).hexdigest()
        try:
            phash = perceptual_hash(decode(picture, MAX_PIXELS).pixels)
        except RecordError as error:
            raise UserError(f"The picture cannot be read: {error.reason}.") from error
        with self.our_rows():
            parts = [like(flat_images(images, self.root()), digest, phash) for images in self.image_batches()]
            return pa.concat_tables(parts, promote_options="permissive")

    def copies(self) -> pa.Table:
        """Return the images that have copies among the others, in groups: rows of `labelling.copies.COPIES`.

        Videos are left out. In memory are some 1,600 bytes for each image, and for a while 250 MB.
        """
        return self._copies()

    def _copies(self, further: Sequence[str] = ()) -> pa.Table:
        """Return the images that have copies, with those of further columns that there are."""
        columns = dict.fromkeys([*NEEDED, *further])
        with self.our_rows():
            parts = (flat_images(images, self.root()) for images in self.image_batches())
            rows = pa.concat_tables([part.select([name for name in columns if name in part.column_names]) for part in parts])
            return copies_among(rows, [name for name in further if name in rows.column_names and name not in COPIES.names])

    def copies_page(self, source: str) -> tuple[pa.Table, str]:
        """Return what `copies` returns, and a page of the largest groups with pictures, cut from images below `source` only."""
        found, place = self._copies((*TO_FIND, "time_ms")), storage.normalize(source)
        shown = to_show(found)
        records = self.records_of(shown, place)
        cut = iter(cut_faces([(record, None) for record in records if record], place, self.limits()))
        pictures = [next(cut) if record else RecordError("gone", "it is gone") for record in records]
        found = found.select(COPIES.names)
        return found, copies_page(self.url, found, shown, pictures)

    def first_faces(self, where: str | None, certain: bool, once: bool, top: int, order: str) -> pa.Table | None:
        """Return the first faces by confidence; None for labels without a part."""

        def first(rows: pa.Table) -> pa.Table:
            return rows.take(pc.sort_indices(rows, [("confidence", order), ("path", "ascending")])[:top])

        return reduced(self.faces_to_find(certain, where, once), first)

    def crops(
        self,
        *,
        where: str | None = None,
        certain: bool = False,
        top: int = 50,
        source: str | None = None,
        once: bool = False,
    ) -> list[Crop]:
        """Return pictures of faces, the most confident first, cut from the images as the page does.

        `once`: of images with equal bytes only the first. Only images below `source` (by default that of `fer.label`) are opened,
        in another process. A face whose image is gone or unreadable is left out, with a warning.
        """
        if not (source or self.source):
            raise UserError("Name the folder or URL of the images, from which the faces are cut, as `source`.")
        _require_number(top, "pictures")
        place = storage.normalize(str(source or self.source))
        best = self.first_faces(where, certain, once, top, "descending")
        if best is None:
            return []
        return cut_crops(_exported(best), self.records_of(best, place), place, self.limits())


class Run(Labels):
    """The labels of a run folder."""

    def __init__(self, url: str, source: str | None = None) -> None:
        """Raise UserError if there is no labelling run."""
        self.folder, self.source = RunFolder(storage.normalize(str(url))), source and str(source)
        self.url = self.folder.url
        record = self.folder.load()
        if record is None:
            raise UserError(f"There is no labelling run in '{self.url}': run fer-pipeline label first, or name a table.")
        self.record = record

    def __repr__(self) -> str:
        result = self.record.result
        said = f"{result.faces} faces in {self.record.records} images, {result.failed} failed" if result else "not finished"
        return f"Run('{self.url}': {said})"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.record.classes

    @property
    def outputs(self) -> tuple[str, ...]:
        return names_of_outputs(self.record.outputs)

    @property
    def corrections_folder(self) -> str:
        return self.folder.path(CORRECTIONS_FOLDER)

    @property
    def audits_folder(self) -> str:
        return self.folder.path(AUDITS_FOLDER)

    def tracks(self) -> pa.Table:
        """Return one row for each face that stays in view of a video: rows of `labelling.tracks.TRACKS`, with `p_CLASS`."""
        parts = [TRACKS.empty_table(), *read_tracks(self.folder)]
        with self.our_rows():
            return flat_tracks(pa.concat_tables(parts).unify_dictionaries(), self.classes)

    @property
    def report(self) -> str:
        """The path or URL of the run's page."""
        return self.folder.path(REPORT)

    def image_batches(self) -> Iterator[pa.Table]:
        shards, kept = sorted(self.folder.committed()), self.record.known.keep or ()

        def read(shard: int) -> pa.Table:
            return parquet.read_own(self.folder.images_path(shard), IMAGES, added=ADDED, kept=kept)

        if not shards:
            yield IMAGES.empty_table()
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(shards), SHARDS_AT_ONCE):
                parts = list(pool.map(read, shards[start : start + SHARDS_AT_ONCE]))
                with self.our_rows():
                    images = pa.concat_tables(parts).unify_dictionaries()
                yield images

    def records_of(self, faces: pa.Table, source: str) -> list[Record | None]:
        ids = faces["record_id"].to_pylist()
        found = find_records(self.folder.manifest_prefix(self.record.run_id), sorted(set(ids)))
        return [found.get(one) for one in ids]

    def limits(self) -> PictureLimits:
        return PictureLimits.of(self.record)

    def root(self) -> str:
        return self.record.source


class Table(Labels):
    """The labels of a published table."""

    def __init__(self, url: str, source: str | None = None) -> None:
        """Raise UserError if there is no table of this project."""
        self._table, self.source = LabelTable(str(url)), source and str(source)
        self.url = self._table.url
        if self.version < 0:
            raise UserError(f"There is no table in '{self.url}': publish a run first.")

    def __repr__(self) -> str:
        return f"Table('{self.url}': version {self.version}, {self._table.rows} images)"

    @property
    def version(self) -> int:
        """The version that was read."""
        return self._table.version

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes of the probabilities; numbers for a table of an earlier version, which does not name them."""
        if self._table.classes:
            return self._table.classes
        lists = (face["probabilities"] for part in self.image_batches() for row in part["faces"].to_pylist() for face in row)
        return tuple(map(str, range(len(next(lists, [])))))

    @property
    def corrections_folder(self) -> str:
        return storage.join(self.url, TABLE_CORRECTIONS)

    @property
    def audits_folder(self) -> str:
        return storage.join(self.url, TABLE_AUDITS)

    def erased(self) -> Collection[str]:
        return read_blocklist(self.url).contents

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for file in self._table.files:
            rows = parquet.read_columns(self._table.path(file.path), ["output_names"])
            found |= dict.fromkeys(pc.unique(rows["output_names"]).drop_null().to_pylist() if rows.num_columns else ())
        return names_of_outputs(found)

    def history(self) -> list[dict[str, Any]]:
        """Return the table's versions, latest first: number, time in ms, operation, and the night that made it."""
        return self._table.history()

    def image_batches(self) -> Iterator[pa.Table]:
        yield ROWS.empty_table()
        for file in self._table.files:
            with parquet.opened(self._table.path(file.path)) as opened:
                for batch in opened.iter_batches(BATCH_ROWS):
                    with self.our_rows():
                        rows = parquet.with_columns(pa.Table.from_batches([batch]), ROWS).cast(ROWS)
                    yield rows

    def records_of(self, faces: pa.Table, source: str) -> list[Record | None]:
        return find_images(faces, lambda uri: storage.is_below(uri, source))

    def limits(self) -> PictureLimits:
        return PictureLimits(MAX_PIXELS, MAX_FILE_BYTES)

    def root(self) -> str:
        return ""  # each row names its source


def _without_copies(images: pa.Table, known: set[str]) -> pa.Array:
    """Return which images (n,) are the first with faces and their content, or have no digest; add their digests to `known`."""
    first = []
    for digest, faces in zip(
        images["content_sha256"].to_pylist(), pc.list_value_length(images["faces"]).to_pylist(), strict=True
    ):
        first.append(digest is None or digest not in known)
        if faces and digest:
            known.add(digest)
    return pa.array(first, pa.bool_())


def _exported(faces: pa.Table) -> pa.Table:
    """Return faces without what only finds their pictures."""
    return faces.select([name for name in faces.column_names if name not in TO_FIND])


def open_labels(url: str) -> Labels:
    """Return the run or the table in a folder. Raise UserError if there is neither."""
    place = storage.normalize(url)
    return Table(place) if is_table(place) else Run(place)


def reduced(parts: Iterator[pa.Table], keep: Callable[[pa.Table], pa.Table]) -> pa.Table | None:
    """Return what `keep` leaves of all rows, of which few are in memory; None if there is no part."""
    kept: pa.Table | None = None
    for rows in parts:
        kept = keep(rows if kept is None else pa.concat_tables([kept, rows], promote_options="permissive"))
    return kept


def _require_number(top: int, what: str) -> None:
    if top < 1:
        raise UserError(f"top is {top}: it is a number of {what}, at least 1.")


def _required(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return the wanted columns. Raise UserError if one is not known."""
    if missing := [name for name in wanted if name not in known]:
        raise UserError(f"There is no column '{missing[0]}': choose from {', '.join(known)}.")
    return list(wanted)


def label(source: Any, out: Any, **options: Any) -> Run:
    """Label an archive as `fer-pipeline label` does, and return its run; the same call continues a run that was stopped.

    `options` are those of the command (`detector="yunet"`, `fps=2`, `num_cpus=4`, `address="auto"`). Raise UserError for an
    invalid one, and the other errors of `fer_pipeline.base.errors`.
    """
    of_cluster = {name: options.pop(name) for name in list(options) if name in ClusterConfig.model_fields}
    try:
        config = LabelConfig.model_validate({"source": str(source), "out": str(out), **options})
        cluster = ClusterConfig.model_validate(of_cluster)
    except ValidationError as error:
        raise UserError(f"{explain(error)}.") from error
    record = job.run(config, cluster)
    return Run(config.out, record.source)
