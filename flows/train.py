"""Train a recipe as a Prefect flow: run the job with retries and show its metrics as an artifact.

Run it once:     python -m flows.train '{"recipe": "fer2013-small", "data": "data/fer2013", "out": "models/new"}'
"""

from fer_pipeline.base.text import in_markdown
from fer_pipeline.engine.connect import ClusterConfig
from fer_pipeline.jobs.train import job as train
from fer_pipeline.jobs.train.config import TrainConfig, TrainResult
from flows.shell import main
from flows.steps import THIS_MACHINE, job_flow, run_job, show_page, tag


@job_flow("train-model")
def train_model(config: TrainConfig, cluster: ClusterConfig = THIS_MACHINE, notify: str | None = None) -> TrainResult:
    """Train a model bundle and show its metrics."""
    tag(recipe=config.recipe)
    result = run_job("train", train.run, TrainResult, config, cluster)
    show_page("train-model", summary(result), result.name)
    return result


def summary(result: TrainResult) -> str:
    """Return the metrics of the training as Markdown."""
    return "\n".join(
        [
            f"# {in_markdown(result.name)}",
            "",
            "| figure | value |",
            "|---|--:|",
            f"| validation accuracy | {result.validation_accuracy:.4f} |",
            f"| validation macro-F1 | {result.validation_macro_f1:.4f} |",
            f"| selected epoch | {result.selected_epoch} of {result.epochs} |",
            f"| training images/s | {result.images_per_s:,} |",
            "",
            f"Bundle: {in_markdown(result.out)}. The epoch was selected on the same validation split.",
        ]
    )


if __name__ == "__main__":
    main(train_model, TrainConfig)
