"""Train a better model as a Prefect flow: ingest, train, evaluate, push, and promote the model if it is better.

Run it once:     python -m flows.retrain retrain.toml
"""

from typing import Annotated

from prefect import task
from pydantic import Field, model_validator

from fer_pipeline.base import storage
from fer_pipeline.base.config import PLACE, Config
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.text import in_markdown, table_row
from fer_pipeline.cli import models, quantize
from fer_pipeline.cli.models import PushConfig
from fer_pipeline.cli.quantize import QuantizeConfig
from fer_pipeline.datasets.dataset import DatasetInfo
from fer_pipeline.datasets.layouts.corrections import CORRECTIONS_LAYOUT
from fer_pipeline.datasets.layouts.layout import AUDIT
from fer_pipeline.engine.connect import ClusterConfig
from fer_pipeline.faces.classify import Precision
from fer_pipeline.jobs import evaluate, ingest, promote
from fer_pipeline.jobs.evaluate import EvaluateConfig, EvaluateResult
from fer_pipeline.jobs.ingest import IngestConfig
from fer_pipeline.jobs.promote import PromoteConfig, Verdict
from fer_pipeline.jobs.train import job as train
from fer_pipeline.jobs.train.config import TrainConfig, TrainResult
from fer_pipeline.models.comparison import Rule
from fer_pipeline.models.recipe import load_recipe
from fer_pipeline.models.registry import Version, open_registry
from flows.retries import may_pass
from flows.shell import main
from flows.steps import THIS_MACHINE, job_flow, run_job, show_page, tag


class RetrainConfig(Config):
    """Train a candidate that can replace the model behind an alias. `{date}` in a path is replaced by the date of the run."""

    ingest: IngestConfig | None = None
    """The dataset to ingest first. Without it, `train.data` must exist already."""
    train: TrainConfig
    """The training of the candidate. The evaluation is written beside its `out` folder."""
    corrections: Annotated[str | None, PLACE] = None
    """A run folder or a table whose corrected faces are learned, too, with `train.mix_weight`. Both models are then compared on
    its faces that were chosen at random, which no training learns. They are ingested beside the candidate's `out` folder."""
    name: str
    """The model's name in the registry."""
    registry: Annotated[str | None, PLACE] = None
    """Folder or s3:// URL of the registry. The default is $FER_PIPELINE_REGISTRY."""
    alias: str = "production"
    """The alias that moves if the candidate is better. The first version of a model gets it without a comparison."""
    split: str = "validation"
    """The split on which both are compared without `corrections`. Prefer `test` (`ingest.test_share`): `validation` selected the
    candidate."""
    quantize: bool = True
    """Add the int8 form of the candidate, which labelling on CPUs uses."""
    rule: Rule = Field(default_factory=Rule)
    """The conditions under which the candidate is promoted."""

    @model_validator(mode="after")
    def _require_one_mix(self) -> "RetrainConfig":
        if self.corrections and self.train.mix:
            raise ValueError("corrections are what the training mixes: leave out train.mix")
        return self


@job_flow("retrain")
def retrain(config: RetrainConfig, cluster: ClusterConfig = THIS_MACHINE, notify: str | None = None) -> Verdict | None:
    """Train a candidate, compare it with the incumbent on the same images, and promote it if the rule holds."""
    tag(model=config.name, recipe=config.train.recipe)
    if config.ingest:
        run_job("ingest", ingest.run, DatasetInfo, config.ingest, cluster)
    data, split = config.train.data, config.split
    if config.corrections:
        data, split = ingest_corrections(config, cluster), AUDIT
        config = config.model_copy(update={"train": config.train.model_copy(update={"mix": data}), "corrections": None})
    run_job("train", train.run, TrainResult, config.train, cluster)
    if config.quantize:
        add_int8_form(config)
    out = config.train.out
    precision: Precision = "int8" if config.quantize else "fp32"
    judged = EvaluateConfig(model=out, data=data, split=split, out=f"{out}.evaluation", precision=precision)
    figures = run_job("evaluate", evaluate.run, EvaluateResult, judged, cluster)
    version, first = push_candidate(config)
    if first:
        show_page(
            "retrain", in_markdown(f"{config.name}@{version.version} is the first version: {config.alias} names it."), config.name
        )
        return None
    wanted = PromoteConfig(
        name=config.name,
        version=version.version,
        data=data,
        split=split,
        alias=config.alias,
        registry=config.registry,
        rule=config.rule,
    )
    verdict = run_job("models promote", promote.run, Verdict, wanted, cluster)
    show_page("retrain", summary(verdict, figures), f"{config.name}@{version.version}")
    return verdict


