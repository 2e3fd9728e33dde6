"""Publish a finished run: audit it, write the table's new files on the cluster, and commit them in one step."""

import logging
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import ValidationError

from fer_pipeline.base import storage
from fer_pipeline.base.config import PLACE, Config, explain, read_record
from fer_pipeline.base.errors import HeldError, UserError
from fer_pipeline.base.identity import new_run_id
from fer_pipeline.engine.connect import ClusterConfig, connected
from fer_pipeline.engine.machines import Machines
from fer_pipeline.engine.tasks import Shared, fan_out, share
from fer_pipeline.jobs.lineage import traced
from fer_pipeline.labelling.corrections import carry_corrections, erase_corrections
from fer_pipeline.labelling.run import CORRECTIONS_FOLDER, RunFolder, RunRecord
from fer_pipeline.report.nights import audit_page
from fer_pipeline.report.page import drawn
from fer_pipeline.table.audit import AUDIT, NIGHTS_LOOKED_AT, PAGE, Audit, audit
from fer_pipeline.table.blocklist import read_blocklist
from fer_pipeline.table.data_files import Rewritten, Stale, manifest_groups, rewrite, stale_keys, write_new
from fer_pipeline.table.delta import TABLE_CORRECTIONS, Changes, CommitRefused, LabelTable, TableFile
from fer_pipeline.table.nights import Night, State, filters_of, keep_night, kept_night, last_nights, night_ids, night_of
from fer_pipeline.table.rows import Digests, concatenated
from fer_pipeline.table.thresholds import Thresholds

log = logging.getLogger(__name__)

MOST_REFUSALS = 20
"""Commits that may be refused, because another came first, before publishing fails."""
Accepted = Literal[
    "failed", "vanished", "detector", "without_faces", "faces_per_image", "uncertain", "expressions", "confidence", "churn",
    "drift",
]  # fmt: skip
DRIFTS = ("without_faces", "faces_per_image", "uncertain", "expressions", "confidence")


class PublishConfig(Config):
    """Publish a finished labelling run to a Delta Lake table, unless its audit holds it."""

    run: Annotated[str, PLACE]
    """Run folder."""
    table: Annotated[str, PLACE]
    """Folder or s3:// URL of the table; created if it does not exist."""
    accept: tuple[Accepted, ...] = ()
    """Checks of the audit that the run may fail; `drift` means all checks that compare it with other nights."""
    audit: Thresholds = Thresholds()


@traced("publish", ("run",), ("table",))
def run(config: PublishConfig, cluster: ClusterConfig = ClusterConfig()) -> Night:
    """Publish the run, unless it is published already, and return its night. Raise HeldError if its audit holds it."""
    folder, table = RunFolder(storage.normalize(config.run)), LabelTable(config.table)
    record = _finished(folder, table)
    answers = storage.join(table.url, TABLE_CORRECTIONS)
    if table.holds_run(record.run_id):
        published = _published_before(table, record, folder.url)
        carry(folder, table.url)  # those that came since
        return published
    table.require_classes(record.classes)
    _require_latest(table, record)
    found = audit(folder, record, table, config.audit)
    storage.write_bytes(folder.path(AUDIT), found.model_dump_json(indent=1).encode())
    accepted = [name for name in found.failing if name in accepted_checks(config.accept)]
    findings = f"{AUDIT} in the same folder has the findings."
    page = drawn(f"Audit of {record.run_id}", lambda: audit_page(folder, record, found, accepted), findings)
    storage.write_bytes(folder.path(PAGE), page.encode())
    if held := [name for name in found.failing if name not in accepted]:
        _keep(table, record, "held", found.failing, [], folder.url)
        acceptable = [name for name in held if name in get_args(Accepted)]
        remedy = f"; --accept {' --accept '.join(acceptable)} publishes it anyway" if acceptable == held else ""
        raise HeldError(
            f"The run is held because it fails {', '.join(held)}: nothing was published. {folder.path(PAGE)} says why{remedy}."
        )
    if record.changes_nothing:
        return _keep_unchanged(table, record, folder.url)
    table = table.make(record.classes)
    night = night_of(table.url, record, "published", found.failing, found.failing)
    with connected(cluster, folder.url, table.url) as machines:
        carry(folder, table.url)
        table = _commit_rows(folder, record, table, night, machines)
        erase_corrections(answers, (), read_blocklist(table.url).contents)  # of what was forgotten meanwhile
    log.info("Published: the table has %d rows in version %d", table.rows, table.version)
    return _keep(table, record, "published", found.failing, found.failing, folder.url)


