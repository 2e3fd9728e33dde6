"""Write the page of a labelling run again, with or without pictures of faces."""

from fer_pipeline.core import storage
from fer_pipeline.core.config import Config
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.run import REPORT, RunFolder, RunRecord
from fer_pipeline.report.labels import label_report


class ReportConfig(Config):
    """Write `report.html` of a run again."""

    run: str
    """Run folder of a labelling run that is worked off."""
    thumbnails: bool = True
    """Put pictures of faces onto the page."""
    before: str | None = None
    """Run folder of a finished run that it is compared with on the page."""


class ReportResult(Config):
    """Where the page is."""

    report: str


def run(config: ReportConfig) -> ReportResult:
    """Write the page and return where it is. Raise UserError where one of the runs is not worked off."""
    folder, record = _finished(config.run)
    before = _finished(config.before)[1] if config.before else None
    storage.write_bytes(folder.path(REPORT), label_report(folder, record, config.thumbnails, before).encode())
    return ReportResult(report=folder.path(REPORT))


def _finished(url: str) -> tuple[RunFolder, RunRecord]:
    folder = RunFolder(storage.normalize(url))
    record = folder.load()
    if record is None or record.result is None:
        raise UserError(f"There is no finished labelling run in '{folder.url}': run fer-pipeline label first.")
    return folder, record
