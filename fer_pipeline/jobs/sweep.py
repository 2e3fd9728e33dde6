"""Search a recipe's settings with Ray Tune: trials share the cluster, and ASHA stops the worse ones early (Li et al., 2020)."""

import csv
import io
import json
import logging
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from fer_pipeline.base import storage
from fer_pipeline.base.config import Config, explain, require_same
from fer_pipeline.base.errors import UserError
from fer_pipeline.datasets.dataset import DatasetInfo, read_dataset
from fer_pipeline.engine.connect import ClusterConfig, connected
from fer_pipeline.jobs.lineage import traced
from fer_pipeline.jobs.train.config import TrainConfig
from fer_pipeline.jobs.train.plan import facts_of, make_plan
from fer_pipeline.jobs.train.rank import Plan, make_trainer
from fer_pipeline.models.recipe import Recipe, load_recipe, recipe_toml
from fer_pipeline.models.training.trainer import DivergedError, Epoch
from fer_pipeline.report.sweep import sweep_png

log = logging.getLogger(__name__)

TRIALS_FOLDER, SWEEP, TABLE, PICTURE, BEST = "trials", "sweep.json", "trials.csv", "trials.png", "best.toml"


class SweepConfig(Config):
    """Train a recipe with many settings; write a table, a picture and the best recipe."""

    recipe: str
    """Name of a recipe that comes with the package, or a .toml file."""
    space: str
    """TOML file with the recipe's sections and keys: a list is a choice, `{ low = .., high = .., log = true }` a range."""
    data: str
    """Folder of an ingested dataset."""
    out: str
    """Folder of the results; the same command continues a sweep that was killed."""
    trials: int = Field(16, ge=1)
    """Number of settings to try."""
    grace_epochs: int = Field(2, ge=1)
    """Epochs that every trial runs before it can be stopped."""
    keep_one_in: int = Field(3, ge=2)
    """At each rung, one in this many trials continues."""
    cpus_per_trial: int = Field(1, ge=1)
    gpus_per_trial: float = Field(0.0, ge=0)
    drop_leaks: bool = False
    """Exclude the dataset's flagged samples from training."""
    allow_missing_classes: bool = False
    """Train although the training split has no images of some classes."""
    seed: int = Field(0, ge=0)
    """Seed that draws the settings."""


class SweepResult(Config):
    """The outcome of a sweep."""

    out: str
    trials: int
    ended_early: int
    best: dict[str, Any]
    """The settings of the best trial."""
    best_accuracy: float
    """Accuracy on the validation split, on which the trials were compared."""


@traced("sweep", ("data",), ("out",))
def run(config: SweepConfig, cluster: ClusterConfig = ClusterConfig()) -> SweepResult:
    """Run the remaining trials, write the table, the picture and the best recipe, and return the outcome.

    Raise UserError, before any work, if the configuration is invalid.
    """
    data, out = storage.normalize(config.data), storage.normalize(config.out)
    storage.require_access(data, out)
    recipe, card = load_recipe(config.recipe), read_dataset(data)
    space = load_space(config.space, recipe)
    plan = make_plan(_train_config(config, data), recipe, card, data, None)
    with connected(cluster, data, out) as machines:
        if config.gpus_per_trial:
            machines.wait_for_gpus(max(1, int(config.gpus_per_trial)), "--gpus-per-trial", on_one_node=True)
        _require_same(out, _facts(config, plan, card))
        results = _tuner(config, recipe, card, data, out, space).fit()
    trials = [trial_row(results[n].config or {}, results[n].metrics_dataframe) for n in range(len(results))]
    trials = sorted((trial for trial in trials if trial["history"]), key=lambda t: (-t["accuracy"], json.dumps(t["settings"])))
    if not trials:
        raise UserError("No trial finished an epoch: lower the learning rates of the space.")
    names = list(space)
    storage.write_bytes(storage.join(out, TABLE), _table(trials, names))
    best = with_settings(recipe, trials[0]["settings"])
    storage.write_bytes(storage.join(out, BEST), recipe_toml(best).encode())
    storage.write_bytes(storage.join(out, PICTURE), sweep_png(trials, names))
    log.info("Best recipe: %s", storage.join(out, BEST))
    return SweepResult(
        out=out,
        trials=len(trials),
        ended_early=sum(len(trial["history"]) < recipe.training.epochs for trial in trials),
        best=trials[0]["settings"],
        best_accuracy=trials[0]["accuracy"],
    )


def _facts(config: SweepConfig, plan: Plan, card: DatasetInfo) -> dict[str, Any]:
    """Return the settings that decide a sweep's trials and their figures."""
    choice = config.model_dump(mode="json", include={"trials", "grace_epochs", "keep_one_in", "seed"})
    return facts_of(plan, card) | {"space": tomllib.loads(Path(config.space).read_text())} | choice


def _require_same(out: str, facts: dict[str, Any]) -> None:
    """Write the facts of a sweep beside its trials; raise UserError if the folder holds a sweep with other facts."""
    path = storage.join(out, SWEEP)
    if not storage.exists(path):
        storage.write_bytes(path, json.dumps(facts, indent=1).encode())
        return
    require_same(f"The sweep in '{out}'", facts, json.loads(storage.read_bytes(path)))