def carry(folder: RunFolder, table: str) -> None:
    """Copy the answers of people beside a run to its table."""
    answers = folder.path(CORRECTIONS_FOLDER), storage.join(table, TABLE_CORRECTIONS)
    carry_corrections(*answers, read_blocklist(table).contents)


def keep_unchanged(record: RunRecord, table: str) -> Night:
    """Keep a night that found no change and has no run folder, and return it."""
    return _keep_unchanged(LabelTable(table), record, "")


def _keep_unchanged(table: LabelTable, record: RunRecord, folder: str) -> Night:
    log.info("Nothing has changed, there is nothing to publish")
    return _keep(table, record, "unchanged", [], [], folder)


def would_pass(folder: RunFolder, accept: Iterable[str], thresholds: Thresholds) -> bool:
    """Tell whether a held run would pass now, from the findings of its audit."""
    path = folder.path(AUDIT)
    if not storage.exists(path):
        return False
    checks = read_record(path, Audit, "audit").checks
    now = [check.under(float(getattr(thresholds, check.name, check.limit))) for check in checks]
    return {check.name for check in now if not check.passed} <= accepted_checks(accept)


def accepted_checks(accept: Iterable[str]) -> set[str]:
    """Return the checks that a night may fail, with `drift` expanded."""
    return {*accept, *(DRIFTS if "drift" in accept else ())}


def _finished(folder: RunFolder, table: LabelTable) -> RunRecord:
    """Return the record of a finished run for this table; raise UserError for any other run."""
    record = folder.load()
    if record is None or record.result is None or not folder.is_finished():
        raise UserError(f"'{folder.url}' holds no finished run: run the same `fer-pipeline label` command again to finish it.")
    if record.increment and record.increment.table != table.url:
        raise UserError(f"The run in '{folder.url}' was labelled for the table '{record.increment.table}': publish it there.")
    return record


def _published_before(table: LabelTable, record: RunRecord, folder: str) -> Night:
    """Return the night of a run whose rows are published; write it if the process was killed before it could."""
    night = kept_night(table.url, record.run_id)
    if night and night.state == "undone":
        raise UserError(f"The run '{record.run_id}' was published and undone by `table restore`: start a new run.")
    log.info("This run is published, there is nothing to do: %s", table.url)
    if night and night.state == "published":
        return night
    entries = (entry["night"] or {} for entry in table.history())
    accepted: list[str] = next((entry["accepted"] for entry in entries if entry.get("run_id") == record.run_id), [])
    return _keep(table, record, "published", accepted, accepted, folder)


def superseded_by(table: LabelTable, record: RunRecord) -> str | None:
    """Return what publishing a run would undo, for a message; None if nothing.

    That is, since the run was compared with the table: another published night of its source, a later night of its source that
    found no change, or a restored version.
    """
    if not record.increment:
        return None
    since, ours = table.history(since=record.increment.version), (record.increment.nights, record.run_id)
    if restored := [entry["restored"] for entry in since if entry["restored"] is not None]:
        return f"the restore to version {restored[0]}"
    nights = _nights_of(since)
    looked_at = max(NIGHTS_LOOKED_AT, len(night_ids(table.url)) - record.increment.nights)
    nights += [one for one in last_nights(table.url, looked_at) if one.state == "unchanged" and one.order > ours]
    same = [one for one in nights if (one.source, one.filters) == (record.source, filters_of(record))]
    return f"the run '{same[0].run_id}' of the same source ({same[0].state})" if same else None


