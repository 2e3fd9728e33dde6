"""What a labelling worker keeps between tasks, and the limits that it works under."""

import platform
from collections.abc import Container
from dataclasses import dataclass

import pyarrow as pa

from fer_pipeline.core.isolated import alarm
from fer_pipeline.core.memory import bounded_memory
from fer_pipeline.core.run import RunFolder, RunRecord, with_lineage
from fer_pipeline.core.stage_clock import timed
from fer_pipeline.jobs.metrics import count_shard
from fer_pipeline.jobs.shared import Shared
from fer_pipeline.models.bundle import Bundle
from fer_pipeline.stages.detectors.spec import ResolvedDetector
from fer_pipeline.stages.label import Labeller, LabelSettings
from fer_pipeline.table.reuse import Reusable


@dataclass(frozen=True)
class LabelContext:
    """What every worker of a run needs."""

    folder: RunFolder
    record: RunRecord
    detector: ResolvedDetector
    bundle: Bundle
    settings: LabelSettings
    record_timeout_s: float
    record_memory_bytes: int
    reusable: Reusable | None = None
    """Labels that the published table has, by the bytes that they are of."""

    @property
    def known(self) -> Container[str]:
        return () if self.reusable is None else self.reusable

    def commit(self, shard: int, labelled: pa.Table) -> None:
        """Commit a shard's rows of `schemas.LABELLED`, and count them."""
        with timed("commit"):
            images = with_lineage(labelled, self.record)
            images = self.reusable.carry_over(images) if self.reusable else images
            self.folder.commit(shard, images)
        count_shard(images)


def slow_machine(settings: LabelSettings, has_bf16: bool) -> str | None:
    """Return this machine's name where it must emulate the arithmetic that the run has frozen."""
    return platform.node() if settings.precision == "bf16" and not has_bf16 else None


def load_context(context: Shared[LabelContext]) -> LabelContext:
    """Return what a run's workers need, taken out of Ray's store once."""
    return context.load(_itself)


def load_labeller(context: Shared[LabelContext]) -> Labeller:
    """Return this process's labeller, loaded once."""
    return context.load(_make_labeller)


def _itself(context: LabelContext) -> LabelContext:
    return context


def _make_labeller(context: LabelContext) -> Labeller:
    labeller = Labeller(context.detector, context.bundle, context.settings, alarm(context.record_timeout_s))
    labeller.extract.bounded = bounded_memory(context.record_memory_bytes)  # measured now that all is loaded
    labeller.extract.known = context.known
    return labeller
