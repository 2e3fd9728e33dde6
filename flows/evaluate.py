"""Evaluate a model as a Prefect flow.

Run it once:     python -m flows.evaluate '{"model": "embedded", "data": "data/fer2013", "split": "validation", "out": "judged"}'
"""

from fer_pipeline.base.text import in_markdown
from fer_pipeline.engine.connect import ClusterConfig
from fer_pipeline.jobs import evaluate as job
from fer_pipeline.jobs.evaluate import PAGE, EvaluateConfig, EvaluateResult
from flows.shell import main
from flows.steps import THIS_MACHINE, job_flow, run_job, show_page, tag


@job_flow("evaluate-model")
def evaluate_model(config: EvaluateConfig, cluster: ClusterConfig = THIS_MACHINE, notify: str | None = None) -> EvaluateResult:
    """Evaluate a model on a split and show its metrics."""
    tag(model=config.model)
    result = run_job("evaluate", job.run, EvaluateResult, config, cluster)
    show_page("evaluate-model", summary(result), config.model)
    return result


def summary(result: EvaluateResult) -> str:
    """Return the metrics as Markdown."""
    figures = {
        "images": f"{result.images:,}",
        "accuracy (95 %)": f"{result.accuracy:.3f} ({result.accuracy_95[0]:.3f} to {result.accuracy_95[1]:.3f})",
        "macro-F1": f"{result.macro_f1:.3f}",
        "unweighted average recall": f"{result.uar:.3f}",
        "ECE, cross-fitted": "–" if result.ece_cross_fitted is None else f"{result.ece_cross_fitted:.3f}",
    }
    lines = ["| figure | value |", "|---|--:|", *(f"| {name} | {value} |" for name, value in figures.items())]
    warning = (
        ["", "The model was selected on these images: expect lower metrics on others."] if result.selected_on_this_split else []
    )
    return "\n".join([*lines, *warning, "", f"Page: {in_markdown(f'{result.out}/{PAGE}')}"])


if __name__ == "__main__":
    main(evaluate_model, EvaluateConfig)
