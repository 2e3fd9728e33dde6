"""A run folder: the record of the run, its committed shards, and whether the run is finished."""

import errno
import hashlib
import json
import posixpath
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import AfterValidator, ConfigDict, Field, ValidationError

import fer_pipeline
from fer_pipeline.archive.files import name_below
from fer_pipeline.base import storage
from fer_pipeline.base.config import Config, Id, Name, explain
from fer_pipeline.base.errors import ClusterError, UserError
from fer_pipeline.base.identity import Identity
from fer_pipeline.base.memory import MAX_FILE_BYTES, MAX_PIXELS
from fer_pipeline.base.schema_version import require_schema_version
from fer_pipeline.base.storage import parquet
from fer_pipeline.faces.decoding_version import DECODING
from fer_pipeline.labelling.schemas import IMAGES, LINEAGE
from fer_pipeline.models.card import MOST_OUTPUTS, OutputName

RUN, SUCCESS, REPORT = "run.json", "_SUCCESS", "report.html"
CORRECTED = "faces_prior_em"
"""Folder of a run with labels corrected for the class prior of its archive, if requested (`table/prior.py`)."""
CORRECTIONS_FOLDER = "corrections"
"""Folder of a run with the answers of people (`labelling/corrections.py`)."""
AUDITS_FOLDER = "audits"
"""Folder of a run with what was drawn to audit its labels (`labelling/audits.py`)."""
INDEXES = "indexes"
"""Folder of a run on a store with the indexes of the source's containers."""
READERS = 16
"""Number of shard files that are read or looked up in parallel."""
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Error numbers of a disk that is full, of a quota that is used up, and of a file system that is read-only."""
SCHEMA_VERSION = 4
"""The schema version of `run.json`, the manifest and the tables. A run continues only with the same version."""
SETTINGS_NOT_IN_DIGEST = (
    "include", "exclude", "fps", "pages", "zip_encoding", "file_list", "uri_column", "base", "keep", "sample", "limit", "table",
    "reuse_faces", "precision", "device", "uncertain_below",
)  # fmt: skip
"""Settings that are no reason to relabel a record: they select records, or choose the arithmetic, which differs between machines,
with the default threshold of uncertain labels that belongs to it."""


def _moment(text: str) -> str:
    datetime.fromisoformat(text)
    return text


Moment = Annotated[str, AfterValidator(_moment)]
"""A time in ISO 8601."""


class Increment(Config):
    """The result of comparing a listing with a published table. Only records that the table does not hold are labelled."""

    table: str
    version: int
    """The version of the table when it was read; -1 if it did not exist."""
    nights: int = 0
    """Number of nights recorded at that time. Of two runs, the one with more was listed later, whatever the clocks say."""
    listed: int
    held: int
    """Listed records whose rows stay unchanged."""
    new: int
    changed: int
    outdated: int
    """Rows of another model, detector or settings, which are relabelled."""
    retried: int
    """Records that failed in an earlier night and are retried."""
    vanished: int
    """Rows of the source that are no longer listed. Publishing the run removes them from the table."""
    scope: int
    """Rows of this source that the table held under these filters."""


BINS = 20
"""Number of bins of the histogram of confidences."""
MOST_FACES = 5
"""Images with this number of faces or more share one bin of the histogram."""
Confidences = Annotated[list[int], Field(min_length=BINS, max_length=BINS)]
FacesPerImage = Annotated[list[int], Field(min_length=MOST_FACES + 1, max_length=MOST_FACES + 1)]


class KnownSettings(Config):
    """The settings that other jobs read from a run. They are validated, because the record of a run may be untrusted."""

    model_config = ConfigDict(extra="ignore")

    max_pixels: int = Field(MAX_PIXELS, ge=1)
    max_bytes: int = Field(MAX_FILE_BYTES, ge=1)
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    uncertain_below: float = Field(0.0, ge=0, le=1)
    image_column: str | None = None
    include: list[str] = Field(default_factory=list)
    exclude: list[str] = Field(default_factory=list)
    fps: float = Field(1.0, gt=0, le=1000)
    file_list: str | None = None
    base: list[str] | None = None
    keep: list[str] | None = None
    reuse_faces: str | None = None


def _validated(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings unchanged, for their digest. Raise ValidationError if `KnownSettings` does not accept them."""
    KnownSettings.model_validate(settings)
    return settings