def ingest_corrections(config: RetrainConfig, cluster: ClusterConfig) -> str:
    """Ingest the corrected faces as those of the training are cut, and return the dataset's folder.

    Raise UserError if no answer is about a face that was chosen at random: nothing could compare the models.
    """
    recipe, given, out = load_recipe(config.train.recipe), config.ingest, f"{config.train.out}.corrections"
    detector = given.model_dump(include={"detector", "detector_weights"}) if given else {}
    wanted = IngestConfig(
        source=str(config.corrections),
        out=out,
        layout=CORRECTIONS_LAYOUT.name,
        label_space=given.label_space if given else recipe.label_space,
        framing=config.train.data,
        crop_px=recipe.network.image_px,
        **detector,
    )
    found = run_job("ingest", ingest.run, DatasetInfo, wanted, cluster, "ingest corrections")
    if AUDIT not in found.counts:
        raise UserError(
            f"No answer in '{config.corrections}' is about a face that was chosen at random, so nothing can compare the models: "
            "ask for some by `fer-pipeline review --pick`."
        )
    return out


@task(retries=2, retry_delay_seconds=30, retry_condition_fn=may_pass)
def add_int8_form(config: RetrainConfig) -> None:
    """Quantize the candidate. Calibrate on the split that selected it, not on the split of the comparison."""
    recipe = load_recipe(config.train.recipe)
    wanted = QuantizeConfig(
        model=config.train.out, data=config.train.data, split=recipe.validation_split, ranges_split=recipe.train_split
    )
    quantize.run(wanted)


@task(retries=2, retry_delay_seconds=30, retry_condition_fn=may_pass)
def push_candidate(config: RetrainConfig) -> tuple[Version, bool]:
    """Push the candidate as a new version. Return it and whether it is the first, which needs no comparison."""
    registry = open_registry(config.registry)
    current = registry.aliases(config.name).get(config.alias)
    aliases = () if current else (config.alias,)
    version = models.push(PushConfig(model=config.train.out, name=config.name, alias=aliases, registry=config.registry))
    verdicts = storage.join(registry.url, config.name, "verdicts", config.alias)
    return version, current is None or (current == version.version and not storage.list_names(verdicts))


def summary(verdict: Verdict, figures: EvaluateResult) -> str:
    """Return the verdict and the recall of each class for both models as Markdown."""
    found = verdict.comparison
    moved = "moves to it" if verdict.promoted else f"stays on version {verdict.incumbent}"
    lines = [f"# {in_markdown(verdict.name)}@{verdict.candidate}: {verdict.alias} {moved}", ""]
    lines += [f"- {in_markdown(reason)}" for reason in found.reasons]
    lines += [f"- judged: {in_markdown(promote.describe(one))}" for one in verdict.judged]
    lines += [f"- {in_markdown(used_up)}"] if (used_up := promote.worn(verdict)) else []
    lines += [
        "",
        f"Accuracy {found.accuracy:.4f}, before {found.incumbent_accuracy:.4f}, on {found.images:,} images, p = {found.p:.3g}.",
        "",
        "| class | recall | recall before | images |",
        "|---|--:|--:|--:|",
        *(table_row(name, f"{now:.3f}", f"{was:.3f}", f"{images:,}") for name, (now, was, images) in found.recalls.items()),
        "",
        f"Evaluation: {in_markdown(figures.out)}. Roll back: `models alias {verdict.name} {verdict.alias} {verdict.incumbent}`.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main(retrain, RetrainConfig)
