"""One night: label what is new, audit it, publish it, and write the page of the last nights. Run again, it goes on."""

import logging
import re
from datetime import date as calendar_date
from itertools import count
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from fer_pipeline.core import storage
from fer_pipeline.core.config import PLACE, with_date
from fer_pipeline.core.errors import JobError
from fer_pipeline.core.run import RunFolder, RunRecord
from fer_pipeline.jobs import publish
from fer_pipeline.jobs.cluster import ClusterConfig, connected
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.job import LabelConfig
from fer_pipeline.jobs.publish import Accepted, PublishConfig
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
        raise ValueError(f"'{text}' is no date: write it as YYYY-MM-DD, such as 2026-11-28")
    return text


Day = Annotated[str, AfterValidator(_day)]


class NightlyConfig(LabelConfig):
    """Label what the table does not hold, audit and publish it. `{date}` in any path stands for the night's date."""

    table: Annotated[str, PLACE]
    """Folder or s3:// URL of the published table; made where there is none."""
    out: Annotated[str, PLACE] = "runs/{date}"
    """Run folder of the night; one that runs after it in the same place gets `-2` behind the name, and so on."""
    page: Annotated[str, PLACE] = "nights.html"
    """Page over the last nights."""
    nights: int = Field(30, ge=1)
    """Nights on the page."""
    metrics: Annotated[str | None, PLACE] = None
    """File of the last night's figures for Prometheus, such as one that the node exporter reads (`*.prom`)."""
    date: Day | None = None
    """Night to run, or to finish, as YYYY-MM-DD; by default today's, in UTC."""
    accept: tuple[Accepted, ...] = ()
    """Checks of the audit that the night may fall short of."""
    audit: Thresholds = Thresholds()


def run(config: NightlyConfig, cluster: ClusterConfig = ClusterConfig()) -> Night:
    """Run the night and return what is kept of it. Raise HeldError where its audit holds it; the page says so too."""
    config = dated(config)
    places = [config.source, config.out, config.table, config.page, *([config.metrics] if config.metrics else [])]
    with connected(cluster, *map(storage.normalize, places)):
        try:
            night = _night(config, cluster)
        except JobError:
            try:
                _show(config)
            except storage.STORAGE_ERRORS as error:  # how the night ended counts
                log.warning("The page of the nights cannot be written: %s", storage.reason(error))
            raise
        _show(config)
        return night


def _show(config: NightlyConfig) -> None:
    """Write the page over the last nights, and their metrics."""
    table = storage.normalize(config.table)
    write_nights_page(table, storage.normalize(config.page), config.nights)
    if config.metrics:
        storage.write_bytes(storage.normalize(config.metrics), exposition(table))


def _night(config: NightlyConfig, cluster: ClusterConfig) -> Night:
    """End what was begun in the run folder; then, or instead, look at the source in the first of its kind that holds no run.

    A run that is over is not tonight's, and one that was finished and not published was listed earlier: then the source is listed
    anew.
    """
    wanted = LabelConfig.model_validate({name: getattr(config, name) for name in LabelConfig.model_fields})
    first, table = storage.normalize(config.out), LabelTable(config.table)
    for number in count(_last_number(first)):
        folder = RunFolder(first if number == 1 else f"{first}-{number}")
        record = folder.load()
        if record and _is_over(table, folder, record, config):
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
    """Return the number of the last run folder of a name: those before it are over."""
    parent, _, name = out.rpartition("/")
    numbers = [found[1] for one in storage.list_names(parent) if (found := re.fullmatch(rf"{re.escape(name)}-(\d+)", one))]
    return max(map(int, numbers), default=1)


def _is_over(table: LabelTable, folder: RunFolder, record: RunRecord, config: NightlyConfig) -> bool:
    """Tell whether nothing is to be done with a run any more: it is published, held as before, or superseded."""
    kept = kept_night(table.url, record.run_id)
    if kept is not None and (kept.state != "held" or not publish.would_pass(folder, config.accept, config.audit)):
        return True
    return publish.superseded_by(table, record) is not None


def dated(config: NightlyConfig) -> NightlyConfig:
    """Return the configuration with the night's date in the place of `{date}`, wherever it stands in a text."""
    return with_date(config, config.date)
