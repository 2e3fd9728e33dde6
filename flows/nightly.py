"""Run a night as a Prefect flow: run the job with retries and show its figures and audit as an artifact.

Run it once:     python -m flows.nightly '{"source": "photos", "table": "labels"}'
Every night:     see docs/flows.md; `{date}` in a path is replaced by the date of the night
"""

from fer_pipeline.base.config import read_record
from fer_pipeline.base.storage import exists, join, normalize
from fer_pipeline.base.text import in_markdown
from fer_pipeline.engine.connect import ClusterConfig
from fer_pipeline.jobs import nightly as job
from fer_pipeline.jobs.nightly import NightlyConfig
from fer_pipeline.labelling.run import REPORT
from fer_pipeline.table.audit import AUDIT, PAGE, Audit
from fer_pipeline.table.nights import Night, last_nights
from flows.shell import main
from flows.steps import THIS_MACHINE, job_flow, run_job, show_page, shown_if_readable, tag


@job_flow("nightly")
def nightly(config: NightlyConfig, cluster: ClusterConfig = THIS_MACHINE, notify: str | None = None) -> Night:
    """Label new records, audit them and publish them. Show the audit, even if it holds the night.

    `notify` names a Webhook block that is called for held and failed nights and for the first successful night after one.
    """
    tag(model=config.model, table=config.table)
    before = _nights(config)
    try:
        return run_job("nightly", job.run, Night, config, cluster)
    finally:
        for night in _nights(config):
            if night not in before:
                with shown_if_readable():
                    show_page(
                        "nightly",
                        summary(config.table, night, _audit(night) if _is_in_run_folder(night, config) else None, config.page),
                        f"Run {night.run_id}",
                    )


def _nights(config: NightlyConfig) -> list[Night]:
    """Return the nights of this source among the last 20 of the table, or an empty list if this process cannot read them."""
    table, source = normalize(config.table), normalize(config.source)
    with shown_if_readable():
        return [night for night in last_nights(table, 20) if night.source == source]
    return []


def _is_in_run_folder(night: Night, config: NightlyConfig) -> bool:
    """Return whether the folder of a night is below `config.out`. Other folders are not read: anyone could name one."""
    return bool(night.folder) and night.folder.startswith(normalize(config.out))


def _audit(night: Night) -> Audit | None:
    """Return the audit of a night, or None if nothing had changed and nothing was audited."""
    path = join(night.folder, AUDIT)
    return read_record(path, Audit, "audit") if exists(path) else None


def summary(table: str, night: Night, audit: Audit | None, page: str) -> str:
    """Return the figures of a night and the checks of its audit as Markdown."""
    lines = [f"# {in_markdown(table)}: {night.state}", ""]
    lines += [f"{night.records:,} records, {night.faces:,} faces, {night.failed:,} failed, {night.vanished:,} vanished", ""]
    lines += ["| check | found | at most | |", "|---|--:|--:|---|"] if audit else []
    for check in audit.checks if audit else ():
        found = "–" if check.value is None else f"{check.value:.3g}"
        lines.append(f"| {in_markdown(check.name)} | {found} | {check.limit:.3g} | {'' if check.passed else '**failed**'} |")
    pages = [page, *([join(night.folder, REPORT), join(night.folder, PAGE)] if night.folder else [])]
    return "\n".join([*lines, "", *(f"- {in_markdown(one)}" for one in pages)])


if __name__ == "__main__":
    main(nightly, NightlyConfig)
