"""What is kept of every night beside the table: figures of its run, how its audit ended, whether it was published."""

import logging
from typing import Literal

from pydantic import Field

from fer_pipeline.core import storage
from fer_pipeline.core.config import Config, Id, read_record
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.run import Confidences, FacesPerImage, Identity, Moment, RunRecord, new_run_id, now, settings_digest

log = logging.getLogger(__name__)

FOLDER = "_nights"
"""Below the table; readers and vacuuming pass over names that begin so."""
State = Literal["published", "unchanged", "held", "undone"]
"""`undone`: published once, and not in the table any more since it was restored to an earlier night."""


class Night(Config):
    """One run and what came of it: `_nights/<run id>.json`, and the metadata of its commit."""

    run_id: Id
    listed_after: int = 0
    """Nights kept before its source was listed."""
    begun_at: Moment
    ended_at: Moment | Literal[""] = ""
    """When it was published, held or found to have changed nothing; empty of nights of earlier versions."""
    source: str
    filters: list[list[str]]
    """Globs that chose records, and those that left some out."""
    state: State
    failing: list[str] = Field(default_factory=list)
    """Checks of the audit that it fell short of."""
    accepted: list[str] = Field(default_factory=list)
    """Those that were accepted when it was published."""
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
    """Its run folder, for `explain`; empty where nothing had changed, for such a night leaves none."""
    table_rows: int | None = None
    """After it was published."""

    @property
    def order(self) -> tuple[int, str]:
        """What sorts nights by when their sources were listed, clocks that jump notwithstanding."""
        return self.listed_after, self.run_id


def night_of(table: str, record: RunRecord, state: State, failing: list[str], accepted: list[str]) -> Night:
    """Return what is kept of a finished run."""
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
    """Return the globs that chose a run's records, and those that left some out."""
    return [record.known.include, record.known.exclude]


def _listed_after(table: str, record: RunRecord) -> int:
    """Return how many nights were kept before a run's source was listed; of a run without a table, before its first audit."""
    if record.increment:
        return record.increment.nights
    kept = kept_night(table, record.run_id)
    return kept.listed_after if kept else len(night_ids(table))


def keep_night(table: str, night: Night) -> None:
    """Write what is kept of a night, over what was kept of it before."""
    storage.write_bytes(_path(table, night.run_id), night.model_dump_json(indent=1).encode())


def night_ids(table: str) -> list[str]:
    """Return the run ids of all nights, published or not, sorted."""
    return [name.removesuffix(".json") for name in storage.list_names(storage.join(table, FOLDER)) if name.endswith(".json")]


def last_nights(table: str, count: int) -> list[Night]:
    """Return the last nights, the latest listed last: one whose clock was ahead does not stand at the end for years.

    What is no night is told of and left out.
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
    """Return what is kept of a run; None where nothing is."""
    return _read(table, run_id) if storage.exists(_path(table, run_id)) else None


def _path(table: str, run_id: str) -> str:
    return storage.join(table, FOLDER, f"{run_id}.json")


def _read(table: str, run_id: str) -> Night:
    """Return what is kept of a run; raise UserError for a file of something else, or of another run."""
    path = _path(table, run_id)
    night = read_record(path, Night, "night")
    if night.run_id != run_id:
        raise UserError(f"'{path}' is that of another night, {night.run_id}: move it away.")
    return night


def mark_undone(table: str, published: set[str], held: set[str]) -> None:
    """Say of the nights that were ever published which ones the table holds now."""
    for run_id in sorted(published):
        state: State = "published" if run_id in held else "undone"
        night = kept_night(table, run_id)
        if night and night.state != state:
            keep_night(table, night.model_copy(update={"state": state}))
