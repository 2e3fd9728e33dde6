"""Train a better model as a Prefect flow: ingest, train, evaluate, push, and promote it if it is better.

Run it once:     python -m flows.retrain retrain.toml
"""

from typing import Annotated

from prefect import task
from pydantic import Field

from fer_pipeline.core import storage
from fer_pipeline.core.config import PLACE, Config
from fer_pipeline.core.dataset import DatasetInfo
from fer_pipeline.core.text import in_markdown, table_row
from fer_pipeline.jobs import evaluate, ingest, promote
from fer_pipeline.jobs.cluster import ClusterConfig
from fer_pipeline.jobs.evaluate import EvaluateConfig, EvaluateResult
from fer_pipeline.jobs.ingest import IngestConfig
from fer_pipeline.jobs.promote import PromoteConfig, Verdict
from fer_pipeline.jobs.train import job as train
from fer_pipeline.jobs.train.job import TrainConfig, TrainResult
from fer_pipeline.local import models, quantize
from fer_pipeline.local.models import PushConfig
from fer_pipeline.local.quantize import QuantizeConfig
from fer_pipeline.models.comparison import Rule
from fer_pipeline.models.recipe import load_recipe
from fer_pipeline.models.registry import Version, open_registry
from fer_pipeline.stages.classify import Precision
from flows.retries import may_pass
from flows.shell import main
from flows.steps import job_flow, publish, run_job, tag

ALONE = ClusterConfig()


class RetrainConfig(Config):
    """Train a candidate and let it replace the model that an alias stands for. `{date}` in a path stands for today's date."""

    ingest: IngestConfig | None = None
    """The dataset to bring in first; without it `train.data` is there already."""
    train: TrainConfig
    """The candidate; its folder gets the evaluation beside it."""
    name: str
    """The model's name in the registry."""
    registry: Annotated[str | None, PLACE] = None
    """Folder or s3:// URL; by default $FER_PIPELINE_REGISTRY."""
    alias: str = "production"
    """The alias that moves if the candidate is better. The first version of a name gets it at once."""
    split: str = "validation"
    """On which split both are compared: `test` says more than the split that selected the candidate (`ingest.test_share`)."""
    quantize: bool = True
    """Give the candidate its int8 form, which labelling on CPUs takes."""
    rule: Rule = Field(default_factory=Rule)
    """What the candidate must show."""


@job_flow("retrain")
def retrain(config: RetrainConfig, cluster: ClusterConfig = ALONE, notify: str | None = None) -> Verdict | None:
    """Train a candidate, judge it on the same images as the incumbent, and promote it if the rule holds."""
    tag(model=config.name, recipe=config.train.recipe)
    if config.ingest:
        run_job("ingest", ingest.run, DatasetInfo, config.ingest, cluster)
    run_job("train", train.run, TrainResult, config.train, cluster)
    if config.quantize:
        add_int8_form(config)
    out = config.train.out
    precision: Precision = "int8" if config.quantize else "fp32"
    judged = EvaluateConfig(model=out, data=config.train.data, split=config.split, out=f"{out}.evaluation", precision=precision)
    figures = run_job("evaluate", evaluate.run, EvaluateResult, judged, cluster)
    version, first = push_candidate(config)
    if first:
        publish(
            "retrain", in_markdown(f"{config.name}@{version.version} is the first: {config.alias} stands for it."), config.name
        )
        return None
    wanted = PromoteConfig(
        name=config.name,
        version=version.version,
        data=config.train.data,
        split=config.split,
        alias=config.alias,
        registry=config.registry,
        rule=config.rule,
    )
    verdict = run_job("models promote", promote.run, Verdict, wanted, cluster)
    publish("retrain", summary(verdict, figures), f"{config.name}@{version.version}")
    return verdict


@task(retries=2, retry_delay_seconds=30, retry_condition_fn=may_pass)
def add_int8_form(config: RetrainConfig) -> None:
    """Quantize the candidate, calibrated on the split that selected it and not on the one that it is compared on."""
    recipe = load_recipe(config.train.recipe)
    wanted = QuantizeConfig(
        model=config.train.out, data=config.train.data, split=recipe.validation_split, ranges_split=recipe.train_split
    )
    quantize.run(wanted)


@task(retries=2, retry_delay_seconds=30, retry_condition_fn=may_pass)
def push_candidate(config: RetrainConfig) -> tuple[Version, bool]:
    """Keep the candidate as a new version; tell whether it is the first, which gets the alias without a comparison."""
    registry = open_registry(config.registry)
    standing = registry.aliases(config.name).get(config.alias)
    aliases = () if standing else (config.alias,)
    version = models.push(PushConfig(model=config.train.out, name=config.name, alias=aliases, registry=config.registry))
    verdicts = storage.join(registry.url, config.name, "verdicts", config.alias)
    return version, standing is None or (standing == version.version and not storage.list_names(verdicts))


def summary(verdict: Verdict, figures: EvaluateResult) -> str:
    """Return the verdict and the recall of each class under both models as Markdown."""
    found = verdict.comparison
    moved = "moves onto it" if verdict.promoted else f"stays on version {verdict.incumbent}"
    lines = [f"# {in_markdown(verdict.name)}@{verdict.candidate}: {verdict.alias} {moved}", ""]
    lines += [f"- {in_markdown(reason)}" for reason in found.reasons]
    lines += [f"- judged: {in_markdown(promote.describe(one))}" for one in verdict.judged]
    lines += [
        "",
        f"Accuracy {found.accuracy:.4f} beside {found.incumbent_accuracy:.4f} on {found.images:,} images, p = {found.p:.3g}.",
        "",
        "| class | recall | recall before | images |",
        "|---|--:|--:|--:|",
        *(table_row(name, f"{now:.3f}", f"{was:.3f}", f"{images:,}") for name, (now, was, images) in found.recalls.items()),
        "",
        f"Evaluation: {in_markdown(figures.out)}. Back: `models alias {verdict.name} {verdict.alias} {verdict.incumbent}`.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main(retrain, RetrainConfig)
