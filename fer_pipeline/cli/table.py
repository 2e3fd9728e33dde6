"""Commands for the published table: history, page, metrics, restore, forget, compact and vacuum."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import Field

from fer_pipeline.base import storage
from fer_pipeline.base.config import Config
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.storage import parquet
from fer_pipeline.report.nights import write_nights_page
from fer_pipeline.table.compact import compact as compact_files
from fer_pipeline.table.delta import CommitRefused, LabelTable
from fer_pipeline.table.diff import Diff, diff
from fer_pipeline.table.exposition import exposition
from fer_pipeline.table.forget import Forgotten
from fer_pipeline.table.forget import forget as forget_rows
from fer_pipeline.table.nights import mark_undone


class TableConfig(Config):
    """A published table."""

    table: str
    """Folder or s3:// URL."""


class PageConfig(TableConfig):
    """Write the page of a table's last nights."""

    out: str = "nights.html"
    """File for the page."""
    nights: int = Field(30, ge=1)
    """Number of nights on the page."""


class MetricsConfig(TableConfig):
    """Write the last night's figures in the text format of Prometheus."""

    out: str = "fer_pipeline.prom"
    """File for the figures, such as one in the folder of the node exporter's textfile collector."""


class RestoreConfig(TableConfig):
    """Restore a table to its state after a night, as a new version without what was published later."""

    night: str
    """Run id of the night, or number of a version: `fer-pipeline table history` lists both."""


class DiffConfig(TableConfig):
    """Count what changed in a table from one night to another."""

    night: Annotated[tuple[str, ...], Field(max_length=2)] = ()
    """Run ids of two nights, or numbers of versions; with one, it is compared with the table as it is; by default the last
    two."""
    out: str | None = None
    """Parquet file for the rows that changed, with their expressions before and after."""


class ForgetConfig(TableConfig):
    """Erase rows in all versions, and never label their images again. Source and run folders are not changed."""

    uri: tuple[str, ...] = ()
    """Paths of the files or containers to erase. The end of a path is enough if only one file has it."""
    content: tuple[str, ...] = ()
    """sha256 (`content_sha256`) of images whose rows are erased, in any file."""


class VacuumConfig(TableConfig):
    """Delete files that no recent version needs. Runs in progress need the version at their start."""

    retention_hours: int = Field(168, ge=1)
    """Number of hours for which versions stay readable."""


class Versions(Config):
    """Versions of a table, the latest first."""

    versions: list[dict[str, Any]]


class TableMetrics(Config):
    """File of the metrics."""

    out: str


class TableResult(Config):
    """State of a table after a command."""

    table: str
    version: int
    rows: int
    files: int
    deleted: int = 0


def history(config: TableConfig) -> Versions:
    """Return the versions, each with the night that made it and the failed checks that were accepted."""
    return Versions(versions=_opened(config.table).history())


def page(config: PageConfig) -> TableResult:
    """Write the page, if the table has nights. Raise UserError if there is no table."""
    table, out = _opened(config.table), storage.normalize(config.out)
    write_nights_page(table.url, out, config.nights)
    return _result(table)


def metrics(config: MetricsConfig) -> TableMetrics:
    """Write the metrics. Raise UserError if there is no table."""
    table, out = _opened(config.table), storage.normalize(config.out)
    storage.write_bytes(out, exposition(table.url))
    return TableMetrics(out=out)


def restore(config: RestoreConfig) -> TableResult:
    """Restore the table. Raise UserError if the night is unknown, or if its files were vacuumed."""
    table = _opened(config.table)
    table.restore(_version_of(table, config.night))
    restored = table.refreshed()
    mark_undone(
        table.url, {*filter(None, (_run_id(entry) for entry in restored.history()))}, restored.nights_in(restored.version)
    )
    return _result(restored)


def changes(config: DiffConfig) -> Diff:
    """Return what changed from one night to another. Raise UserError if one is unknown, or its files were vacuumed."""
    table = _opened(config.table)
    nights = config.night or _last_nights(table)
    first, second = (*(_version_of(table, night) for night in nights), table.version)[:2]
    try:
        found, rows = diff(table, first, second)
    except FileNotFoundError as error:
        raise UserError(
            f"Files of version {first} or {second} of '{table.url}' are gone: `table vacuum` or `table forget` deleted them."
        ) from error
    if config.out:
        parquet.write_table(storage.normalize(config.out), rows)
    return found


def _last_nights(table: LabelTable) -> list[str]:
    """Return the run ids of the last two nights of a table, or of its only one and the version before. Raise UserError for
    none."""
    history = table.history()
    held = table.nights_in(table.version)
    found = [(run_id, entry["version"]) for entry in history if (run_id := _run_id(entry)) in held and run_id][:2]
    if not found:
        raise UserError(f"The table '{table.url}' has no night: name versions by --night.")
    return [run_id for run_id, _ in reversed(found)] if len(found) > 1 else [str(found[0][1] - 1), found[0][0]]


def _version_of(table: LabelTable, night: str) -> int:
    """Return the version of a table that a night made. Raise UserError if there is none."""
    history = table.history()
    nights: dict[str, int] = {str(entry["version"]): entry["version"] for entry in history}
    nights |= {run_id: entry["version"] for entry in history if (run_id := _run_id(entry))}
    if night not in nights:
        raise UserError(f"The table '{table.url}' has no night '{night}': `fer-pipeline table history` lists its nights.")
    return nights[night]


def _run_id(entry: dict[str, Any]) -> str | None:
    return (entry["night"] or {}).get("run_id")


def forget(config: ForgetConfig) -> Forgotten:
    """Erase the rows, and return what readers of older versions will see."""
    if not (config.uri or config.content):
        raise UserError("No rows are named: name files with --uri, or images with --content.")
    with _require_no_conflict(config.table):
        return forget_rows(_opened(config.table), config.uri, config.content)


def compact(config: TableConfig) -> TableResult:
    """Merge small files, ordered by uri."""
    with _require_no_conflict(config.table):
        compact_files(_opened(config.table))
    return _result(_opened(config.table))


def vacuum(config: VacuumConfig) -> TableResult:
    """Delete files that no version of the last hours needs."""
    table = _opened(config.table)
    deleted = table.vacuum(config.retention_hours)
    return _result(table, deleted)


@contextmanager
def _require_no_conflict(table: str) -> Iterator[None]:
    """Raise UserError if another commit came first."""
    try:
        yield
    except CommitRefused as error:
        raise UserError(f"The table '{table}' was changed by another commit: run the same command again.") from error


def _opened(url: str) -> LabelTable:
    table = LabelTable(url)
    if table.version < 0:
        raise UserError(f"There is no table at '{table.url}': `fer-pipeline publish` creates one.")
    return table


def _result(table: LabelTable, deleted: int = 0) -> TableResult:
    return TableResult(table=table.url, version=table.version, rows=table.rows, files=len(table.files), deleted=deleted)
