"""The plan of a labelling job, made once before any work: its model, its detector and every setting that changes a label."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fer_pipeline.archive.file_list import bases_of, root_of
from fer_pipeline.base import storage
from fer_pipeline.base.config import require_same
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.identity import Identity
from fer_pipeline.faces.classify import Precision, auto_precision, read_tried
from fer_pipeline.faces.detectors import DETECTORS, require_first_choice, resolve_detector
from fer_pipeline.faces.detectors.spec import ResolvedDetector
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.labelling.labeller import LabelSettings
from fer_pipeline.labelling.run import RunFolder, RunRecord, settings_digest
from fer_pipeline.models.bundle import Bundle
from fer_pipeline.table.audit import NIGHTS_LOOKED_AT
from fer_pipeline.table.nights import last_nights
from fer_pipeline.table.rows import require_free_columns


@dataclass(frozen=True)
class LabelPlan:
    """How a run labels. The run's record, the comparison with a table and the workers all read it."""

    config: LabelConfig
    folder: RunFolder
    detector: ResolvedDetector
    bundle: Bundle
    precision: Precision

    def __post_init__(self) -> None:
        """Raise UserError for an arithmetic that the model does not have: before any work."""
        self.bundle.computing_in(self.precision)

    @cached_property
    def root(self) -> str:
        """The normalized source, or the folder that the bases of a list have in common: all records are below it."""
        config = self.config
        return root_of(config.source, config.base) if config.uri_column else config.source

    @cached_property
    def settings(self) -> LabelSettings:
        """The settings that change a label, with every `auto` and every default decided."""
        config, threshold, uncertain_below = self.config, self.config.detection_threshold, self.config.uncertain_below
        calibration = self.bundle.computing_in(self.precision).card.calibration
        return LabelSettings(
            detect_px=config.detect_px,
            threshold=DETECTORS[self.detector.name].threshold if threshold is None else threshold,
            max_pixels=config.max_pixels,
            max_bytes=config.max_bytes,
            precision=self.precision,
            uncertain_below=calibration.uncertain_below if uncertain_below is None else uncertain_below,
            image_column=config.image_column,
            min_quality=config.min_quality,
        )

    @property
    def model(self) -> Identity:
        card = self.bundle.card
        return Identity(name=card.name, digest=self.bundle.digest, version=self.bundle.version, alias=self.bundle.alias)

    @property
    def frozen(self) -> dict[str, Any]:
        """Settings that a resumed run must keep: those that choose records, and those that change labels."""
        config = self.config
        choice = {
            "include": list(config.include),
            "exclude": list(config.exclude),
            "fps": config.fps,
            "table": config.table,
            "pages": config.pages,
            "zip_encoding": config.zip_encoding,
            "file_list": config.source if config.uri_column else None,
            "uri_column": config.uri_column,
            "base": bases_of(config.source, config.base) if config.uri_column else None,
            "keep": list(config.keep) or None,
            "sample": config.sample,
            "limit": config.limit,
            "reuse_faces": config.reuse_faces,
        }
        device = {"device": "gpu"} if config.gpus_per_worker else {}  # its detector computes differently than on cores
        return vars(self.settings) | choice | device | {"asked_uncertain_below": config.uncertain_below}

    @property
    def identity(self) -> dict[str, str]:
        """The digests in each row that this plan labels, by column."""
        return {
            "model_digest": self.bundle.digest,
            "detector_digest": self.detector.digest,
            "settings_digest": settings_digest(self.frozen),
        }

    @property
    def asks_processor(self) -> bool:
        """Whether the processors of the workers decide the arithmetic."""
        return self.config.precision == "auto" and _precision(self.config, self.bundle, has_bf16=True) == "bf16"

    def on_processors(self, has_bf16: bool) -> "LabelPlan":
        """Return the plan for processors with or without native bf16."""
        return replace(self, precision=_precision(self.config, self.bundle, has_bf16))

    def under(self, record: RunRecord) -> "LabelPlan":
        """Return the plan that continues a run, in the arithmetic that the run started with.

        Raise UserError unless it gives the same labels.
        """
        config = self.config
        plan = replace(self, precision=record.known.precision if config.precision == "auto" else config.precision)
        other_detector = config.detector not in ("auto", record.detector.name)
        ours = {
            "device": None,
            "source": plan.root,
            "model": plan.bundle.digest,
            "detector": config.detector if other_detector else plan.detector.digest,
            **plan.frozen,
        }
        theirs = {
            "pages": "largest",
            "source": record.source,
            "model": record.model.digest,
            "detector": record.detector.digest,
            **record.settings,
        }
        theirs["table"] = record.increment.table if record.increment else None  # labels are carried over from it
        shown = {"device": "device (--gpus-per-worker)", "file_list": "list of files"}  # settings without an option of their name
        asked, kept = ({shown.get(key, key): facts.get(key) for key in ours} for facts in (ours, theirs))
        require_same(f"The run in '{plan.folder.url}'", asked, kept)
        return plan


def with_normal_places(config: LabelConfig) -> LabelConfig:
    """Return the configuration with normalized paths and URLs."""
    places = {
        name: storage.normalize(url) for name in ("source", "out", "table", "reuse_faces") if (url := getattr(config, name))
    }
    return config.model_copy(update=places | {"base": tuple(map(storage.normalize, config.base))})


def make_plan(config: LabelConfig, folder: RunFolder, record: RunRecord | None, on_cluster: bool) -> LabelPlan:
    """Return the plan of a new run, or of the run with the record `record`.

    Raise UserError for a model or a detector that cannot be used, and if the folder holds another run.
    """
    _require_possible(config)
    bundle = read_tried(config.model, *(("fp32",) if config.gpus_per_worker else ()))
    if record is None and not storage.exists(config.source):
        raise UserError(f"The source '{config.source}' does not exist.")
    if record is None and not config.table and storage.is_below(config.out, config.source):
        raise UserError(
            f"The run folder '{config.out}' is below its source, which the run would read, too: choose another --out."
        )
    require_free_columns(bundle.card, config.keep)
    detector = resolve_detector(record.detector.name if record else config.detector, config.detector_weights)
    if not record and (on_cluster or config.table):
        where: Callable[[], str] = lambda: "On a cluster" if on_cluster else _on_table(config.table)  # noqa: E731
        require_first_choice(config.detector, detector, where)
    plan = LabelPlan(config, folder, detector, bundle, _precision(config, bundle, has_bf16=False))
    return plan.under(record) if record else plan


def _require_possible(config: LabelConfig) -> None:
    """Raise UserError for options that do not go together."""
    if not config.uri_column and (config.base or config.keep):
        raise UserError(f"--{'base' if config.base else 'keep'} is for a list of files: name its column by --uri-column.")
    if config.table and (config.sample or config.limit):
        raise UserError(f"--{'sample' if config.sample else 'limit'} is for a first try, without a table: leave one of them out.")


def _precision(config: LabelConfig, bundle: Bundle, has_bf16: bool) -> Precision:
    """Return the arithmetic that was asked for, or else the one that suits the bundle and the processors."""
    return auto_precision(bundle, bool(config.gpus_per_worker), has_bf16) if config.precision == "auto" else config.precision


def _on_table(url: str | None) -> str:
    """Return the start of a message on a table's detector: that of its last published night, if it has one."""
    nights = [night for night in last_nights(url, NIGHTS_LOOKED_AT) if night.state == "published"] if url else []
    return f"For a table whose faces {nights[-1].detector.name} found," if nights else "For a table"
