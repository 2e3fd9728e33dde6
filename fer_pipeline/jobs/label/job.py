"""Label an archive: list it, freeze a manifest of shards, label each shard in one Ray task, sum up."""

import logging
import time
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Field

from fer_pipeline.core import storage
from fer_pipeline.core.config import MODEL, PLACE, Config, require_same
from fer_pipeline.core.errors import FailureRateExceeded, UserError
from fer_pipeline.core.faces import Tally, shards_with, write_faces
from fer_pipeline.core.log import tell_with_each_line
from fer_pipeline.core.manifest import file_count, shard_sizes, split_into_shards, write_manifest
from fer_pipeline.core.memory import MEMORY_BYTES
from fer_pipeline.core.processor import has_native_bf16
from fer_pipeline.core.run import INDEXES, REPORT, Identity, RunFolder, RunRecord, RunResult, new_run_id, now, settings_digest
from fer_pipeline.core.schemas import RetriedStatus
from fer_pipeline.jobs.cluster import ClusterConfig, connected
from fer_pipeline.jobs.demand import Asking, asked_of_a_worker, asking, wait_for_gpus
from fer_pipeline.jobs.label.dispatch import Dispatcher
from fer_pipeline.jobs.label.indexing import IndexingTasks
from fer_pipeline.jobs.label.pool import GpuPool
from fer_pipeline.jobs.label.tasks import Tasks
from fer_pipeline.jobs.label.worker import LabelContext
from fer_pipeline.jobs.metrics import counted
from fer_pipeline.jobs.progress import progress
from fer_pipeline.jobs.shared import fan_out, share
from fer_pipeline.models.bundle import EMBEDDED, Bundle
from fer_pipeline.report.labels import label_report
from fer_pipeline.report.page import drawn
from fer_pipeline.sources.files import Selection
from fer_pipeline.sources.listing import FILTERED, Listing
from fer_pipeline.stages.classify import Precision, auto_precision, read_tried
from fer_pipeline.stages.detectors import DETECTOR_HELP, DETECTORS, DetectorName, require_first_choice, resolve_detector
from fer_pipeline.stages.detectors.spec import ResolvedDetector
from fer_pipeline.stages.label import LabelSettings
from fer_pipeline.table.audit import NIGHTS_LOOKED_AT
from fer_pipeline.table.compare import Comparison
from fer_pipeline.table.delta import TABLE_INDEXES, LabelTable
from fer_pipeline.table.nights import last_nights
from fer_pipeline.table.reuse import read_reusable

log = logging.getLogger(__name__)

NAMED = {"device": "device (--gpus-per-worker)"}
"""Settings of a run that no option is called after."""
DOUBLED = "(doubled)"
"""Under which members are counted that bear the name of another one of their container, of which a table holds the first."""


