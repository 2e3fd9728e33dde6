"""A night as a Prefect flow: the job with retries, and its figures and audit as an artifact.

Run it once:     python -m flows.nightly '{"source": "photos", "table": "labels"}'
Every night:     docs/flows.md; `{date}` in a path stands for the night's date
"""

from fer_pipeline.core.config import read_record
from fer_pipeline.core.run import REPORT
from fer_pipeline.core.storage import exists, join, normalize
from fer_pipeline.core.text import in_markdown
from fer_pipeline.jobs import nightly as job
from fer_pipeline.jobs.cluster import ClusterConfig
from fer_pipeline.jobs.nightly import NightlyConfig
from fer_pipeline.table.audit import AUDIT, PAGE, Audit
from fer_pipeline.table.nights import Night, last_nights
from flows.shell import main
from flows.steps import job_flow, publish, run_job, shown_if_readable, tag

ALONE = ClusterConfig()
LOOKED_AT = 20
"""Nights of a table among which those that this run made are looked for."""


@job_flow("nightly")
def nightly(config: NightlyConfig, cluster: ClusterConfig = ALONE, notify: str | None = None) -> Night:
    """Label what is new, audit it and publish it; the audit's table is shown of a held night, too.

    `notify` names a Webhook block that hears of held and failed nights, and of the first that ends well again.
    """
    tag(model=config.model, table=config.table)
    before = _nights(config)
    try:
        return run_job("nightly", job.run, Night, config, cluster)
    finally:
        for night in _nights(config):
            if night not in before:
                with shown_if_readable():
                    publish(
                        "nightly",
                        summary(config.table, night, _audit(night) if _is_of(night, config) else None, config.page),
                        f"Run {night.run_id}",
                    )


def _nights(config: NightlyConfig) -> list[Night]:
    """Return the last nights of the table over this source; none where this process cannot read it."""
    table, source = normalize(config.table), normalize(config.source)
    with shown_if_readable():
        return [night for night in last_nights(table, LOOKED_AT) if night.source == source]
    return []


def _is_of(night: Night, config: NightlyConfig) -> bool:
    """Tell whether a night stands in a run folder of this configuration: others could say anything of theirs."""
    return bool(night.folder) and night.folder.startswith(normalize(config.out))


def _audit(night: Night) -> Audit | None:
    """Return a night's audit; None where nothing had changed, and nothing was audited."""
    path = join(night.folder, AUDIT)
    return read_record(path, Audit, "audit") if exists(path) else None


def summary(table: str, night: Night, audit: Audit | None, page: str) -> str:
    """Return the night's figures and the checks of its audit as Markdown."""
    lines = [f"# {in_markdown(table)}: {night.state}", ""]
    lines += [f"{night.records:,} records, {night.faces:,} faces, {night.failed:,} failed, {night.vanished:,} vanished", ""]
    lines += ["| check | found | at most | |", "|---|--:|--:|---|"] if audit else []
    for check in audit.checks if audit else ():
        found = "–" if check.value is None else f"{check.value:.3g}"
        lines.append(f"| {in_markdown(check.name)} | {found} | {check.limit:.3g} | {'' if check.passed else '**falls short**'} |")
    pages = [page, *([join(night.folder, REPORT), join(night.folder, PAGE)] if night.folder else [])]
    return "\n".join([*lines, "", *(f"- {in_markdown(one)}" for one in pages)])


if __name__ == "__main__":
    main(nightly, NightlyConfig)
