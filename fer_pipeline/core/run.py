"""A run folder: its record, its commits, and how one tells that all of it is there."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import uuid4

import pyarrow as pa
from pydantic import AfterValidator, ConfigDict, Field, ValidationError

import fer_pipeline
from fer_pipeline.core import storage
from fer_pipeline.core.config import Config, Id, Name, explain
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.schema_version import require_schema_version
from fer_pipeline.core.schemas import IMAGES, LINEAGE

RUN, SUCCESS, REPORT = "run.json", "_SUCCESS", "report.html"
CORRECTED = "faces_prior_em"
"""Folder of a run: its labels under the class prior of its own archive, where they were asked for (`table/prior.py`)."""
INDEXES = "indexes"
"""Folder of a run on a store: what the source's containers hold."""
ASKED_SINGLY, READERS = 256, 16
"""Shards that are asked for one by one at most, and how many of their files are read or asked for at once."""
SCHEMA_VERSION = 4
"""Of `run.json`, the manifest and the tables: a run continues under the same one only."""
NO_LABELS = ("include", "exclude", "fps", "table", "precision", "device", "uncertain_below")
"""Settings that choose the records of a run, and the arithmetic, which machines may differ in, with its threshold of uncertain
labels, unless one was asked for: no reason to label anew."""


def _moment(said: str) -> str:
    datetime.fromisoformat(said)
    return said


Moment = Annotated[str, AfterValidator(_moment)]
"""A time as ISO 8601."""


class Identity(Config):
    """The name and sha256 of a model or detector; of a registry's model the version, and the alias that was asked for."""

    name: Name
    digest: Name
    version: Id | None = None
    alias: Id | None = None


class Increment(Config):
    """What a listing came to beside a published table: only what the table does not hold is labelled."""

    table: str
    version: int
    """Of the table when it was read; -1 where there was none."""
    nights: int = 0
    """Nights kept beside the table then: of two runs, the one with more was listed later, whatever their clocks said."""
    listed: int
    held: int
    """Listed records whose rows stay as they are."""
    new: int
    changed: int
    outdated: int
    """Rows of another model, detector or settings, made anew."""
    retried: int
    """Records that failed in an earlier night."""
    vanished: int
    """Rows of the source that were not listed any more; they leave the table when the run is published."""
    scope: int
    """Rows that the table held of this source under these filters."""


BINS = 20
"""Of the histogram of confidences."""
MOST_FACES = 5
"""From which on images are counted together by their number of faces."""
Confidences = Annotated[list[int], Field(min_length=BINS, max_length=BINS)]
FacesPerImage = Annotated[list[int], Field(min_length=MOST_FACES + 1, max_length=MOST_FACES + 1)]


class KnownSettings(Config):
    """Those of a run's settings that others read than who continues it: a planted run may say anything, or nothing."""

    model_config = ConfigDict(extra="ignore")

    max_pixels: int = Field(100_000_000, ge=1)
    max_bytes: int = Field(256 * 1024**2, ge=1)
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    uncertain_below: float = Field(0.0, ge=0, le=1)
    image_column: str | None = None
    include: list[str] = Field(default_factory=list)
    exclude: list[str] = Field(default_factory=list)
    fps: float = Field(1.0, gt=0, le=1000)


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    """Refuse settings of which some would be misread; return them as they are, for their digest."""
    KnownSettings.model_validate(settings)
    return settings


class RunResult(Config):
    """What a run came to. Seconds, records and rate are those of the session that finished it, its start included."""

    counts: dict[str, int]
    """Records by status."""
    failed: int
    faces: int
    uncertain: int
    expressions: dict[str, int]
    confidences: Confidences
    """Faces by confidence, in equal bins from 0 to 1."""
    faces_per_image: FacesPerImage
    """Images that were looked at by their number of faces; the last counts those with so many or more."""
    carried: int = 0
    """Records whose bytes the table knew: their rows were carried over, not computed."""
    failed_again: int = 0
    """Of those that failed, the ones that had failed in an earlier night."""
    failures: list[dict[str, str | None]]
    """The first failed records; the others stand in `images/`."""
    labelled_now: int
    lost: int = 0
    """Records whose task died before they were committed: they were labelled again."""
    seconds: float
    images_per_s: float
    finished_at: str


