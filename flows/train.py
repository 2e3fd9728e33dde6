"""Train a recipe as a Prefect flow: the job with a retry, and its figures as an artifact.

Run it once:     python -m flows.train '{"recipe": "fer2013-small", "data": "data/fer2013", "out": "models/new"}'
"""

import sys

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact

from fer_pipeline.jobs.cluster import ClusterConfig
from fer_pipeline.jobs.train import job as train
from fer_pipeline.jobs.train.job import TrainConfig, TrainResult
from flows.retries import may_pass


@task(retries=1, retry_delay_seconds=30, retry_condition_fn=may_pass)
def run_train_job(config: TrainConfig, cluster: ClusterConfig) -> TrainResult:
    """Run the job; a retry continues from the last checkpoint."""
    return train.run(config, cluster)


@flow(name="train-model")
def train_model(config: TrainConfig, cluster: ClusterConfig | None = None) -> TrainResult:
    """Train a model bundle and publish its figures."""
    result = run_train_job(config, cluster or ClusterConfig())
    create_markdown_artifact(key="train-model", markdown=summary(result), description=result.name)
    return result


def summary(result: TrainResult) -> str:
    """Return the training's figures as Markdown."""
    return "\n".join(
        [
            f"# {result.name}",
            "",
            "| figure | value |",
            "|---|--:|",
            f"| validation accuracy | {result.validation_accuracy:.4f} |",
            f"| validation macro-F1 | {result.validation_macro_f1:.4f} |",
            f"| selected epoch | {result.selected_epoch} of {result.epochs} |",
            f"| training images/s | {result.images_per_s:,} |",
            "",
            f"Bundle: `{result.out}`. The epoch was selected on the same validation split.",
        ]
    )


if __name__ == "__main__":
    train_model(TrainConfig.model_validate_json(sys.argv[1]))
