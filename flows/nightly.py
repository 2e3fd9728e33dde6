"""A night as a Prefect flow: the job with retries, and its figures and audit as an artifact.

Run it once:     python -m flows.nightly '{"source": "photos", "table": "labels"}'
Every night:     docs/flows.md; `{date}` in a path stands for the night's date
"""

from fer_pipeline.core.run import REPORT
from fer_pipeline.core.storage import exists, join, normalize, read_bytes
from fer_pipeline.jobs import nightly as job
from fer_pipeline.jobs.cluster import ClusterConfig
from fer_pipeline.jobs.nightly import NightlyConfig
from fer_pipeline.table.audit import AUDIT, PAGE, Audit
from fer_pipeline.table.nights import Night, kept_night
from flows.shell import main
from flows.steps import job_flow, publish, run_job, shown_if_readable, tag

ALONE = ClusterConfig()


@job_flow("nightly")
def nightly(config: NightlyConfig, cluster: ClusterConfig = ALONE, notify: str | None = None) -> Night:
    """Label what is new, audit it and publish it; the audit's table is shown of a held night, too.

    `notify` names a Webhook block that hears of held and failed nights, and of the first that ends well again.
    """
    tag(model=config.model, table=config.table)
    try:
        return run_job("nightly", job.run, Night, config, cluster)
    finally:
        path = join(normalize(config.out), AUDIT)
        with shown_if_readable():
            if exists(path):
                audit = Audit.model_validate_json(read_bytes(path))
                night = kept_night(normalize(config.table), audit.run_id)
                pages = [config.page, join(config.out, REPORT), join(config.out, PAGE)]
                publish("nightly", summary(audit, night, pages), f"Run {audit.run_id}")


def summary(audit: Audit, night: Night | None, pages: list[str] | None = None) -> str:
    """Return the night's figures and the checks of its audit as Markdown."""
    state = night.state if night else "held" if audit.failing else "not published yet"
    lines = [f"# {audit.table}: {state}", ""]
    if night:
        lines += [f"{night.records:,} records, {night.faces:,} faces, {night.failed:,} failed, {night.vanished:,} vanished", ""]
    lines += ["| check | found | at most | |", "|---|--:|--:|---|"]
    for check in audit.checks:
        found = "–" if check.value is None else f"{check.value:.3g}"
        lines.append(f"| {check.name} | {found} | {check.limit:.3g} | {'' if check.passed else '**falls short**'} |")
    return "\n".join([*lines, "", *(f"- `{page}`" for page in pages or [])])


if __name__ == "__main__":
    main(nightly, NightlyConfig)
