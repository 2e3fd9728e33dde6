"""Label an archive as a Prefect flow: run the job with retries and show its counts as an artifact.

Run it once:     python -m flows.label '{"source": "photos", "out": "runs/2026-11-20"}'
"""

from fer_pipeline.base.storage import join, normalize
from fer_pipeline.base.text import in_markdown, table_row
from fer_pipeline.engine.connect import ClusterConfig
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.labelling.run import REPORT, RunFolder, RunRecord
from flows.shell import main
from flows.steps import THIS_MACHINE, job_flow, run_job, show_page, shown_if_readable, tag


@job_flow("label-archive")
def label_archive(config: LabelConfig, cluster: ClusterConfig = THIS_MACHINE, notify: str | None = None) -> RunRecord:
    """Label the apparent expressions in an archive. Show the counts, even if the run has too many failures.

    `notify` names a Webhook block that is called when a run ends badly.
    """
    tag(model=config.model, table=config.table)
    try:
        return run_job("label", label.run, RunRecord, config, cluster)
    finally:
        with shown_if_readable():
            out = normalize(config.out)
            record = RunFolder(out).load()
            if record and record.result:
                show_page("label-archive", summary(record, join(out, REPORT)), f"Run {record.run_id}")


def summary(record: RunRecord, page: str = "") -> str:
    """Return the counts of a run as Markdown."""
    result = record.result
    if result is None:
        return f"Run {record.run_id} has no result yet."
    model = in_markdown(f"{record.model.name} {record.model.version or ''}")
    whole = f"{record.records:,} images, {result.faces:,} faces, {result.images_per_s} images/s, model {model}"
    uncertain = f"{result.uncertain / max(1, result.faces):.0%} of the labels are uncertain." if result.faces else ""
    by_status = ["| status | images |", "|---|--:|", *(table_row(name, f"{count:,}") for name, count in result.counts.items())]
    rows = (table_row(name, f"{count:,}") for name, count in result.expressions.items())
    by_expression = ["| apparent expression | faces |", "|---|--:|", *rows]
    failures = [table_row(*(one[name] for name in ("status", "uri", "error"))) for one in result.failures[:20]]
    first = ["", "| failed | file | why |", "|---|---|---|", *failures] if failures else []
    where = ["", f"Page: {in_markdown(page)}"] if page else []
    title = f"# Labels of {in_markdown(record.source)}"
    lines = [title, "", whole, uncertain, "", *by_status, "", *by_expression, *first, *where]
    return "\n".join(lines)


if __name__ == "__main__":
    main(label_archive, LabelConfig)