class RunRecord(Config):
    """`run.json`. All but `result` is frozen when the run begins."""

    schema_version: int = SCHEMA_VERSION
    run_id: Id
    created_at: Moment
    version: Name = fer_pipeline.__version__
    source: str
    settings: Annotated[dict[str, Any], AfterValidator(_known)]
    """The configuration that changes labels; a run continues under the same one only."""
    model: Identity
    classes: tuple[str, ...] = ()
    """What `probabilities` are those of, in order; `images/` and `faces/` name them too, in their files' metadata."""
    detector: Identity
    records: int = 0
    shards: int = 0
    skipped: dict[str, int] = Field(default_factory=dict)
    """Files of the source that are neither images nor containers, by extension."""
    increment: Increment | None = None
    """None: all that was listed is labelled."""
    result: RunResult | None = None

    @property
    def known(self) -> KnownSettings:
        """The settings that everybody may read."""
        return KnownSettings.model_validate(self.settings)

    @property
    def changes_nothing(self) -> bool:
        """Whether a table holds all that was listed, and nothing else of the source."""
        return self.increment is not None and not self.records and not self.increment.vanished

    @property
    def failure_rate(self) -> float:
        """The share of the listed records that failed, and did not in an earlier night; 0 before there is a result."""
        failed = self.result.failed - self.result.failed_again if self.result else 0
        return failed / max(1, self.increment.listed if self.increment else self.records)

    @property
    def metadata(self) -> dict[str, str]:
        """What the run's Parquet files say of themselves: `classes`, as JSON."""
        return {"classes": json.dumps(self.classes)}

    @property
    def lineage(self) -> dict[str, Any]:
        """What stands in every row that this run computes, by column (`schemas.LINEAGE`)."""
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
        }


def settings_digest(settings: dict[str, Any]) -> str:
    """Return a digest of the settings that change the labels of a record."""
    labels = {key: value for key, value in settings.items() if key not in NO_LABELS}
    return hashlib.sha256(json.dumps(labels, sort_keys=True).encode()).hexdigest()[:16]


def new_run_id() -> str:
    """Return an id that sorts by time and is unique."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid4().hex[:8]}"


def now() -> str:
    """Return the time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def with_lineage(labelled: pa.Table, record: RunRecord) -> pa.Table:
    """Return rows of `schemas.LABELLED` as rows of `schemas.IMAGES`: as this run computed them."""
    for field in LINEAGE:
        value = pa.scalar(record.lineage[field.name], field.type if pa.types.is_timestamp(field.type) else pa.string())
        labelled = labelled.append_column(field, pa.repeat(value, len(labelled)).cast(field.type))
    return labelled.cast(IMAGES).replace_schema_metadata(record.metadata)


class RunFolder:
    """Paths and states of the run at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def path(self, *parts: str) -> str:
        return storage.join(self.url, *parts)

    def manifest_prefix(self, run_id: str) -> str:
        """Return what the manifest's file names begin with; the run id keeps two drivers' apart until one is chosen."""
        return self.path("manifest", f"{run_id}-")

    def vanished_path(self, run_id: str) -> str:
        """Return the file of the keys that leave the table when the run is published."""
        return self.path("increment", f"{run_id}-vanished.parquet")

    def places_path(self, run_id: str) -> str:
        """Return the file of the rows of the table whose bytes may turn up in the run."""
        return self.path("increment", f"{run_id}-places.parquet")

    def images_path(self, shard: int) -> str:
        return self.path("images", f"{shard:06d}.parquet")

    def load(self) -> RunRecord | None:
        """Return the run's record, None where no run has begun; raise UserError where the folder is something else."""
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
                f"'{self.path(RUN)}' is no record of a labelling run: {explain(error)}. Choose another folder for --out."
            ) from error

    def begin(self, record: RunRecord) -> RunRecord:
        """Freeze `record` as the run's, unless another driver was faster; return the one that holds.

        The manifest is written before; those of slower drivers, and of drivers that were killed while they listed, are removed.
        """
        storage.create(self.path(RUN), record.model_dump_json(indent=2).encode())
        holds = self.load()
        if holds is None:
            raise FileNotFoundError(self.path(RUN))
        for folder in ("manifest", "increment"):
            for name in storage.list_names(self.path(folder)):
                if not name.startswith(holds.run_id):
                    storage.remove(self.path(folder, name))
        return holds

    def committed(self) -> set[int]:
        """Return the shards that are done: those whose file exists."""
        names = storage.list_names(self.path("images"))
        return {int(stem) for name in names if (stem := name.removesuffix(".parquet")).isdigit()}

    def committed_of(self, shards: Sequence[int]) -> set[int]:
        """Return which of these shards are done: few are asked for side by side, many by one listing."""
        if len(shards) > ASKED_SINGLY:
            return self.committed().intersection(shards)
        with ThreadPoolExecutor(READERS) as pool:
            found = pool.map(lambda shard: storage.exists(self.images_path(shard)), shards)
            return {shard for shard, exists in zip(shards, found, strict=True) if exists}

    def commit(self, shard: int, images: pa.Table) -> None:
        """Write a shard's rows of `schemas.IMAGES` under its one name."""
        storage.write_table(self.images_path(shard), images)

    def is_finished(self) -> bool:
        return storage.exists(self.path(SUCCESS))

    def reopen(self) -> None:
        """Take back that the run is finished, and what was made of its labels."""
        for name in storage.list_names(self.path(CORRECTED)):
            storage.remove(self.path(CORRECTED, name))
        storage.remove(self.path(SUCCESS))

    def finish(self, record: RunRecord, success: bool) -> None:
        """Write the record with its result, then, if all is well, `_SUCCESS`."""
        storage.write_bytes(self.path(RUN), record.model_dump_json(indent=2).encode())
        if success:
            storage.write_bytes(self.path(SUCCESS), json.dumps({"run_id": record.run_id}).encode())
