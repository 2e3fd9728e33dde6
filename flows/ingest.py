"""Ingest a dataset as a Prefect flow.

Run it once:     python -m flows.ingest '{"source": "fer2013.csv", "layout": "fer2013-csv", "out": "data/fer2013"}'
"""

from fer_pipeline.base.text import in_markdown, table_row
from fer_pipeline.datasets.dataset import DatasetInfo
from fer_pipeline.engine.connect import ClusterConfig
from fer_pipeline.jobs import ingest as job
from fer_pipeline.jobs.ingest import IngestConfig
from flows.shell import main
from flows.steps import THIS_MACHINE, job_flow, run_job, show_page


@job_flow("ingest-dataset")
def ingest_dataset(config: IngestConfig, cluster: ClusterConfig = THIS_MACHINE, notify: str | None = None) -> DatasetInfo:
    """Convert a labelled dataset to Parquet and show its counts."""
    dataset = run_job("ingest", job.run, DatasetInfo, config, cluster)
    show_page("ingest-dataset", summary(dataset), config.out)
    return dataset


def summary(dataset: DatasetInfo) -> str:
    """Return the dataset's counts as Markdown."""
    splits = list(dataset.counts)
    lines = [f"# {dataset.samples:,} samples of {in_markdown(dataset.source)}", ""]
    lines += [table_row("class", *splits), f"|---|{'--:|' * len(splits)}"]
    for name in dataset.label_space.classes:
        lines.append(table_row(name, *(f"{dataset.counts[split].get(name, 0):,}" for split in splits)))
    dropped = in_markdown(str(dataset.dropped or "none"))
    last = f"{dataset.quarantined:,} samples are quarantined. Dropped: {dropped}. {in_markdown(dataset.terms)}"
    return "\n".join([*lines, "", last])


if __name__ == "__main__":
    main(ingest_dataset, IngestConfig)
