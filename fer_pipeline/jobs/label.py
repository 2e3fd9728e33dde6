"""Label an archive: list it, freeze a manifest of shards, label each shard in one Ray Data task, sum up."""

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import ray
import ray.data
from pydantic import Field

from fer_pipeline.core import storage
from fer_pipeline.core.config import Config
from fer_pipeline.core.errors import FailureRateExceeded, UserError
from fer_pipeline.core.faces import Tally, write_faces
from fer_pipeline.core.manifest import cut, read_shard, shard_sizes, write_manifest
from fer_pipeline.core.run import REPORT, Identity, RunFolder, RunRecord, RunResult, new_run_id, now
from fer_pipeline.jobs.cluster import ClusterConfig, connected
from fer_pipeline.jobs.progress import progress
from fer_pipeline.models.card import EMBEDDED, BundleFiles, read_bundle
from fer_pipeline.report.labels import label_report
from fer_pipeline.sources.listing import Listing
from fer_pipeline.stages.label import Labeller, LabelSettings
from fer_pipeline.stages.weights import DetectorWeights, resolve_detector

log = logging.getLogger(__name__)

SHARDS_PER_TASK = 8
THRESHOLDS = {"yunet": 0.6, "mtcnn": 0.9, "none": 0.0}


Loader = Callable[[], Labeller]


class LabelConfig(Config):
    """Label the apparent expression of every face in an archive. Run the same command again to continue."""

    source: str
    """Folder, tar, zip or s3:// URL of the images."""
    out: str
    """Run folder: made, or continued where it holds this run."""
    model: str = EMBEDDED
    """Folder of a model bundle, or `embedded`."""
    detector: Literal["auto", "yunet", "mtcnn", "none"] = "auto"
    """`auto` takes YuNet where its weights can be had, MTCNN otherwise; `none`: the images are face crops."""
    detector_weights: str | None = None
    """The YuNet file, where it is not in $FER_PIPELINE_MODELS or the cache."""
    detect_px: int = Field(640, ge=32)
    """Long side to which images are shrunk for detection."""
    detection_threshold: float | None = Field(None, ge=0, le=1)
    """Least detection score of a face: by default .6 for YuNet, .9 for MTCNN."""
    uncertain_below: float | None = Field(None, ge=0, le=1)
    """Confidence under which a label is marked uncertain; by default the model's own."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the classifier; `auto` takes bf16 where this machine's processor has it."""
    max_pixels: int = Field(100_000_000, ge=1)
    """Larger images are not decoded (`too_large`)."""
    max_bytes: int = Field(256 * 1024**2, ge=1)
    """Larger files are not read (`too_large`)."""
    shard_records: int = Field(64, ge=1)
    """Records in a shard, the unit of work and of commit."""
    shard_bytes: int = Field(256 * 1024**2, ge=1)
    """Bytes in a shard."""
    max_failure_rate: float = Field(0.5, ge=0, le=1)
    """Share of records that may fail before the run ends with exit code 3."""
    thumbnails: bool = True
    """Put pictures of faces into the report."""


def run(config: LabelConfig, cluster: ClusterConfig = ClusterConfig()) -> RunRecord:
    """Label the archive, or what is left of it, and return the run's record.

    Raise UserError for what the user must mend, before any work; FailureRateExceeded after all of it.
    """
    started = time.perf_counter()
    config = config.model_copy(update={"source": storage.normalize(config.source), "out": storage.normalize(config.out)})
    folder = RunFolder(config.out)
    storage.require_access(config.source, config.out)
    bundle = read_bundle(config.model)
    if config.model != EMBEDDED:
        _check_weights(bundle)
    record = folder.load()
    if record is None and not storage.exists(config.source):
        raise UserError(f"The source '{config.source}' does not exist.")
    detector = resolve_detector(record.detector.name if record else config.detector, config.detector_weights)
    settings = _settings(config, bundle, detector, record)
    if record:
        _require_same(config, record, detector, bundle, settings)
        if record.result and folder.is_finished():
            log.info("This run is finished, there is nothing to do: %s", folder.url)
            return record
    log.info("Detector: %s (%s)", detector.name, detector.origin)
    with connected(cluster, config.source, config.out):
        loader = partial(_load, [ray.put((detector, bundle, settings))])
        if record is None:
            record = _begin(config, folder, detector, bundle, settings)
            _require_same(config, record, detector, bundle, settings)  # another driver may have begun it meanwhile
        labelled = _label(folder, record, loader)
    return _finish(config, folder, record, labelled, started)