class LabelConfig(Config):
    """Label the apparent expression of every face in an archive. Run the same command again to continue."""

    source: Annotated[str, PLACE]
    """Folder, tar, zip, Parquet file, video or s3:// URL; a folder may hold any mix of them."""
    out: Annotated[str, PLACE]
    """Run folder: made, or continued where it holds this run."""
    include: tuple[str, ...] = ()
    """Globs; only records whose path below the source matches one are labelled. `*` matches `/` too."""
    exclude: tuple[str, ...] = ()
    """Globs; records and containers whose path below the source matches one are left out."""
    fps: float = Field(1.0, gt=0, le=1000)
    """Frames sampled from a second of video."""
    image_column: str | None = None
    """Column of Parquet files that holds the images; by default the one its name and type speak for."""
    model: Annotated[str, MODEL] = EMBEDDED
    """Folder of a model bundle, NAME@ALIAS of a registry, or `embedded`."""
    detector: DetectorName = Field("auto", description=f"{DETECTOR_HELP}.")
    detector_weights: Annotated[str | None, PLACE] = None
    """File of the detector's weights, where it is not in $FER_PIPELINE_MODELS or the cache."""
    detect_px: int = Field(640, ge=32)
    """Long side to which images are shrunk for detection."""
    detection_threshold: float | None = Field(None, ge=0, le=1)
    """Least detection score of a face: by default the detector's own."""
    uncertain_below: float | None = Field(None, ge=0, le=1)
    """Confidence under which a label is marked uncertain; by default the model's own."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Arithmetic of the classifier; `auto` takes int8 on CPUs if the model has it, else what the first worker's processor has."""
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
    record_timeout_s: float = Field(60.0, gt=0)
    """Time that decoding, detection and alignment of one record may take before it is given up (`timed_out`)."""
    record_memory_bytes: int = Field(MEMORY_BYTES, ge=256 * 1024**2)
    """Memory that a worker may take beside what it has when it begins; a record that needs more is `too_large`."""
    max_members: int = Field(10_000_000, ge=1)
    """Most records of one container; one that holds more is not read on."""
    retry_status: tuple[RetriedStatus, ...] = ()
    """Do the shards that hold rows of these statuses again; against a table, try records of these statuses however often."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs, or the share of one, for each worker, which detects and classifies on it; its cores fetch, decode and cut.
    0: no GPU is used."""
    num_gpus: float | None = Field(None, gt=0)
    """Most GPUs to take, and to ask an autoscaler for; by default all that the cluster has, and one is asked for."""
    thumbnails: bool = True
    """Put pictures of faces into the report."""
    table: Annotated[str | None, PLACE] = None
    """Published table: only what it does not hold is labelled, and rows whose bytes it knows are carried over."""
    max_vanished: float = Field(0.2, ge=0, le=1)
    """Share of the source's rows in the table that may be gone from the source before the run is refused."""
    max_attempts: int = Field(3, ge=1, le=100)
    """Runs in which a failed record is tried, while its file stays the same."""
    relabel_budget: int | None = Field(None, ge=0)
    """Most rows of another model, detector or settings to make anew, the oldest first; by default all of them."""


def run(config: LabelConfig, cluster: ClusterConfig = ClusterConfig(), only_if_changed: bool = False) -> RunRecord:
    """Label the archive, or what is left of it, and return the run's record.

    With `only_if_changed` a new run of which the table holds everything writes no folder (`RunRecord.changes_nothing`).
    Raise UserError for what the user must mend, before any work; FailureRateExceeded after all of it.
    """
    started = time.perf_counter()
    paths = {name: storage.normalize(url) for name in ("source", "out", "table") if (url := getattr(config, name))}
    config = config.model_copy(update=paths)
    folder = RunFolder(config.out)
    storage.require_access(config.source, config.out)
    bundle = read_tried(config.model, *(("fp32",) if config.gpus_per_worker else ()))
    record = folder.load()
    if record is None and not storage.exists(config.source):
        raise UserError(f"The source '{config.source}' does not exist.")
    detector = resolve_detector(record.detector.name if record else config.detector, config.detector_weights)
    if not record and (cluster.cluster or config.table):
        require_first_choice(
            config.detector, detector, lambda: "On a cluster" if cluster.cluster else _for_the_table(config.table)
        )
    again = shards_with(folder, set(config.retry_status)) if record and config.retry_status else []
    if record:
        _require_same(config, record, detector, bundle)
        if record.result and folder.is_finished() and not again:
            log.info("This run is finished, there is nothing to do: %s", folder.url)
            return record
    log.info("Detector: %s (%s)", detector.name, detector.origin)
    with connected(cluster, *paths.values()), asking(cluster) as ask:
        _require_gpus(config, detector, ask, cluster.wait_s)
        if again:
            _require_unpublished(config, record)
            log.info("%d shards hold records to try again", len(again))
            folder.reopen()
        resumed = record is not None
        if record is None:
            record = _begin(config, folder, detector, bundle, ask, cluster.wait_s, only_if_changed)
            if only_if_changed and record.changes_nothing:
                return record.model_copy(update={"result": _result(Tally(), 0, 0, time.perf_counter() - started)})
            _require_same(config, record, detector, bundle)  # another driver may have begun it meanwhile
        tell_with_each_line(run_id=record.run_id)
        limits = (config.record_timeout_s, config.record_memory_bytes)
        reusable = read_reusable(record.increment.table, folder.places_path(record.run_id)) if record.increment else None
        context = LabelContext(folder, record, detector, bundle, _settings(config, bundle, detector, record), *limits, reusable)
        labelled, lost = _label(config, context, ask, cluster.wait_s, frozenset(again), resumed)
        tally = _sum_up(folder, record, cluster.wait_s)
    result = _result(tally, labelled, lost, time.perf_counter() - started)
    return _finish(config, folder, record.model_copy(update={"result": result}), tally)


