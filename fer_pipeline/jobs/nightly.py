"""One night: label what is new, audit it, publish it, and write the page of the last nights. Running it again resumes it."""

import logging
import re
from datetime import date as calendar_date
from itertools import count
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from fer_pipeline.base import storage
from fer_pipeline.base.config import PLACE, with_date
from fer_pipeline.base.errors import JobError
from fer_pipeline.engine.connect import ClusterConfig, connected
from fer_pipeline.jobs import publish
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.jobs.lineage import traced
from fer_pipeline.jobs.publish import Accepted, PublishConfig
from fer_pipeline.labelling.retention import MOST_DAYS, expire
from fer_pipeline.labelling.run import RUN, RunFolder, RunRecord
from fer_pipeline.report.nights import write_nights_page
from fer_pipeline.table.delta import LabelTable
from fer_pipeline.table.exposition import exposition
from fer_pipeline.table.nights import Night, kept_night
from fer_pipeline.table.thresholds import Thresholds

log = logging.getLogger(__name__)


def _day(text: str) -> str:
    try:
        is_day = calendar_date.fromisoformat(text).isoformat() == text
    except ValueError:
        is_day = False
    if not is_day:
        raise ValueError(f"'{text}' is not a date: write it as YYYY-MM-DD, such as 2026-11-28")
    return text


Day = Annotated[str, AfterValidator(_day)]


class NightlyConfig(LabelConfig):
    """Label what the table does not hold, audit and publish it. In any path, `{date}` is replaced by the night's date."""

    table: Annotated[str, PLACE]
    """Folder or s3:// URL of the published table; created if it does not exist."""
    out: Annotated[str, PLACE] = "runs/{date}"
    """Run folder of the night. A second run in the same place appends `-2` to the name, and so on."""
    page: Annotated[str, PLACE] = "nights.html"
    """File of the page of the last nights."""
    nights: int = Field(30, ge=1)
    """Number of nights on the page."""
    metrics: Annotated[str | None, PLACE] = None
    """File for the last night's metrics in Prometheus format, such as a `*.prom` file that the node exporter reads."""
    retain_days: int | None = Field(None, ge=1, le=MOST_DAYS)
    """At the end of each night, erase run folders beside `out` that were finished more than this number of days ago, if the table
    holds their nights as published."""
    date: Day | None = None
    """Night to run or to finish, as YYYY-MM-DD; by default today in UTC."""
    accept: tuple[Accepted, ...] = ()
    """Checks of the audit that the night may fail."""
    audit: Thresholds = Thresholds()


@traced("nightly", ("source", "model"), ("table",))
def run(config: NightlyConfig, cluster: ClusterConfig = ClusterConfig()) -> Night:
    """Run the night and return its record. Raise HeldError if its audit holds it; the page is written in any case."""
    config = dated(config)
    places = [config.source, config.out, config.table, config.page, *([config.metrics] if config.metrics else [])]
    with connected(cluster, *map(storage.normalize, places)):
        try:
            night = _night(config, cluster)
        except JobError:
            try:
                _write_page(config)
            except storage.STORAGE_ERRORS as error:  # the night's own error matters more
                log.warning("The page of the nights cannot be written: %s", storage.reason(error))
            raise
        _write_page(config)
        if config.retain_days:
            _expire(config, config.retain_days)
        return night


def _expire(config: NightlyConfig, days: int) -> None:
    """Erase the run folders beside that of this night that are too old. What fails is left to the next night."""
    parent, table = storage.normalize(config.out).rpartition("/")[0], storage.normalize(config.table)

    def why_not(url: str) -> str | None:
        kept = kept_night(table, runs[url])
        if kept is None or kept.state == "held":
            return "the table has no published night of it"
        publish.carry(RunFolder(url), table)  # answers that came since
        return None

    try:
        beside = (storage.join(parent, name) for name in storage.list_names(parent))
        runs = {url: run_id for url in beside if (run_id := _run_of(table, url))}
        erased = [folder for url in runs for folder in expire(url, days, why_not=why_not).folders]
    except (JobError, *storage.STORAGE_ERRORS) as error:
        log.warning("Old run folders cannot be erased: %s", storage.reason(error))
        return
    if erased:
        log.info("Erased %d run folders of more than %d days: %s", len(erased), days, ", ".join(erased))


def _run_of(table: str, url: str) -> str | None:
    """Return the id of the run in a folder; None if there is none that was compared with this table."""
    try:
        record = RunFolder(url).load() if storage.exists(storage.join(url, RUN)) else None
    except JobError:
        return None
    return record.run_id if record and record.increment and record.increment.table == table else None


def _write_page(config: NightlyConfig) -> None:
    """Write the page of the last nights and the file of metrics."""
    table = storage.normalize(config.table)
    write_nights_page(table, storage.normalize(config.page), config.nights)
    if config.metrics:
        storage.write_bytes(storage.normalize(config.metrics), exposition(table))


def _night(config: NightlyConfig, cluster: ClusterConfig) -> Night:
    """Finish the run in the first run folder that is not closed, or start one there; return the night's record.

    Closed runs are skipped. A run that was finished but not published listed its source earlier: after publishing it, the loop
    lists the source again in the next run folder.
    """
    wanted = LabelConfig.model_validate({name: getattr(config, name) for name in LabelConfig.model_fields})
    first, table = storage.normalize(config.out), LabelTable(config.table)
    for number in count(_last_number(first)):
        folder = RunFolder(first if number == 1 else f"{first}-{number}")
        record = folder.load()
        if record and _is_closed(table, folder, record, config):
            continue
        was_finished = record is not None and folder.is_finished()
        changes: dict[str, Any] = {"out": folder.url} | ({"retry_status": ()} if was_finished else {})
        labelled = label.run(wanted.model_copy(update=changes), cluster, only_if_changed=True)
        if labelled.changes_nothing and not folder.is_finished():
            return publish.keep_unchanged(labelled, config.table)
        publishing = PublishConfig(run=folder.url, table=config.table, accept=config.accept, audit=config.audit)
        night = publish.run(publishing, cluster)
        if not was_finished:
            return night
    raise AssertionError("numbers do not end")


def _last_number(out: str) -> int:
    """Return the number of the last run folder with this name; the runs before it are closed."""
    parent, _, name = out.rpartition("/")
    numbers = [found[1] for one in storage.list_names(parent) if (found := re.fullmatch(rf"{re.escape(name)}-(\d+)", one))]
    return max(map(int, numbers), default=1)


def _is_closed(table: LabelTable, folder: RunFolder, record: RunRecord, config: NightlyConfig) -> bool:
    """Tell whether a run needs no more work: it is published, still held, or superseded."""
    kept = kept_night(table.url, record.run_id)
    if kept is not None and (kept.state != "held" or not publish.would_pass(folder, config.accept, config.audit)):
        return True
    return publish.superseded_by(table, record) is not None


def dated(config: NightlyConfig) -> NightlyConfig:
    """Return the configuration with `{date}` replaced by the night's date in all texts."""
    return with_date(config, config.date)