def _check_weights(bundle: BundleFiles) -> None:
    from fer_pipeline.models.bundle import load_network  # torch takes seconds to import: only where it must be asked

    load_network(bundle)


def _settings(config: LabelConfig, bundle: BundleFiles, detector: DetectorWeights, record: RunRecord | None) -> LabelSettings:
    """Return the label-changing settings with every `auto` and default decided; a resumed run keeps what it decided."""
    threshold, uncertain, precision = config.detection_threshold, config.uncertain_below, config.precision
    if precision == "auto":
        frozen = record.settings.get("precision") if record else None
        precision = frozen or ("bf16" if _has_native_bf16() else "fp32")
    return LabelSettings(
        detect_px=config.detect_px,
        threshold=THRESHOLDS[detector.name] if threshold is None else threshold,
        max_pixels=config.max_pixels,
        max_bytes=config.max_bytes,
        precision="bf16" if precision == "bf16" else "fp32",
        uncertain_below=bundle.card.calibration.uncertain_below if uncertain is None else uncertain,
    )


def _has_native_bf16() -> bool:
    """Tell whether this processor multiplies bf16 natively; emulated, it is slower than fp32."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and any(flag in cpuinfo.read_text() for flag in ("avx512_bf16", "amx_bf16"))


def _require_same(
    config: LabelConfig, record: RunRecord, detector: DetectorWeights, bundle: BundleFiles, settings: LabelSettings
) -> None:
    """Raise UserError unless continuing the run under this configuration gives the same labels."""
    asked = {"source": config.source, "model": bundle.digest, "detector": detector.digest, **vars(settings)}
    frozen = {"source": record.source, "model": record.model.digest, "detector": record.detector.digest, **record.settings}
    if config.detector not in ("auto", record.detector.name):
        asked["detector"] = config.detector
    changed = [key for key in asked if asked[key] != frozen.get(key)]
    if changed:
        raise UserError(
            f"The run in '{config.out}' was begun with another {' and '.join(changed)}: "
            "repeat its configuration to continue it, or choose another --out."
        )


def _begin(
    config: LabelConfig, folder: RunFolder, detector: DetectorWeights, bundle: BundleFiles, settings: LabelSettings
) -> RunRecord:
    """List the source, freeze the manifest and the run's record; raise UserError where there is nothing to label."""
    run_id, listing = new_run_id(), Listing(config.source)
    shards = cut(listing, config.shard_records, config.shard_bytes)
    size = write_manifest(folder.manifest_prefix(run_id), shards)
    if not size.records:
        raise UserError(f"The source '{config.source}' holds no images.")
    return folder.begin(
        RunRecord(
            run_id=run_id,
            created_at=now(),
            source=config.source,
            settings=vars(settings),
            model=Identity(name=bundle.card.name, digest=bundle.digest),
            detector=Identity(name=detector.name, digest=detector.digest),
            records=size.records,
            shards=size.shards,
            skipped=dict(sorted(listing.skipped.items())),
        )
    )


def _label(folder: RunFolder, record: RunRecord, loader: Loader) -> int:
    """Label and commit the shards that are not there yet; return the number of their records."""
    committed = folder.committed()
    pending = [shard for shard in range(record.shards) if shard not in committed]
    log.info("%d records in %d shards, %d of them done", record.records, record.shards, len(committed))
    labelled = 0
    with progress("labelling", record.records) as advance:
        if committed:
            sizes = shard_sizes(folder.manifest_prefix(record.run_id), record.shards)
            advance(sum(sizes[shard] for shard in committed))
        for count in _label_shards(folder, record, pending, loader):
            labelled += count
            advance(count)
    return labelled