def _require_latest(table: LabelTable, record: RunRecord) -> None:
    """Raise UserError if the run is superseded."""
    if other := superseded_by(table, record):
        raise UserError(
            f"The run '{record.run_id}' was compared with the table before {other}, which it would undo: do not publish it, "
            "the next night labels what is missing."
        )


def _nights_of(history: list[dict[str, Any]]) -> list[Night]:
    """Return the nights that made commits."""
    try:
        return [Night.model_validate(night) for entry in history if "run_id" in (night := entry["night"] or {})]
    except ValidationError as error:
        raise UserError(f"A commit of the table has a night that this version cannot read: {explain(error)}.") from error


def _later_runs(table: LabelTable, record: RunRecord) -> frozenset[str]:
    """Return the runs with a later listing, whose rows this run does not replace.

    Rows that the table held when the run was compared with it are older, whatever the clocks said. For a run without a table
    the time in its id decides, but no run is later than now.
    """
    now_id, known = new_run_id(), set(night_ids(table.url))
    if ahead := [run_id for run_id in known if run_id > now_id]:
        log.warning("The id of run %s is in the future, so a clock was wrong: its rows count as older", max(ahead))
    if record.increment:
        ours = night_of(table.url, record, "published", [], []).order
        return frozenset(one.run_id for one in _nights_of(table.history(since=record.increment.version)) if one.order > ours)
    known |= {night.run_id for night in _nights_of(table.history())}  # a night that was killed after its commit is not kept yet
    return frozenset(run_id for run_id in known if record.run_id < run_id <= now_id)


def _keep(table: LabelTable, record: RunRecord, state: State, failing: list[str], accepted: list[str], folder: str) -> Night:
    night = night_of(table.url, record, state, failing, accepted)
    night = night.model_copy(update={"table_rows": table.rows, "folder": folder})
    keep_night(table.url, night)
    return night


def _commit_rows(folder: RunFolder, record: RunRecord, table: LabelTable, night: Night, machines: Machines) -> LabelTable:
    """Add new rows and remove stale ones in one commit; if another commit came first, see what it changed and retry."""
    stale = share(stale_keys(folder, record))
    looked_at: dict[TableFile, Rewritten] = {}
    new: list[TableFile] | None = None
    kept = concatenated([])
    for _ in range(MOST_REFUSALS):
        if table.holds_run(record.run_id):
            return table
        _require_latest(table, record)
        files = [file for file in table.files if file not in looked_at]
        rewriting = fan_out(_rewrite, files, table.url, stale, _later_runs(table, record), machines=machines)
        looked_at |= {found.file: found for found in rewriting}
        now = [looked_at[file] for file in table.files]
        found_kept = concatenated(found.kept for found in now)
        if new is None or not np.array_equal(found_kept, kept):
            kept = found_kept
            written = fan_out(_write_new, manifest_groups(record), table.url, folder, record, share(kept), machines=machines)
            new = [file for file in written if file]
        rest, gone = [found.rest for found in now if found.rest], [found.file for found in now if found.touched]
        try:
            table.commit(Changes(added=new + rest, removed=gone), record.run_id, night.model_dump(mode="json"))
        except CommitRefused:
            version, table = table.version, table.refreshed()
            if table.version == version:
                raise
            log.info("Another commit came first: retrying")
            if any((entry["night"] or {}).get("forgot") is not None for entry in table.history(since=version)):
                for file in [*new, *rest]:  # they may hold rows that `table forget` erased
                    storage.remove(table.path(file.path))
                new, looked_at = None, {}
        else:
            return table.refreshed()
    raise UserError(f"Others changed the table '{table.url}' {MOST_REFUSALS} times meanwhile: run the same command again.")


def _rewrite(table: str, stale: Shared[Stale], later: frozenset[str], file: TableFile) -> Rewritten:
    return rewrite(table, file, stale.get(), later)


def _write_new(table: str, folder: RunFolder, record: RunRecord, kept: Shared[Digests], numbers: list[int]) -> TableFile | None:
    return write_new(table, folder, record, numbers, kept.get())
