"""Write the page of a labelling run again, with or without pictures of faces."""

import logging
from typing import Literal

from fer_pipeline.base import storage
from fer_pipeline.base.config import Config
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.memory import bounded_read
from fer_pipeline.labelling.run import CORRECTED, REPORT, RunFolder, RunRecord
from fer_pipeline.models.bundle import EMBEDDED, read_bundle
from fer_pipeline.models.card import ModelCard
from fer_pipeline.report.labels import label_report
from fer_pipeline.report.subtitles import write_subtitles
from fer_pipeline.table.prior import correct_prior

log = logging.getLogger(__name__)


class ReportConfig(Config):
    """Write the `report.html` of a run again."""

    run: str
    """Run folder of a finished labelling run."""
    source: str | None = None
    """The folder or URL of the run's images. Faces are cut from them. Without this option, only the run folder is read."""
    before: str | None = None
    """Run folder of a finished run to compare with."""
    prior: Literal["learned", "em"] = "learned"
    """`em`: estimate the share of each expression in this archive, and write labels corrected for these shares as extra files in
    the run folder."""
    model: str = EMBEDDED
    """Model bundle that labelled the run; `--prior em` needs it."""
    subtitles: bool = False
    """Also write subtitles for each video, as WebVTT, ASS and CSV: who shows what when, by the run's tracks."""


class ReportResult(Config):
    """Path of the page."""

    report: str
    corrected: str | None = None
    """Folder of the labels that were corrected with the estimated prior."""
    subtitles: tuple[str, ...] = ()
    """The WebVTT files; one that ends in `.ass` and one in `.csv` stand beside each."""


def run(config: ReportConfig) -> ReportResult:
    """Write the page and return its path. Raise UserError if a run is not finished, or if another model labelled it."""
    folder, record = _finished(config.run)
    before = _finished(config.before)[1] if config.before else None
    source = storage.normalize(config.source) if config.source else None
    shifts = correct_prior(folder, record, _model_of(record, config.model)) if config.prior == "em" else []
    with bounded_read(folder.url):
        page = label_report(folder, record, source, before, shifts)
    storage.write_bytes(folder.path(REPORT), page.encode())
    if not source:
        log.info("The page shows no faces: give the folder or URL of the images with --source")
    subtitles = tuple(write_subtitles(folder, record)) if config.subtitles else ()
    return ReportResult(report=folder.path(REPORT), corrected=folder.path(CORRECTED) if shifts else None, subtitles=subtitles)


def _model_of(record: RunRecord, url: str) -> ModelCard:
    """Return the card of the model at `url`. Raise UserError if another model labelled the run."""
    bundle = read_bundle(url)
    if bundle.digest != record.model.digest:
        raise UserError(f"The model '{url}' did not label the run: give the bundle of {record.model.name} with --model.")
    return bundle.computing_in(record.known.precision).card


def _finished(url: str) -> tuple[RunFolder, RunRecord]:
    folder = RunFolder(storage.normalize(url))
    record = folder.load()
    if record is None or record.result is None:
        raise UserError(f"There is no finished labelling run in '{folder.url}': run fer-pipeline label first.")
    return folder, record