def _label_shards(folder: RunFolder, record: RunRecord, pending: list[int], loader: Loader) -> Iterator[int]:
    """Yield the number of records labelled as Ray Data tasks end; every task commits its shards one by one."""
    if not pending:
        return
    ray.data.DataContext.get_current().enable_progress_bars = False
    tables = [pa.table({"shard": chunk}) for chunk in _chunks(pending, cores=int(ray.cluster_resources().get("CPU", 1)))]
    task = partial(_label_chunk, loader, folder, record.run_id)
    chunks = ray.data.from_arrow(tables)
    _warm_up(loader)
    for row in chunks.map_batches(task, batch_size=None, batch_format="pyarrow", num_cpus=1).iter_rows():
        yield row["records"]


def _chunks(pending: list[int], cores: int) -> Iterator[list[int]]:
    """Yield the shards of each task: several at first, single ones at the end, so that all cores finish together.

    Ray Data leaves a core idle for about 0.15 s between two tasks (it looks for finished ones every 0.1 s), which a shard of
    a second would feel. Guided self-scheduling (Polychronopoulos & Kuck, 1987), at most `SHARDS_PER_TASK`.
    """
    done = 0
    while done < len(pending):
        size = max(1, min(SHARDS_PER_TASK, (len(pending) - done) // (2 * cores)))
        yield pending[done : done + size]
        done += size


def _label_chunk(loader: Loader, folder: RunFolder, run_id: str, chunk: pa.Table) -> pa.Table:
    labeller, counts = loader(), []
    for shard in chunk["shard"].to_pylist():
        manifest = read_shard(folder.manifest_prefix(run_id), shard)
        folder.commit(shard, labeller(manifest))
        counts.append(len(manifest))
    return pa.table({"records": counts})


_loaded: dict[str, Labeller] = {}
"""The labeller of this worker process, by the object it was made from: loaded once, used for every shard."""


def _load(parts: list[ray.ObjectRef[Any]]) -> Labeller:
    key = parts[0].hex()
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = Labeller(*ray.get(parts[0]))
    return _loaded[key]


def _warm_up(loader: Loader) -> None:
    """Have every core load its networks at once: Ray Data gives work to a second core only a second or two after the first."""
    load = ray.remote(num_cpus=1)(lambda: loader() and None)
    for _ in range(int(ray.cluster_resources().get("CPU", 0))):
        load.remote()


def _finish(config: LabelConfig, folder: RunFolder, record: RunRecord, labelled: int, started: float) -> RunRecord:
    """Verify that every record has its row, write `faces/`, the record, the report and, if all is well, `_SUCCESS`."""
    tally = write_faces(folder, record, folder.verified_images(record))
    seconds = time.perf_counter() - started
    record = record.model_copy(update={"result": _result(tally, labelled, seconds)})
    storage.write_bytes(folder.path(REPORT), label_report(folder, record, config.thumbnails).encode())
    rate = tally.failed / record.records
    folder.finish(record, success=rate <= config.max_failure_rate)
    if rate > config.max_failure_rate:
        raise FailureRateExceeded(
            f"{tally.failed} of {record.records} records failed, more than --max-failure-rate {config.max_failure_rate:g} "
            f"allows; {folder.path(REPORT)} says why."
        )
    return record


def _result(tally: Tally, labelled: int, seconds: float) -> RunResult:
    return RunResult(
        counts=dict(sorted(tally.statuses.items())),
        failed=tally.failed,
        faces=tally.faces,
        uncertain=tally.uncertain,
        expressions=dict(tally.expressions.most_common()),
        failures=tally.failures,
        labelled_now=labelled,
        seconds=round(seconds, 2),
        images_per_s=round(labelled / seconds, 2),
        finished_at=now(),
    )
