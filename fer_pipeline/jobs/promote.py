"""Promote a version of a registered model: move an alias to it only if it is significantly better on the same images."""

import logging
from typing import Annotated, Literal
from uuid import uuid4

from pydantic import ValidationError

from fer_pipeline.base import storage
from fer_pipeline.base.config import PLACE, Config
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.identity import now
from fer_pipeline.base.storage import parquet
from fer_pipeline.datasets.dataset import read_dataset, read_samples
from fer_pipeline.datasets.duplicates import split_digest
from fer_pipeline.datasets.layouts.layout import AUDIT
from fer_pipeline.engine.connect import ClusterConfig, connected
from fer_pipeline.faces.classify import Precision, auto_precision
from fer_pipeline.jobs import evaluate
from fer_pipeline.jobs.evaluate import EVALUATION, PREDICTIONS, EvaluateConfig
from fer_pipeline.jobs.lineage import traced
from fer_pipeline.models.bundle import read_bundle
from fer_pipeline.models.comparison import Comparison, Rule, compare
from fer_pipeline.models.figures import Evaluation
from fer_pipeline.models.registry import Registry, open_registry, require_alias

log = logging.getLogger(__name__)
MOST_USES = 3
"""Verdicts that the same images may give before others are asked for."""


class PromoteConfig(Config):
    """Move an alias to a version that beats its current version, on a split that neither learned from."""

    name: str
    """The model's name."""
    version: str
    """The candidate: a version of the model, or another alias."""
    data: Annotated[str, PLACE]
    """Folder of an ingested dataset."""
    split: str
    """Split of the dataset to compare on."""
    alias: str = "production"
    """The alias to move."""
    registry: Annotated[str | None, PLACE] = None
    """Folder or s3:// URL; by default $FER_PIPELINE_REGISTRY."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Precision in which the versions are judged; `auto` is what CPUs label with: int8 if a version has it, else fp32."""
    audited: bool = False
    """Require that the split is `audit`, the answers to an audit (`review --audit`), and that it has judged fewer than three
    candidates for this alias: then the figures are of the archive, and not of images that chose among many models."""
    rule: Rule = Rule()


class JudgedForm(Config):
    """How one of the two versions was judged."""

    version: str
    precision: Precision
    selected_on_this_split: bool
    """Whether the split chose its weights or fitted its calibration; its figures are then too good."""
    leaks_checked: bool


class Verdict(Config):
    """`NAME/verdicts/ALIAS/NUMBER.json` in the registry; of concurrent promotions only one can take the next number."""

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
    """Prefix of the folders of both evaluations."""
    judged: tuple[JudgedForm, ...] = ()
    """How the candidate and the incumbent were judged; empty in verdicts of earlier versions."""
    images: str | None = None
    """Digest of the split's images; None in verdicts of earlier versions."""
    uses: int = 1
    """How many verdicts on this alias these images gave, this one included: the more, the less they tell."""
    comparison: Comparison


@traced("promote", ("data",), ())
def run(config: PromoteConfig, cluster: ClusterConfig = ClusterConfig()) -> Verdict:
    """Compare the versions, write the verdict, move the alias if the rule holds, and return the verdict.

    Return the last verdict if it decided the same and still applies. Raise UserError if another promotion came first.
    """
    registry = open_registry(config.registry)
    require_alias(config.alias)
    if config.audited and (config.split != AUDIT or read_dataset(storage.normalize(config.data)).layout != "corrections"):
        what = f"'{config.split}' of '{config.data}'"
        raise UserError(f"--audited: compare on the split '{AUDIT}' of a dataset of layout corrections, not on {what}.")
    candidate = registry.resolve(config.name, config.version).version
    incumbent = registry.resolve(config.name, config.alias).version
    verdicts = storage.join(registry.url, config.name, "verdicts", config.alias)
    names = [name for name in storage.list_names(verdicts) if name.endswith(".json")]
    last = _read_verdict(storage.join(verdicts, names[-1])) if names else None
    if last and _answers(last, config, registry, candidate, incumbent):
        log.info("Verdict %d decided this: there is nothing to do", last.number)
        return last
    if candidate == incumbent:
        raise UserError(f"{config.name}@{config.alias} is version {incumbent} already: name another candidate.")
    number = 1 + len(names)
    images = split_digest(read_samples(storage.normalize(config.data), ["split", "sha256"]), config.split)
    earlier = filter(None, (_read_verdict(storage.join(verdicts, name)) for name in names))
    uses = 1 + sum(one.images == images for one in earlier)
    if config.audited and uses > MOST_USES:
        raise UserError(f"--audited: these answers have judged {uses - 1} candidates: draw a fresh audit and ingest its answers.")
    with connected(cluster, storage.normalize(config.data), registry.url):
        evidence = f"{verdicts}/{number:06d}-{uuid4().hex[:8]}"
        comparison, judged = _compared(config, registry, candidate, incumbent, evidence, cluster)
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
        judged=judged,
        images=images,
        uses=uses,
        comparison=comparison,
    )
    still = registry.resolve(config.name, config.alias).version
    if still != incumbent or not storage.create(f"{verdicts}/{number:06d}.json", verdict.model_dump_json(indent=1).encode()):
        raise UserError(f"Another promotion decided on {config.name}@{config.alias} meanwhile: run the same command again.")
    log.info("Judged: %s", "; ".join(map(describe, judged)))
    if used_up := worn(verdict):
        log.warning("%s", used_up)
    if verdict.promoted:
        registry.point(config.name, config.alias, candidate)
        log.info("%s@%s is version %s now; to undo: models alias %s %s %s", config.name, config.alias, candidate, config.name,
                 config.alias, incumbent)  # fmt: skip
    else:
        log.warning("%s@%s stays version %s: %s", config.name, config.alias, incumbent, "; ".join(comparison.reasons))
    return verdict