def _for_the_table(url: str | None) -> str:
    """Return, for a message, what labels a table: the detector of its last published night, where there is one."""
    nights = [night for night in last_nights(url, NIGHTS_LOOKED_AT) if night.state == "published"] if url else []
    return f"For a table whose faces {nights[-1].detector.name} found," if nights else "For a table"


def _require_gpus(config: LabelConfig, detector: ResolvedDetector, ask: Asking | None, wait_s: float) -> None:
    """Raise UserError for GPUs that this machine, or any part of one, cannot give; a cluster may bring them."""
    gpus = config.gpus_per_worker
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"--gpus-per-worker {gpus:g} is neither a share of one GPU nor a whole number of them.")
    if gpus and DETECTORS[detector.name].finds_faces and not DETECTORS[detector.name].load_for_device:
        log.warning("%s has no form for GPUs: one core of each GPU worker detects, and holds it up", detector.name)
    if gpus:
        wait_for_gpus(gpus, ask, wait_s)


def _settings(
    config: LabelConfig, bundle: Bundle, detector: ResolvedDetector, record: RunRecord | None, has_bf16: bool = False
) -> LabelSettings:
    """Return the label-changing settings with every `auto` and default decided; a run keeps what was decided when it began.

    `has_bf16`: whether the processors that label multiply bf16 natively.
    """
    threshold, uncertain = config.detection_threshold, config.uncertain_below
    frozen: Precision | None = record.known.precision if record else None
    automatic = frozen or auto_precision(bundle, bool(config.gpus_per_worker), has_bf16)
    precision = config.precision if config.precision != "auto" else automatic
    calibration = bundle.computing_in(precision).card.calibration
    return LabelSettings(
        detect_px=config.detect_px,
        threshold=DETECTORS[detector.name].threshold if threshold is None else threshold,
        max_pixels=config.max_pixels,
        max_bytes=config.max_bytes,
        precision=precision,
        uncertain_below=calibration.uncertain_below if uncertain is None else uncertain,
        image_column=config.image_column,
    )


def _frozen(config: LabelConfig, settings: LabelSettings) -> dict[str, Any]:
    """Return what must stay the same while a run is continued: the choice of records and what changes their labels."""
    choice = {"include": list(config.include), "exclude": list(config.exclude), "fps": config.fps, "table": config.table}
    where = {"device": "gpu"} if config.gpus_per_worker else {}  # which detects by other arithmetic than cores
    return vars(settings) | choice | where | {"asked_uncertain_below": config.uncertain_below}


def _require_same(config: LabelConfig, record: RunRecord, detector: ResolvedDetector, bundle: Bundle) -> None:
    """Raise UserError unless continuing the run under this configuration gives the same labels."""
    settings = _settings(config, bundle, detector, record)
    asked = {
        "device": None,
        "source": config.source,
        "model": bundle.digest,
        "detector": detector.digest,
        **_frozen(config, settings),
    }
    frozen = {"source": record.source, "model": record.model.digest, "detector": record.detector.digest, **record.settings}
    frozen["table"] = record.increment.table if record.increment else None  # from which rows are carried over
    if config.detector not in ("auto", record.detector.name):
        asked["detector"] = config.detector
    now, before = ({NAMED.get(key, key): facts.get(key) for key in asked} for facts in (asked, frozen))
    require_same(f"The run in '{config.out}'", now, before)