def load_space(path: str, recipe: Recipe) -> dict[str, Any]:
    """Return the domains by `section.key`; raise UserError for an unknown key or a value that the recipe rejects."""
    try:
        sections = tomllib.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"The search space '{path}' cannot be read: {error}.") from error
    space, known = dict[str, Any](), recipe.model_dump()
    for section, keys in sections.items():
        if not isinstance(keys, dict) or not isinstance(known.get(section), dict):
            raise UserError(f"The search space '{path}' must put its settings in sections of the recipe, such as [training].")
        for key, domain in keys.items():
            space[f"{section}.{key}"] = _domain(f"{section}.{key}", domain)
            samples = domain if isinstance(domain, list) else [domain["low"], domain["high"]]
            for value in samples:
                with_settings(recipe, {f"{section}.{key}": value})
    if not space:
        raise UserError(f"The search space '{path}' is empty: add a setting.")
    return space


def _domain(name: str, domain: Any) -> Any:
    if isinstance(domain, list) and domain:
        return tune.choice(domain)
    if isinstance(domain, dict) and _is_range(domain):
        whole = isinstance(domain["low"], int) and isinstance(domain["high"], int)
        if domain.get("log"):
            return tune.lograndint(domain["low"], domain["high"] + 1) if whole else tune.loguniform(domain["low"], domain["high"])
        return tune.randint(domain["low"], domain["high"] + 1) if whole else tune.uniform(domain["low"], domain["high"])
    raise UserError(
        f"The search space's {name} must be a list of values, or {{ low = .., high = .., log = true }}, where low is below high, "
        "and above 0 with log."
    )


def _is_range(domain: dict[str, Any]) -> bool:
    if not {"low", "high"} <= set(domain) <= {"low", "high", "log"}:
        return False
    low, high = domain["low"], domain["high"]
    numbers = type(low) in (int, float) and type(high) in (int, float)
    return bool(numbers and low < high and (low > 0 or not domain.get("log")))


def with_settings(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """Return the recipe with new values by `section.key`; raise UserError if the recipe rejects one."""
    values = recipe.model_dump()
    for name, value in settings.items():
        section, _, key = name.partition(".")
        values.setdefault(section, {})[key] = value
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(f"The search space does not fit the recipe: {explain(error)}.") from error


def _train_config(config: SweepConfig, data: str) -> TrainConfig:
    return TrainConfig(
        recipe=config.recipe,
        data=data,
        out=config.out,
        drop_leaks=config.drop_leaks,
        allow_missing_classes=config.allow_missing_classes,
        data_from="device",
    )


def _tuner(config: SweepConfig, recipe: Recipe, card: DatasetInfo, data: str, out: str, space: dict[str, Any]) -> tune.Tuner:
    filesystem, path = storage.checkpoint_filesystem(out)

    def trial(settings: dict[str, Any]) -> None:
        _trial(with_settings(recipe, settings), config, card, data)

    resources = {"cpu": config.cpus_per_trial, "gpu": config.gpus_per_trial}
    trainable = tune.with_resources(trial, resources)
    if storage.exists(storage.join(out, TRIALS_FOLDER, "tuner.pkl")):
        return tune.Tuner.restore(f"{path}/{TRIALS_FOLDER}", trainable, storage_filesystem=filesystem, restart_errored=True)
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="validation_accuracy",
            mode="max",
            num_samples=config.trials,
            scheduler=ASHAScheduler(
                time_attr="epoch",
                max_t=recipe.training.epochs,
                grace_period=min(config.grace_epochs, recipe.training.epochs),
                reduction_factor=config.keep_one_in,
            ),
            search_alg=tune.search.BasicVariantGenerator(random_state=config.seed),
        ),
        run_config=tune.RunConfig(
            name=TRIALS_FOLDER,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=tune.FailureConfig(max_failures=1),
            verbose=0,
        ),
    )


def _trial(recipe: Recipe, config: SweepConfig, card: DatasetInfo, data: str) -> None:
    """Train in this process and report every epoch; a trial that diverges ends early without an error."""
    torch.set_num_threads(config.cpus_per_trial)
    plan = make_plan(_train_config(config, data), recipe, card, data, None)
    trainer = make_trainer(plan, torch.device("cuda" if config.gpus_per_trial else "cpu"))

    def on_epoch(epoch: Epoch) -> None:
        tune.report(asdict(epoch))

    try:
        trainer.fit([plan.validation.load().to("cpu")], on_epoch)
    except DivergedError:
        return


def trial_row(settings: dict[str, Any], history: Any) -> dict[str, Any]:
    """Return a trial's settings, its validation accuracy by epoch, and the best accuracy."""
    epochs = [] if history is None or "validation_accuracy" not in history else history["validation_accuracy"].tolist()
    return {"settings": settings, "history": epochs, "accuracy": max(epochs, default=0.0)}


def _table(trials: list[dict[str, Any]], names: list[str]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([*names, "epochs", "best_validation_accuracy"])
    for trial in trials:
        values = [json.dumps(trial["settings"][name]) for name in names]
        writer.writerow([*values, len(trial["history"]), f"{trial['accuracy']:.4f}"])
    return out.getvalue().encode()
