"""Label an archive as a Prefect flow: the job with retries, and its counts as an artifact.

Run it once:     python -m flows.label '{"source": "photos", "out": "runs/2026-11-20"}'
Every night:     prefect deploy flows/label.py:label_archive --cron "0 2 * * *"
"""

import sys

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact

from fer_pipeline.core.run import RunFolder, RunRecord
from fer_pipeline.core.storage import normalize
from fer_pipeline.jobs.cluster import ClusterConfig
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.job import LabelConfig
from flows.retries import may_pass


@task(retries=2, retry_delay_seconds=30, retry_condition_fn=may_pass)
def run_label_job(config: LabelConfig, cluster: ClusterConfig) -> RunRecord:
    """Run the job; a retry continues from the shards that are committed."""
    return label.run(config, cluster)


@flow(name="label-archive")
def label_archive(config: LabelConfig, cluster: ClusterConfig | None = None) -> RunRecord:
    """Label the apparent expressions in an archive and publish the counts, also of a run with too many failures."""
    try:
        return run_label_job(config, cluster or ClusterConfig())
    finally:
        record = RunFolder(normalize(config.out)).load()
        if record and record.result:
            create_markdown_artifact(key="label-archive", markdown=summary(record), description=f"Run {record.run_id}")


def summary(record: RunRecord) -> str:
    """Return the run's counts as Markdown."""
    result = record.result
    if result is None:
        return f"Run {record.run_id} has no result yet."
    counts = [f"| {status} | {count:,} |" for status, count in result.counts.items()]
    expressions = [f"| {expression} | {count:,} |" for expression, count in result.expressions.items()]
    title = f"# Labels of {record.source}"
    whole = f"{record.records:,} images, {result.faces:,} faces, {result.images_per_s} images/s"
    by_status = ["| status | images |", "|---|--:|", *counts]
    by_expression = ["| apparent expression | faces |", "|---|--:|", *expressions]
    return "\n".join([title, "", whole, "", *by_status, "", *by_expression])


if __name__ == "__main__":
    label_archive(LabelConfig.model_validate_json(sys.argv[1]))