def _begin(
    config: LabelConfig,
    folder: RunFolder,
    detector: ResolvedDetector,
    bundle: Bundle,
    ask: Asking | None,
    wait_s: float,
    only_if_changed: bool,
) -> RunRecord:
    """List the source, freeze the manifest and the run's record; raise UserError where there is nothing to label."""
    run_id, created_at, listing = new_run_id(), now(), _listing(config, ask, wait_s)

    records, comparison = iter(listing), None
    if config.table:
        comparison = _comparison(config, listing, detector, bundle)
        records = comparison.to_label(records)
    size = write_manifest(folder.manifest_prefix(run_id), split_into_shards(records, config.shard_records, config.shard_bytes))
    if comparison:
        comparison.require_nothing_below(listing.hidden)
        _require_plausible(config, comparison)
        listing.skipped += Counter({DOUBLED: comparison.doubled})
    if not size.records and not (comparison and (comparison.listed or comparison.vanished)):
        raise UserError(_nothing_to_label(config, listing))
    open_question = (
        config.precision == "auto" and auto_precision(bundle, bool(config.gpus_per_worker), True) == "bf16" and size.shards > 0
    )
    has_bf16 = open_question and asked_of_a_worker(has_native_bf16, ask, size.shards, wait_s)
    record = RunRecord(
        run_id=run_id,
        created_at=created_at,
        source=config.source,
        settings=_frozen(config, _settings(config, bundle, detector, None, has_bf16)),
        model=Identity(name=bundle.card.name, digest=bundle.digest, version=bundle.version, alias=bundle.alias),
        classes=bundle.card.label_space.classes,
        detector=Identity(name=detector.name, digest=detector.digest),
        records=size.records,
        shards=size.shards,
        skipped=dict(sorted(listing.skipped.items())),
        increment=comparison.increment() if comparison else None,
    )
    if only_if_changed and record.changes_nothing:
        return record
    if comparison:
        comparison.write_vanished(folder.vanished_path(run_id))
        comparison.write_places(folder.places_path(run_id))
    return folder.begin(record)


def _nothing_to_label(config: LabelConfig, listing: Listing) -> str:
    """Return why a listing has no record: filters that let nothing through are named."""
    filtered = listing.skipped[FILTERED]
    if not filtered:
        return f"The source '{config.source}' holds no images."
    filters = [f"--{name} {' '.join(globs)}" for name in ("include", "exclude") if (globs := getattr(config, name))]
    return f"{' '.join(filters)} lets none of the {filtered} files of '{config.source}' through: '*' matches '/' too."


def _listing(config: LabelConfig, ask: Asking | None, wait_s: float) -> Listing:
    """Return the source's listing. What containers hold is remembered beside the table, or the run, where that is on a store."""
    selection = Selection(
        config.include, config.exclude, config.fps, config.image_column, config.record_timeout_s, config.max_members
    )
    indexes = storage.join(config.table, TABLE_INDEXES) if config.table else storage.join(config.out, INDEXES)
    if ask is None or storage.is_local(config.source):
        return Listing(config.source, selection, None if storage.is_local(indexes) else indexes)
    tasks = IndexingTasks(selection, indexes, ask, wait_s)
    return Listing(config.source, selection, indexes, tasks, tasks.at_once)


def _comparison(config: LabelConfig, listing: Listing, detector: ResolvedDetector, bundle: Bundle) -> Comparison:
    """Return how the listing is compared with the published table."""
    assert config.table
    settings = _frozen(config, _settings(config, bundle, detector, None))
    identity = {
        "model_digest": bundle.digest,
        "detector_digest": detector.digest,
        "settings_digest": settings_digest(settings),
    }
    table = LabelTable(config.table)
    table.require_classes(bundle.card.label_space.classes)
    found = Comparison(
        table, listing.covers, config.source, identity, config.max_attempts, config.relabel_budget, config.retry_status
    )
    log.info("The table holds %d rows, %d of them of this source", table.rows, len(found.seen))
    return found


def _require_unpublished(config: LabelConfig, record: RunRecord | None) -> None:
    """Raise UserError for a run whose rows stand in the table already: its next night tries them again."""
    if config.table and record and LabelTable(config.table).holds_run(record.run_id):
        raise UserError(f"The run in '{config.out}' is published: its failed records are tried again by the next night.")


