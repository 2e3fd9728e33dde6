"""What a labelling worker keeps between tasks, and its time and memory limits."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from fer_pipeline.base.isolated import alarm
from fer_pipeline.base.stage_clock import timed
from fer_pipeline.base.storage import parquet
from fer_pipeline.engine.metrics import count_shard
from fer_pipeline.engine.tasks import Shared
from fer_pipeline.faces.detectors.spec import ResolvedDetector
from fer_pipeline.labelling.labeller import KnownFaces, Labeller, LabelSettings, no_known_faces
from fer_pipeline.labelling.run import RunFolder, RunRecord, with_lineage
from fer_pipeline.labelling.schemas import BLOCKED, CARRIED, FACE_PLACES, MANIFEST
from fer_pipeline.models.bundle import Bundle
from fer_pipeline.table.blocklist import NOTHING_BLOCKED, Blocklist
from fer_pipeline.table.reuse import Reusable, read_faces


@dataclass(frozen=True)
class LabelContext:
    """What each worker of a run needs."""

    folder: RunFolder
    record: RunRecord
    detector: ResolvedDetector
    bundle: Bundle
    settings: LabelSettings
    record_timeout_s: float
    record_memory_bytes: int
    reusable: Reusable | None = None
    """Labels in the published table, by the digest of the labelled bytes."""

    faces_from: str | None = None
    """The table or the run whose faces the manifest names."""
    blocked: Blocklist = NOTHING_BLOCKED
    """What was erased from the published table."""

    def decided(self, content_sha256: str) -> str | None:
        """Return the status of bytes that need no labelling; None if they do."""
        if content_sha256 in self.blocked.contents:
            return BLOCKED
        return CARRIED if self.reusable is not None and content_sha256 in self.reusable else None

    def faces_of(self, manifest: pa.Table) -> Sequence[KnownFaces | None]:
        """Return the faces of the records of a manifest that are known already."""
        return read_faces(self.faces_from, manifest, self.record.lineage) if self.faces_from else no_known_faces(manifest)

    def commit(self, manifest: pa.Table, labelled: pa.Table) -> None:
        """Commit a shard's rows of `schemas.LABELLED`, with what the manifest keeps of a list, and count them."""
        with timed("commit"):
            images = with_lineage(labelled, self.record, parquet.beyond(manifest, pa.schema([*MANIFEST, *FACE_PLACES])))
            images = self.reusable.carry_over(images) if self.reusable else images
            self.folder.commit(manifest["shard"][0].as_py(), images)
        count_shard(images)


def slow_machine(settings: LabelSettings, has_bf16: bool) -> str | None:
    """Return this machine's name if it must emulate the run's arithmetic, else None."""
    return platform.node() if settings.precision == "bf16" and not has_bf16 else None


def load_context(context: Shared[LabelContext]) -> LabelContext:
    """Return the run's context, read from Ray's store once per process."""
    return context.load(_itself)


def load_labeller(context: Shared[LabelContext]) -> Labeller:
    """Return this process's labeller, loaded once."""
    return context.load(_make_labeller)


def _itself(context: LabelContext) -> LabelContext:
    return context


def _make_labeller(context: LabelContext) -> Labeller:
    watch = alarm(context.record_timeout_s)
    return Labeller(
        context.detector,
        context.bundle,
        context.settings,
        watch,
        context.decided,
        context.record_memory_bytes,
        context.faces_of,
    )