class RunResult(Config):
    """The result of a run. Seconds, `labelled_now` and rate are those of the session that finished it, including its start."""

    counts: dict[str, int]
    """Records by status."""
    failed: int
    faces: int
    uncertain: int
    expressions: dict[str, int]
    confidences: Confidences
    """Faces by confidence, in equal bins from 0 to 1."""
    faces_per_image: FacesPerImage
    """Labelled images by number of faces. The last bin counts images with that number or more."""
    carried: int = 0
    """Records whose bytes the table knew. Their rows were carried over, not computed."""
    failed_again: int = 0
    """Failed records that had already failed in an earlier night."""
    copies: int = 0
    """Images that are exact copies of another image of the run, without the original; an estimate above 16 million images."""
    near_blocked: int = 0
    """Images that are near copies of ones that were erased from the table; a person decides whether to erase them, too."""
    near_blocked_first: list[str] = Field(default_factory=list)
    """Paths of the first of them, below the source."""
    tracks: int = 0
    """Faces that stay in view of a video, those seen once included."""
    failures: list[dict[str, str | None]]
    """The first failed records; all of them are in `images/`."""
    labelled_now: int
    lost: int = 0
    """Records that were labelled again because their task died before the commit."""
    seconds: float
    images_per_s: float
    finished_at: str


class RunRecord(Config):
    """`run.json`. Everything except `result` is frozen when the run starts."""

    schema_version: int = SCHEMA_VERSION
    run_id: Id
    created_at: Moment
    version: Name = fer_pipeline.__version__
    source: str
    settings: Annotated[dict[str, Any], AfterValidator(_validated)]
    """The configuration that changes labels. A run continues only with the same one."""
    model: Identity
    classes: tuple[str, ...] = ()
    """The classes of `probabilities`, in order. The file metadata of `images/` and `faces/` names them too."""
    outputs: Annotated[tuple[OutputName, ...], Field(max_length=MOST_OUTPUTS)] = ()
    """What the model says besides the classes, by the names of its card."""
    detector: Identity
    records: int = 0
    shards: int = 0
    skipped: dict[str, int] = Field(default_factory=dict)
    """Files of the source that are neither images nor containers, by extension."""
    increment: Increment | None = None
    """None: all listed records are labelled."""
    result: RunResult | None = None

    @property
    def known(self) -> KnownSettings:
        """The validated settings that other jobs read."""
        return KnownSettings.model_validate(self.settings)

    @property
    def roots(self) -> list[str]:
        """The folders and prefixes below which all records are: the source or, for a list, its bases."""
        return self.known.base or [self.source]

    @property
    def faces_from(self) -> str | None:
        """The run or the table whose faces are not detected again."""
        return self.known.reuse_faces or (self.increment.table if self.increment else None)

    @property
    def changes_nothing(self) -> bool:
        """Whether the table already holds exactly the listed records."""
        return self.increment is not None and not self.records and not self.increment.vanished

    @property
    def failure_rate(self) -> float:
        """The share of the listed records that failed for the first time; 0 if there is no result yet."""
        failed = self.result.failed - self.result.failed_again if self.result else 0
        return failed / max(1, self.increment.listed if self.increment else self.records)

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the run's Parquet files: `classes`, as JSON."""
        return {"classes": json.dumps(self.classes)}

    @property
    def lineage(self) -> dict[str, Any]:
        """The values of the columns `schemas.LINEAGE` in every row that this run computes."""
        return {
            "run_id": self.run_id,
            "labelled_at": datetime.fromisoformat(self.created_at),
            "model": self.model.name,
            "model_version": self.model.version,
            "model_alias": self.model.alias,
            "model_digest": self.model.digest,
            "detector": self.detector.name,
            "detector_digest": self.detector.digest,
            "settings_digest": settings_digest(self.settings),
            "decoding": DECODING,
            "classes": ",".join(self.classes) or None,
            "output_names": ",".join(self.outputs) or None,
        }


ADDED_SETTINGS = ("min_quality",)
"""Settings that earlier versions did not have: while they are not set, digests are those of earlier versions."""


def settings_digest(settings: dict[str, Any]) -> str:
    """Return a digest of the settings that change the labels of a record."""
    unset = {name for name in ADDED_SETTINGS if settings.get(name) is None}
    effective = {key: value for key, value in settings.items() if key not in SETTINGS_NOT_IN_DIGEST and key not in unset}
    return hashlib.sha256(json.dumps(effective, sort_keys=True).encode()).hexdigest()[:16]


def with_lineage(labelled: pa.Table, record: RunRecord, kept: pa.Table | None = None) -> pa.Table:
    """Return rows of `schemas.LABELLED` as rows of `schemas.IMAGES`, with their paths and the lineage of this run.

    `kept`: further columns of these rows, which follow those of the schema.
    """
    places = zip(labelled["uri"].to_pylist(), labelled["member"].to_pylist(), strict=True)
    paths = [name_below(record.source, uri, member) for uri, member in places]
    labelled = labelled.append_column("path", pa.array(paths, pa.string()))
    labelled = labelled.append_column("folder", pa.array(map(posixpath.dirname, paths), pa.string()))
    for field in LINEAGE:
        value = pa.scalar(record.lineage[field.name], pa.string() if pa.types.is_dictionary(field.type) else field.type)
        labelled = labelled.append_column(field, pa.repeat(value, len(labelled)).cast(field.type))
    images = labelled.cast(IMAGES)
    return (images if kept is None else parquet.joined(images, kept)).replace_schema_metadata(record.metadata)


