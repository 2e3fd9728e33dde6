"""Promote a version of a registered model: an alias moves onto it only where it is better, beyond chance, on the same images."""

import logging
from uuid import uuid4

from fer_pipeline.core import storage
from fer_pipeline.core.config import Config
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.run import now
from fer_pipeline.jobs import evaluate
from fer_pipeline.jobs.cluster import ClusterConfig, connected
from fer_pipeline.jobs.evaluate import PREDICTIONS, EvaluateConfig
from fer_pipeline.models.comparison import Comparison, Rule, compare
from fer_pipeline.models.registry import Registry, open_registry, require_alias

log = logging.getLogger(__name__)


class PromoteConfig(Config):
    """Move an alias onto a version that beats the one it stands for, on a split that neither learned from."""

    name: str
    """The model's name."""
    version: str
    """The candidate: a version of it, or another alias."""
    data: str
    """Folder of an ingested dataset."""
    split: str
    """Which of its splits."""
    alias: str = "production"
    """The alias to move."""
    registry: str | None = None
    """Folder or s3:// URL; by default $FER_PIPELINE_REGISTRY."""
    rule: Rule = Rule()


class Verdict(Config):
    """`NAME/verdicts/ALIAS/NUMBER.json` in the registry; the next number is free for one promotion alone."""

    name: str
    alias: str
    number: int
    candidate: str
    incumbent: str
    promoted: bool
    decided_at: str
    data: str
    split: str
    rule: Rule
    evidence: str
    """What the folders of both evaluations begin with."""
    comparison: Comparison


def run(config: PromoteConfig, cluster: ClusterConfig = ClusterConfig()) -> Verdict:
    """Compare, keep the verdict, and move the alias where the rule holds. Raise UserError where another promotion came first."""
    registry = open_registry(config.registry)
    require_alias(config.alias)
    candidate = registry.resolve(config.name, config.version).version
    incumbent = registry.resolve(config.name, config.alias).version
    if candidate == incumbent:
        raise UserError(f"{config.name}@{config.alias} is version {incumbent} already: name another candidate.")
    verdicts = storage.join(registry.url, config.name, "verdicts", config.alias)
    number = 1 + len([name for name in storage.list_names(verdicts) if name.endswith(".json")])
    with connected(cluster, storage.normalize(config.data), registry.url):
        evidence = f"{verdicts}/{number:06d}-{uuid4().hex[:8]}"
        comparison = _compared(config, registry, candidate, incumbent, evidence, cluster)
    verdict = Verdict(
        name=config.name,
        alias=config.alias,
        number=number,
        candidate=candidate,
        incumbent=incumbent,
        promoted=not comparison.reasons,
        decided_at=now(),
        data=config.data,
        split=config.split,
        rule=config.rule,
        evidence=evidence,
        comparison=comparison,
    )
    still = registry.resolve(config.name, config.alias).version
    if still != incumbent or not storage.create(f"{verdicts}/{number:06d}.json", verdict.model_dump_json(indent=1).encode()):
        raise UserError(
            f"{config.name}@{config.alias} was decided on by another promotion meanwhile: run the same command again."
        )
    if verdict.promoted:
        registry.point(config.name, config.alias, candidate)
        log.info("%s@%s is version %s now; back: models alias %s %s %s", config.name, config.alias, candidate, config.name,
                 config.alias, incumbent)  # fmt: skip
    else:
        log.warning("%s@%s stays version %s: %s", config.name, config.alias, incumbent, "; ".join(comparison.reasons))
    return verdict


def _compared(
    config: PromoteConfig, registry: Registry, candidate: str, incumbent: str, folder: str, cluster: ClusterConfig
) -> Comparison:
    """Evaluate both models into folders of the verdict and compare their answers, image by image."""
    answers = []
    for version in (candidate, incumbent):
        model, out = f"{registry.url}/{config.name}@{version}", f"{folder}-{version}"
        evaluate.run(EvaluateConfig(model=model, data=config.data, split=config.split, out=out), cluster)
        answers.append(storage.read_table(storage.join(out, PREDICTIONS)).sort_by("sample_id"))
    first, second = answers
    if not first["sample_id"].equals(second["sample_id"]) or not first["label"].equals(second["label"]):
        raise UserError(f"{config.name}@{candidate} and @{incumbent} do not have the same classes: they cannot be compared.")
    fresh = first["copy_of_training"].is_null().to_numpy() & second["copy_of_training"].is_null().to_numpy()
    labels, answer, former = (column.to_pylist() for column in (first["label"], first["expression"], second["expression"]))
    return compare(labels, answer, former, fresh, config.rule)