def _require_plausible(config: LabelConfig, comparison: Comparison) -> None:
    """Log what the listing came to; raise UserError where more of the source has vanished than a night can explain."""
    found = comparison.increment()
    log.info(
        "%d records listed: %d held, %d new, %d changed, %d outdated, %d to try again; %d rows vanished",
        found.listed, found.held, found.new, found.changed, found.outdated, found.retried, found.vanished,
    )  # fmt: skip
    if found.scope and found.vanished > config.max_vanished * found.scope:
        raise UserError(
            f"{found.vanished} of the {found.scope} rows that the table holds of '{config.source}' are not there any more, more "
            f"than --max-vanished {config.max_vanished:g} allows: is all of the source there? If so, allow it."
        )


def _label(
    config: LabelConfig, context: LabelContext, ask: Asking | None, wait_s: float, again: frozenset[int], resumed: bool
) -> tuple[int, int]:
    """Label and commit the shards that are not there yet, and those to do again.

    Return the number of their records, and of those whose task died before they were committed.
    """
    folder, record = context.folder, context.record
    committed = folder.committed() - again
    pending = [shard for shard in range(record.shards) if shard not in committed]
    which = f"{'Continuing' if resumed else 'Beginning'} run {record.run_id}"
    log.info("%s: %d records in %d shards, %d of them done", which, record.records, record.shards, len(committed))
    with progress("labelling", record.records) as advance:
        done = 0
        if committed:
            sizes = shard_sizes(folder.manifest_prefix(record.run_id), record.shards)
            done = sum(sizes[shard] for shard in committed)
            advance(done)
        if not pending:
            return 0, 0
        shared, pool = share(context), None
        tasks = Tasks(shared, ask, wait_s)
        if config.gpus_per_worker:
            pool = GpuPool(shared, tasks, config.gpus_per_worker, config.num_gpus, wait_s)
        dispatcher = Dispatcher(folder, record, tasks, pool, again, resumed)
        try:
            return dispatcher.label(pending, counted(advance, record.records - done)), dispatcher.lost_records
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{len(folder.committed())} of {record.shards} shards are kept") from None


def _sum_up(folder: RunFolder, record: RunRecord, wait_s: float) -> Tally:
    """Write `faces/` and return the counts: a task for each file of the manifest, which verifies that no row is missing."""
    tally = Tally()
    for part in fan_out(write_faces, range(file_count(record.shards)), folder, record, wait_s=wait_s):
        tally.merge(part)
    return tally


def _finish(config: LabelConfig, folder: RunFolder, record: RunRecord, tally: Tally) -> RunRecord:
    """Write the record with its result, the report and, if all is well, `_SUCCESS`."""
    pictures = config.source if config.thumbnails else None
    again = f"`fer-pipeline report {folder.url} --source {config.source}` draws it again."
    page = drawn(f"Run {record.run_id}", lambda: label_report(folder, record, pictures), again)
    storage.write_bytes(folder.path(REPORT), page.encode())
    folder.finish(record, success=record.failure_rate <= config.max_failure_rate)
    log.info("Labelled %d images: %d faces, %d failed. Page: %s", record.records, tally.faces, tally.failed, folder.path(REPORT))
    if record.failure_rate > config.max_failure_rate:
        raise FailureRateExceeded(
            f"{tally.failed} of {record.records} records failed, more than --max-failure-rate {config.max_failure_rate:g} "
            f"allows; {folder.path(REPORT)} says why."
        )
    return record


def _result(tally: Tally, labelled: int, lost: int, seconds: float) -> RunResult:
    return RunResult(
        counts=dict(sorted(tally.statuses.items())),
        failed=tally.failed,
        faces=tally.faces,
        uncertain=tally.uncertain,
        confidences=tally.confidences.tolist(),
        faces_per_image=tally.faces_per_image.tolist(),
        carried=tally.carried,
        failed_again=tally.failed_again,
        expressions=dict(tally.expressions.most_common()),
        failures=tally.failures,
        labelled_now=labelled,
        lost=lost,
        seconds=round(seconds, 2),
        images_per_s=round(labelled / seconds, 2),
        finished_at=now(),
    )