class RunFolder:
    """Paths and state of the run at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def path(self, *parts: str) -> str:
        return storage.join(self.url, *parts)

    def manifest_prefix(self, run_id: str) -> str:
        """Return the prefix of the manifest files. The run id separates the files of two drivers until one of them wins."""
        return self.path("manifest", f"{run_id}-")

    def vanished_path(self, run_id: str) -> str:
        """Return the file of the keys that publishing the run removes from the table."""
        return self.path("increment", f"{run_id}-vanished.parquet")

    def places_path(self, run_id: str) -> str:
        """Return the file that locates the rows of the table whose bytes may appear again in the run."""
        return self.path("increment", f"{run_id}-places.parquet")

    @staticmethod
    def images_name(shard: int) -> str:
        """Return the file of a committed shard, below the folder."""
        return f"images/{shard:06d}.parquet"

    def images_path(self, shard: int) -> str:
        return self.path(self.images_name(shard))

    def load(self) -> RunRecord | None:
        """Return the record of the run, None if no run has started. Raise UserError if the folder is not a run folder."""
        try:
            text = storage.read_small(self.path(RUN))
        except NotADirectoryError:
            raise UserError(f"'{self.url}' is a file: choose a new folder for --out.") from None
        except FileNotFoundError:
            if set(storage.list_names(self.url)) - {"manifest", "increment", INDEXES}:
                raise UserError(f"'{self.url}' holds files but no {RUN}: choose an empty folder for --out.") from None
            return None
        remedy = "finish it with that version, or choose another folder for --out."
        require_schema_version(text, range(SCHEMA_VERSION, SCHEMA_VERSION + 1), f"The run in '{self.url}'", remedy)
        try:
            return RunRecord.model_validate_json(text)
        except ValidationError as error:
            raise UserError(
                f"'{self.path(RUN)}' is not a record of a labelling run: {explain(error)}. Choose another folder for --out."
            ) from error

    def begin(self, record: RunRecord) -> RunRecord:
        """Write `record` as `run.json` unless another driver was faster. Return the record that is valid now.

        The manifest must exist already. The manifests of slower drivers, and of drivers killed while listing, are removed.
        """
        storage.create(self.path(RUN), record.model_dump_json(indent=2).encode())
        valid = self.load()
        if valid is None:
            raise FileNotFoundError(self.path(RUN))
        for folder in ("manifest", "increment"):
            for name in storage.list_names(self.path(folder)):
                if not name.startswith(valid.run_id):
                    storage.remove(self.path(folder, name))
        return valid

    def committed(self) -> set[int]:
        """Return the committed shards: those whose file exists."""
        names = storage.list_names(self.path("images"))
        shards = {int(stem) for name in names if (stem := name.removesuffix(".parquet")).isdecimal()}
        return {shard for shard in shards if posixpath.basename(self.images_name(shard)) in names}

    def committed_of(self, shards: Sequence[int]) -> set[int]:
        """Return which of these shards are committed. More than 256 cost one listing, fewer cost one parallel request each."""
        if len(shards) > 256:
            return self.committed().intersection(shards)
        with ThreadPoolExecutor(READERS) as pool:
            found = pool.map(lambda shard: storage.exists(self.images_path(shard)), shards)
            return {shard for shard, exists in zip(shards, found, strict=True) if exists}

    def commit(self, shard: int, images: pa.Table) -> None:
        """Write the file of a shard, rows of `schemas.IMAGES`. This is the commit of the shard.

        Raise ClusterError if the folder's disk is full or cannot be written to: no other worker could commit either.
        """
        try:
            parquet.write_table(self.images_path(shard), images)
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            raise ClusterError(
                f"The run folder '{self.url}' cannot be written to: {error.strerror}. Make room, or mount it for writing, and "
                "run the same command to continue."
            ) from error

    def is_finished(self) -> bool:
        return storage.exists(self.path(SUCCESS))

    def clear(self, name: str, kept: Collection[str] = ()) -> None:
        """Delete the files in a folder of the run, all but `kept`."""
        for file in storage.list_names(self.path(name)):
            if file not in kept:
                storage.remove(self.path(name, file))

    def reopen(self) -> None:
        """Mark the run as unfinished, and delete the labels that were corrected by prior."""
        self.clear(CORRECTED)
        storage.remove(self.path(SUCCESS))

    def finish(self, record: RunRecord, success: bool) -> None:
        """Write the record with its result and then, if `success`, `_SUCCESS`."""
        storage.write_bytes(self.path(RUN), record.model_dump_json(indent=2).encode())
        if success:
            storage.write_bytes(self.path(SUCCESS), json.dumps({"run_id": record.run_id}).encode())
