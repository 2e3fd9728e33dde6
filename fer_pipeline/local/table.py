"""Upkeep of the published table: its history, its page, going back, erasing, and putting small files together."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import Field

from fer_pipeline.core import storage
from fer_pipeline.core.config import Config
from fer_pipeline.core.errors import UserError
from fer_pipeline.report.nights import write_nights_page
from fer_pipeline.table.compact import compact as compact_files
from fer_pipeline.table.delta import CommitRefused, LabelTable
from fer_pipeline.table.exposition import exposition
from fer_pipeline.table.forget import Forgotten
from fer_pipeline.table.forget import forget as forget_rows
from fer_pipeline.table.nights import mark_undone


class TableConfig(Config):
    """A published table."""

    table: str
    """Folder or s3:// URL."""


class PageConfig(TableConfig):
    """Write the page over a table's last nights."""

    out: str = "nights.html"
    """Where the page goes."""
    nights: int = Field(30, ge=1)
    """Nights on it."""


class MetricsConfig(TableConfig):
    """Write the last night's figures as Prometheus reads them."""

    out: str = "fer_pipeline.prom"
    """Where they go, such as the folder of the node exporter's textfile collector."""


class RestoreConfig(TableConfig):
    """Let a table be as a night left it, by a new version; what was published since then is not in it."""

    night: str
    """Run id of the night, or the number of a version: `fer-pipeline table history` lists both."""


class ForgetConfig(TableConfig):
    """Erase rows, in all versions. The run folders that they came from, and the source, are not touched."""

    uri: tuple[str, ...] = ()
    """Files or containers whose rows are erased."""
    content: tuple[str, ...] = ()
    """sha256 of images whose rows are erased, wherever they stand (`content_sha256`)."""


class VacuumConfig(TableConfig):
    """Delete files that no recent version needs. Runs that are being labelled for the table need those of their beginning."""

    retention_hours: int = Field(168, ge=1)
    """Versions of so many hours stay readable."""


class Versions(Config):
    """A table's versions, the latest first."""

    versions: list[dict[str, Any]]


class TableMetrics(Config):
    """Where the metrics stand."""

    out: str


class TableResult(Config):
    """What a table is now."""

    table: str
    version: int
    rows: int
    files: int
    deleted: int = 0


def history(config: TableConfig) -> Versions:
    """Return the versions, with the night that made each, and what it was accepted in spite of."""
    return Versions(versions=_opened(config.table).history())


def page(config: PageConfig) -> TableResult:
    """Write the page. Raise UserError for a table that no night was kept of."""
    table, out = _opened(config.table), storage.normalize(config.out)
    write_nights_page(table.url, out, config.nights)
    return _result(table)


def metrics(config: MetricsConfig) -> TableMetrics:
    """Write the metrics. Raise UserError where there is no table."""
    table, out = _opened(config.table), storage.normalize(config.out)
    storage.write_bytes(out, exposition(table.url))
    return TableMetrics(out=out)


def restore(config: RestoreConfig) -> TableResult:
    """Go back. Raise UserError for a night that the history does not know, or whose files were vacuumed."""
    table = _opened(config.table)
    nights = {str(entry["version"]): entry["version"] for entry in table.history()}
    nights |= {run_id: entry["version"] for entry in table.history() if (run_id := _run_id(entry))}
    if config.night not in nights:
        raise UserError(f"The history of '{table.url}' knows no night '{config.night}': `fer-pipeline table history` lists them.")
    table.restore(nights[config.night])
    restored = table.refreshed()
    mark_undone(
        table.url, {*filter(None, (_run_id(entry) for entry in restored.history()))}, restored.nights_in(restored.version)
    )
    return _result(restored)


def _run_id(entry: dict[str, Any]) -> str | None:
    return (entry["night"] or {}).get("run_id")


def forget(config: ForgetConfig) -> Forgotten:
    """Erase the rows; say what readers of older versions will see."""
    if not (config.uri or config.content):
        raise UserError("Whose rows? Name files by --uri, or images by --content.")
    with _alone(config.table):
        return forget_rows(_opened(config.table), tuple(map(storage.normalize, config.uri)), config.content)


def compact(config: TableConfig) -> TableResult:
    """Put small files together, ordered by uri."""
    with _alone(config.table):
        compact_files(_opened(config.table))
    return _result(_opened(config.table))


def vacuum(config: VacuumConfig) -> TableResult:
    """Delete what no version of the last hours needs."""
    table = _opened(config.table)
    deleted = table.vacuum(config.retention_hours)
    return _result(table, deleted)


@contextmanager
def _alone(table: str) -> Iterator[None]:
    """Raise UserError where another commit came first."""
    try:
        yield
    except CommitRefused as error:
        raise UserError(f"The table '{table}' was changed by another meanwhile: run the same command again.") from error


def _opened(url: str) -> LabelTable:
    table = LabelTable(url)
    if table.version < 0:
        raise UserError(f"There is no table at '{table.url}': `fer-pipeline publish` makes one.")
    return table


def _result(table: LabelTable, deleted: int = 0) -> TableResult:
    return TableResult(table=table.url, version=table.version, rows=table.rows, files=len(table.files), deleted=deleted)
