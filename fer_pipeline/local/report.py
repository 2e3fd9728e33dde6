"""Write the page of a labelling run again, with or without pictures of faces."""

import logging
from typing import Literal

from fer_pipeline.core import storage
from fer_pipeline.core.config import Config
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.memory import bounded_read
from fer_pipeline.core.run import CORRECTED, REPORT, RunFolder, RunRecord
from fer_pipeline.models.bundle import EMBEDDED, read_bundle
from fer_pipeline.models.card import ModelCard
from fer_pipeline.report.labels import label_report
from fer_pipeline.table.prior import correct_prior

log = logging.getLogger(__name__)


class ReportConfig(Config):
    """Write `report.html` of a run again."""

    run: str
    """Run folder of a labelling run that is worked off."""
    source: str | None = None
    """Put pictures of faces onto the page, cut from files below this folder or URL: the run's source. Without it no file outside
    of the run folder is read."""
    before: str | None = None
    """Run folder of a finished run that it is compared with on the page."""
    prior: Literal["learned", "em"] = "learned"
    """`em`: estimate how often each expression occurs in this archive, and write the labels that follow beside the rows."""
    model: str = EMBEDDED
    """Model bundle that labelled the run, for `--prior em`."""


class ReportResult(Config):
    """Where the page is."""

    report: str
    corrected: str | None = None
    """Folder of the labels under the estimated prior."""


def run(config: ReportConfig) -> ReportResult:
    """Write the page and return where it is. Raise UserError where one of the runs is not worked off, or the model another."""
    folder, record = _finished(config.run)
    before = _finished(config.before)[1] if config.before else None
    source = storage.normalize(config.source) if config.source else None
    shifts = correct_prior(folder, record, _model_of(record, config.model)) if config.prior == "em" else []
    with bounded_read(folder.url):
        page = label_report(folder, record, source, before, shifts)
    storage.write_bytes(folder.path(REPORT), page.encode())
    if not source:
        log.info("No face is on the page: --source names where the pictures may be read")
    return ReportResult(report=folder.path(REPORT), corrected=folder.path(CORRECTED) if shifts else None)


def _model_of(record: RunRecord, url: str) -> ModelCard:
    """Return the card of the model that labelled a run; raise UserError where this is another."""
    bundle = read_bundle(url)
    if bundle.digest != record.model.digest:
        raise UserError(f"The run was labelled by another model than '{url}': name that of {record.model.name} by --model.")
    return bundle.computing_in(record.known.precision).card


def _finished(url: str) -> tuple[RunFolder, RunRecord]:
    folder = RunFolder(storage.normalize(url))
    record = folder.load()
    if record is None or record.result is None:
        raise UserError(f"There is no finished labelling run in '{folder.url}': run fer-pipeline label first.")
    return folder, record
