"""A night as a Prefect flow: the job with retries, and its figures and audit as an artifact.

Run it once:     python -m flows.nightly '{"source": "photos", "table": "labels"}'
Every night:     the same parameters on a schedule; `{date}` in a path stands for the night's date
"""

import sys

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact

from fer_pipeline.core.storage import exists, join, normalize, read_bytes
from fer_pipeline.jobs import nightly as job
from fer_pipeline.jobs.cluster import ClusterConfig
from fer_pipeline.jobs.nightly import NightlyConfig, dated
from fer_pipeline.table.audit import AUDIT, Audit
from fer_pipeline.table.nights import Night, kept_night
from flows.retries import may_pass


@task(retries=2, retry_delay_seconds=30, retry_condition_fn=may_pass)
def run_nightly_job(config: NightlyConfig, cluster: ClusterConfig) -> Night:
    """Run the job; a retry goes on where it was."""
    return job.run(config, cluster)


@flow(name="nightly")
def nightly(config: NightlyConfig, cluster: ClusterConfig | None = None) -> Night:
    """Label what is new, audit it and publish it; the audit's table is shown of a held night, too."""
    config = dated(config)  # retries after midnight are of the same night
    try:
        return run_nightly_job(config, cluster or ClusterConfig())
    finally:
        path = join(normalize(config.out), AUDIT)
        if exists(path):
            audit = Audit.model_validate_json(read_bytes(path))
            night = kept_night(normalize(config.table), audit.run_id)
            create_markdown_artifact(key="nightly", markdown=summary(audit, night), description=f"Run {audit.run_id}")


def summary(audit: Audit, night: Night | None) -> str:
    """Return the night's figures and the checks of its audit as Markdown."""
    state = night.state if night else "held" if audit.failing else "not published yet"
    lines = [f"# {audit.table}: {state}", ""]
    if night:
        lines += [f"{night.records:,} records, {night.faces:,} faces, {night.failed:,} failed, {night.vanished:,} vanished", ""]
    lines += ["| check | found | at most | |", "|---|--:|--:|---|"]
    for check in audit.checks:
        found = "–" if check.value is None else f"{check.value:.3g}"
        lines.append(f"| {check.name} | {found} | {check.limit:.3g} | {'' if check.passed else '**falls short**'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    nightly(NightlyConfig.model_validate_json(sys.argv[1]))
