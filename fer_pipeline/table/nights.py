"""The record of every night beside the table: figures of the run, result of the audit, and whether it was published."""

import logging
from typing import Literal

from pydantic import Field

from fer_pipeline.base import storage
from fer_pipeline.base.config import Config, Id, read_record
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.identity import Identity, new_run_id, now
from fer_pipeline.labelling.run import Confidences, FacesPerImage, Moment, RunRecord, settings_digest

log = logging.getLogger(__name__)

FOLDER = "_nights"
"""Folder below the table. Readers and vacuum ignore names that begin with an underscore."""
State = Literal["published", "unchanged", "held", "undone"]
"""`undone`: published, but no longer in the table, because the table was restored to an earlier night."""


class Night(Config):
    """One run and its result: `_nights/<run id>.json`, and the metadata of its commit."""

    run_id: Id
    listed_after: int = 0
    """Number of nights recorded before the source was listed."""
    begun_at: Moment
    ended_at: Moment | Literal[""] = ""
    """When the night was published, held or found unchanged; empty in records of earlier versions."""
    source: str
    filters: list[list[str]]
    """Globs that include records, and globs that exclude records."""
    state: State
    failing: list[str] = Field(default_factory=list)
    """Checks of the audit that failed."""
    accepted: list[str] = Field(default_factory=list)
    """Failed checks that were accepted when the night was published."""
    model: Identity
    detector: Identity
    settings_digest: str
    records: int
    """Labelled or carried over."""
    carried: int
    failed: int
    vanished: int
    faces: int
    uncertain: int
    expressions: dict[str, int]
    confidences: Confidences
    faces_per_image: FacesPerImage
    images_per_s: float
    folder: str = ""
    """The run folder, for `explain`; empty if nothing had changed, because such a night leaves no run folder."""
    table_rows: int | None = None
    """Rows of the table after the night."""

    @property
    def order(self) -> tuple[int, str]:
        """Sort key of nights by the time of their listing, correct even if clocks jump."""
        return self.listed_after, self.run_id


def night_of(table: str, record: RunRecord, state: State, failing: list[str], accepted: list[str]) -> Night:
    """Return the night record of a finished run."""
    result = record.result
    assert result
    return Night(
        run_id=record.run_id,
        listed_after=_listed_after(table, record),
        begun_at=record.created_at,
        ended_at=now(),
        source=record.source,
        filters=filters_of(record),
        state=state,
        failing=failing,
        accepted=accepted,
        model=record.model,
        detector=record.detector,
        settings_digest=settings_digest(record.settings),
        records=record.records,
        carried=result.carried,
        failed=result.failed,
        vanished=record.increment.vanished if record.increment else 0,
        faces=result.faces,
        uncertain=result.uncertain,
        expressions=result.expressions,
        confidences=result.confidences,
        faces_per_image=result.faces_per_image,
        images_per_s=result.images_per_s,
    )


def filters_of(record: RunRecord) -> list[list[str]]:
    """Return the globs that include records of a run, the globs that exclude records and, for a list, the list and its bases."""
    known = record.known
    return [known.include, known.exclude, *([[known.file_list, *(known.base or [])]] if known.file_list else [])]


def _listed_after(table: str, record: RunRecord) -> int:
    """Return how many nights were recorded before a run's listing or, for a run without a table, before its first audit."""
    if record.increment:
        return record.increment.nights
    kept = kept_night(table, record.run_id)
    return kept.listed_after if kept else len(night_ids(table))


def keep_night(table: str, night: Night) -> None:
    """Write the record of a night. Overwrite an existing one."""
    storage.write_bytes(_path(table, night.run_id), night.model_dump_json(indent=1).encode())


def night_ids(table: str) -> list[str]:
    """Return the run ids of all nights, published or not, sorted."""
    return [name.removesuffix(".json") for name in storage.list_names(storage.join(table, FOLDER)) if name.endswith(".json")]


def last_nights(table: str, count: int) -> list[Night]:
    """Return the last nights in order of their listing, so a night with a clock ahead of time does not stay last.

    Invalid records are skipped with a warning.
    """
    ids, now_id = night_ids(table), new_run_id()
    ahead = sum(run_id > now_id for run_id in ids)
    nights = []
    for run_id in ids[-count - ahead :]:
        try:
            nights.append(_read(table, run_id))
        except UserError as error:
            log.warning("%s", error)
    return sorted(nights, key=lambda night: night.order)[-count:]


def kept_night(table: str, run_id: str) -> Night | None:
    """Return the night record of a run, None if there is none. Raise UserError if it is invalid or of another run."""
    return _read(table, run_id) if storage.exists(_path(table, run_id)) else None


def _path(table: str, run_id: str) -> str:
    return storage.join(table, FOLDER, f"{run_id}.json")


def _read(table: str, run_id: str) -> Night:
    path = _path(table, run_id)
    night = read_record(path, Night, "night")
    if night.run_id != run_id:
        raise UserError(f"'{path}' is the record of another night, {night.run_id}: move it away.")
    return night


def mark_undone(table: str, published: set[str], in_table: set[str]) -> None:
    """Set the state of all nights that were ever published: those of `in_table` are in the table now, the others are undone."""
    for run_id in sorted(published):
        state: State = "published" if run_id in in_table else "undone"
        night = kept_night(table, run_id)
        if night and night.state != state:
            keep_night(table, night.model_copy(update={"state": state}))
