"""Write the page of a labelling run again, with or without pictures of faces."""

from fer_pipeline.core import storage
from fer_pipeline.core.config import Config
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.run import REPORT, RunFolder
from fer_pipeline.report.labels import label_report


class ReportConfig(Config):
    """Write `report.html` of a run again."""

    run: str
    """Run folder of a labelling run that is worked off."""
    thumbnails: bool = True
    """Put pictures of faces onto the page."""


class ReportResult(Config):
    """Where the page is."""

    report: str


def run(config: ReportConfig) -> ReportResult:
    """Write the page and return where it is. Raise UserError where the run is not worked off."""
    folder = RunFolder(storage.normalize(config.run))
    record = folder.load()
    if record is None or record.result is None:
        raise UserError(f"There is no finished labelling run in '{folder.url}': run fer-pipeline label first.")
    storage.write_bytes(folder.path(REPORT), label_report(folder, record, config.thumbnails).encode())
    return ReportResult(report=folder.path(REPORT))
