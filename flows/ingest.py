"""Ingest a dataset as a Prefect flow.

Run it once:     python -m flows.ingest '{"source": "fer2013.csv", "layout": "fer2013-csv", "out": "data/fer2013"}'
"""

from fer_pipeline.core.dataset import DatasetInfo
from fer_pipeline.jobs import ingest as job
from fer_pipeline.jobs.cluster import ClusterConfig
from fer_pipeline.jobs.ingest import IngestConfig
from flows.shell import main
from flows.steps import job_flow, publish, run_job

ALONE = ClusterConfig()


@job_flow("ingest-dataset")
def ingest_dataset(config: IngestConfig, cluster: ClusterConfig = ALONE, notify: str | None = None) -> DatasetInfo:
    """Bring a labelled dataset into Parquet and show what it holds."""
    dataset = run_job("ingest", job.run, DatasetInfo, config, cluster)
    publish("ingest-dataset", summary(dataset), config.out)
    return dataset


def summary(dataset: DatasetInfo) -> str:
    """Return the dataset's counts as Markdown."""
    splits = list(dataset.counts)
    lines = [f"# {dataset.samples:,} samples of {dataset.source}", ""]
    lines += [f"| class | {' | '.join(splits)} |", f"|---|{'--:|' * len(splits)}"]
    for name in dataset.label_space.classes:
        lines.append(f"| {name} | {' | '.join(f'{dataset.counts[split].get(name, 0):,}' for split in splits)} |")
    return "\n".join([*lines, "", f"{dataset.quarantined:,} quarantined, dropped: {dataset.dropped or 'none'}. {dataset.terms}"])


if __name__ == "__main__":
    main(ingest_dataset, IngestConfig)