def _read_verdict(url: str) -> Verdict | None:
    """Return a verdict; None if an earlier version wrote it with a rule that no longer exists."""
    try:
        return Verdict.model_validate_json(storage.read_bytes(url))
    except ValidationError:
        return None


def _form(config: PromoteConfig, registry: Registry, version: str) -> Precision:
    """Return the precision in which a version is judged."""
    if config.precision != "auto":
        return config.precision
    return auto_precision(read_bundle(f"{registry.url}/{config.name}@{version}"), on_gpu=False, has_bf16=False)


def _answers(verdict: Verdict, config: PromoteConfig, registry: Registry, candidate: str, incumbent: str) -> bool:
    """Tell whether a verdict decided the same question on the same data, and the alias is still as it left it."""
    asked = candidate, config.data, config.split, config.rule
    is_worn = config.audited and verdict.uses > MOST_USES
    if is_worn or (verdict.candidate, verdict.data, verdict.split, verdict.rule) != asked or not verdict.judged:
        return False
    same_form = all(one.precision == _form(config, registry, one.version) for one in verdict.judged)
    evaluation = storage.join(f"{verdict.evidence}-{candidate}", EVALUATION)
    if not same_form or incumbent != (candidate if verdict.promoted else verdict.incumbent) or not storage.exists(evaluation):
        return False
    kept = Evaluation.model_validate_json(storage.read_bytes(evaluation))
    return kept.data.digest == read_dataset(storage.normalize(config.data)).digest


def worn(verdict: Verdict) -> str | None:
    """Return that the images judged often, if they did: among many candidates one is better on them by chance."""
    if verdict.uses <= MOST_USES:
        return None
    return f"These images have judged {verdict.uses} candidates: draw others, such as by a fresh `fer-pipeline review --audit`."


def describe(judged: JudgedForm) -> str:
    """Return how a version was judged, for a message."""
    flattered = ", on the very images that selected it" if judged.selected_on_this_split else ""
    leaks = "" if judged.leaks_checked else ", leaks not checked"
    return f"version {judged.version} in {judged.precision}{flattered}{leaks}"


def _compared(
    config: PromoteConfig, registry: Registry, candidate: str, incumbent: str, folder: str, cluster: ClusterConfig
) -> tuple[Comparison, tuple[JudgedForm, ...]]:
    """Evaluate both versions into folders of the verdict and compare their predictions image by image."""
    answers, judged = [], list[JudgedForm]()
    for version in (candidate, incumbent):
        model, out = f"{registry.url}/{config.name}@{version}", f"{folder}-{version}"
        precision = _form(config, registry, version)
        wanted = EvaluateConfig(model=model, data=config.data, split=config.split, out=out, precision=precision)
        found = evaluate.run(wanted, cluster)
        judged.append(
            JudgedForm(
                version=version,
                precision=precision,
                selected_on_this_split=found.selected_on_this_split,
                leaks_checked=found.leaks_checked,
            )
        )
        answers.append(parquet.read_table(storage.join(out, PREDICTIONS)).sort_by("sample_id"))
    first, second = answers
    if not first["sample_id"].equals(second["sample_id"]) or not first["label"].equals(second["label"]):
        raise UserError(f"{config.name}@{candidate} and @{incumbent} have different classes: choose another candidate.")
    fresh = first["copy_of_training"].is_null().to_numpy() & second["copy_of_training"].is_null().to_numpy()
    labels, answer, former = (column.to_pylist() for column in (first["label"], first["expression"], second["expression"]))
    unchecked = [f"version {one.version}" for one in judged if not one.leaks_checked]
    return compare(labels, answer, former, fresh, config.rule, unchecked), tuple(judged)
