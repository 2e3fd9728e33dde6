"""Label an archive: list it, freeze a manifest of shards, label the shards in Ray tasks, and sum up."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from random import Random

import pyarrow as pa

from fer_pipeline.archive.file_list import FileList
from fer_pipeline.archive.files import Selection
from fer_pipeline.archive.listing import FILTERED, Listing
from fer_pipeline.archive.reader import shard_size
from fer_pipeline.archive.record import Record, sampled, split_into_shards
from fer_pipeline.base import storage
from fer_pipeline.base.errors import FailureRateExceeded, UserError
from fer_pipeline.base.identity import Identity, new_run_id, now
from fer_pipeline.base.log import add_to_each_line
from fer_pipeline.base.processor import has_native_bf16
from fer_pipeline.engine.connect import ClusterConfig, connected
from fer_pipeline.engine.machines import Machines
from fer_pipeline.engine.metrics import counted
from fer_pipeline.engine.progress import progress
from fer_pipeline.engine.tasks import fan_out, share
from fer_pipeline.faces.detectors import DETECTORS
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.jobs.label.dispatch import Dispatcher
from fer_pipeline.jobs.label.indexing import IndexingTasks
from fer_pipeline.jobs.label.plan import LabelPlan, make_plan, with_normal_places
from fer_pipeline.jobs.label.pool import GpuPool
from fer_pipeline.jobs.label.tasks import ChunkTasks
from fer_pipeline.jobs.label.worker import LabelContext
from fer_pipeline.jobs.lineage import traced
from fer_pipeline.labelling.faces_table import Tally, shards_with, write_faces
from fer_pipeline.labelling.manifest import file_count, shard_sizes, write_manifest
from fer_pipeline.labelling.run import INDEXES, REPORT, RunFolder, RunRecord, RunResult
from fer_pipeline.labelling.tracks import write_tracks
from fer_pipeline.report.labels import label_report
from fer_pipeline.report.page import drawn
from fer_pipeline.table.blocklist import NOTHING_BLOCKED, Blocklist, near_copies, read_blocklist
from fer_pipeline.table.compare import Comparison
from fer_pipeline.table.delta import TABLE_INDEXES, LabelTable
from fer_pipeline.table.reuse import FacePlaces, read_reusable

log = logging.getLogger(__name__)

NAMED = 20
"""Near copies of erased images that are named."""
DUPLICATE_NAME = "(doubled)"
"""Key of `skipped` that counts duplicate member names in a container: a table holds only the first member of a name."""


@traced("label", ("source", "model"), ("out",))
def run(config: LabelConfig, cluster: ClusterConfig = ClusterConfig(), only_if_changed: bool = False) -> RunRecord:
    """Label the archive, or the rest of it, and return the run's record.

    With `only_if_changed` a new run writes no folder if the table holds everything (`RunRecord.changes_nothing`).
    Raise UserError for an invalid configuration, before any work; FailureRateExceeded after all work is done.
    """
    started = time.perf_counter()
    config = with_normal_places(config)
    storage.require_access(config.source, config.out, *config.base)
    paths = filter(None, (config.source, config.out, config.table, *config.base))
    folder = RunFolder(config.out)
    record = folder.load()
    plan = make_plan(config, folder, record, bool(cluster.cluster))
    redo = frozenset(shards_with(folder, set(config.retry_status)) if record and config.retry_status else ())
    if record and record.result and folder.is_finished() and not redo:
        log.info("This run is finished, there is nothing to do: %s", folder.url)
        return record
    log.info("Detector: %s (%s)", plan.detector.name, plan.detector.origin)
    with _finishing() as finishing, connected(cluster, *paths) as machines:
        _require_gpus(plan, machines)
        resumed = record is not None
        if record is None:
            record = _begin(plan, machines, only_if_changed)
            if only_if_changed and record.changes_nothing:
                return record.model_copy(update={"result": _result(Tally(), 0, 0, time.perf_counter() - started)})
            plan = plan.under(record)  # another driver may have started the run meanwhile
        elif redo:
            _reopen(plan, record, redo)
        add_to_each_line(run_id=record.run_id)
        blocked = read_blocklist(record.increment.table) if record.increment else NOTHING_BLOCKED
        labelled, lost = _label(plan, record, machines, blocked, redo, resumed)
        tally = _sum_up(folder, record, machines)
        near = _near_blocked(folder, record, blocked, machines)
        tracks = write_tracks(folder, record, sorted(tally.with_frames))
        result = _result(tally, labelled, lost, time.perf_counter() - started, near, tracks)
        record = record.model_copy(update={"result": result})
        page = finishing.submit(_page, plan, record)  # while Ray stops
    return _finish(plan, record, tally, page.result())


@contextmanager
def _finishing() -> Iterator[ThreadPoolExecutor]:
    """Yield a thread, which is not waited for if the run fails or is stopped."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="page")
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _require_gpus(plan: LabelPlan, machines: Machines) -> None:
    """Wait for a node with the GPUs of one worker; raise UserError if no node can have them."""
    gpus, detector = plan.config.gpus_per_worker, plan.detector
    if not gpus:
        return
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"--gpus-per-worker {gpus:g} is neither a share of one GPU nor a whole number of them.")
    if DETECTORS[detector.name].finds_faces and not DETECTORS[detector.name].load_for_device:
        log.warning("The detector %s does not run on GPUs: one core of each GPU worker runs it and slows it down", detector.name)
    machines.wait_for_gpus(max(1, int(gpus)), f"--gpus-per-worker {gpus:g}", on_one_node=True)


def _reopen(plan: LabelPlan, record: RunRecord, redo: frozenset[int]) -> None:
    """Mark the run as unfinished; raise UserError if its rows are published already."""
    if plan.config.table and LabelTable(plan.config.table).holds_run(record.run_id):
        raise UserError(f"The run in '{plan.folder.url}' is published already: the next night retries its failed records.")
    log.info("%d shards hold records to retry", len(redo))
    plan.folder.reopen()


def _begin(plan: LabelPlan, machines: Machines, only_if_changed: bool) -> RunRecord:
    """List the source, freeze the manifest and the run's record; raise UserError if there is nothing to label."""
    config, folder, run_id, created_at = plan.config, plan.folder, new_run_id(), now()
    listing = listing_of(plan, machines)
    comparison = comparison_of(plan, listing)
    with closing(iter(listing)) as listed:
        records = to_label(config, comparison, listed)
        records = iter(sampled(records, config.sample, Random(run_id))) if config.sample else records
        shard_records, records = (config.shard_records, records) if config.shard_records else shard_size(records)
        shards = split_into_shards(records, shard_records, config.shard_bytes)
        places = _face_places(plan, comparison)
        further: list[Callable[[list[Record]], pa.Table]] = [places] if places else []
        if listing.named and config.keep:
            named = listing.named
            further.append(lambda shard: named.kept([record.uri for record in shard]))
        size = write_manifest(folder.manifest_prefix(run_id), shards, further)
    listing.log_skipped()
    if places:
        log.info("%d of %d records have faces in '%s', which are not detected again", places.located, size.records, places.url)
    if comparison:
        comparison.require_nothing_below(listing.hidden)
        _require_plausible(config, comparison)
        listing.skipped += Counter({DUPLICATE_NAME: comparison.doubled})
    if not size.records and not (comparison and (comparison.listed or comparison.vanished)):
        raise UserError(nothing_to_label(config, listing))
    if plan.asks_processor and size.shards:
        plan = plan.on_processors(machines.on_a_worker(has_native_bf16, size.shards))
    record = RunRecord(
        run_id=run_id,
        created_at=created_at,
        source=plan.root,
        settings=plan.frozen,
        model=plan.model,
        classes=plan.bundle.card.label_space.classes,
        outputs=tuple(one.column for one in plan.bundle.card.further),
        detector=Identity(name=plan.detector.name, digest=plan.detector.digest),
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


def to_label(config: LabelConfig, comparison: Comparison | None, listed: Iterator[Record]) -> Iterator[Record]:
    """Return the listed records that are to be labelled: those that the table lacks or, without one, the first ones."""
    return comparison.to_label(listed) if comparison else islice(listed, config.limit)


def _face_places(plan: LabelPlan, comparison: Comparison | None) -> FacePlaces | None:
    """Return where the faces are that need no detection: those of --reuse-faces, or of outdated rows of the table.

    Raise UserError if the labels of --reuse-faces have none that this run would find.
    """
    asked = plan.config.reuse_faces
    relabels = comparison is not None and comparison.holds_outdated and plan.config.relabel_budget != 0
    url = asked or (comparison.table.url if comparison and relabels else None)
    if not url or not DETECTORS[plan.detector.name].finds_faces:
        return None
    found = FacePlaces(url, plan.identity, plan.config.detect_px)
    if asked and not len(found):
        raise UserError(
            f"--reuse-faces: no image in '{asked}' was labelled with this detector, these settings and this version of decoding; "
            "leave the option out, or use the options of that run."
        )
    return found


def nothing_to_label(config: LabelConfig, listing: Listing) -> str:
    """Return why a listing has no records, and name the filters that exclude every file."""
    filtered = listing.skipped[FILTERED]
    if not filtered:
        return listing.holds_nothing()
    filters = [f"--{name} {' '.join(globs)}" for name in ("include", "exclude") if (globs := getattr(config, name))]
    return f"{' '.join(filters)} excludes all {filtered} files of '{config.source}': change the globs; '*' matches '/' too."


def listing_of(plan: LabelPlan, machines: Machines | None = None) -> Listing:
    """Return the source's listing. It keeps the indexes of containers beside the table or, without one, the run, if remote.

    Without `machines`, for an estimate, it keeps them in this user's cache only.
    """
    config = plan.config
    named = FileList(config.source, config.uri_column, config.base, config.keep) if config.uri_column else None
    if named and named.doubled:
        log.warning("%d rows of '%s' name a file again and are left out", named.doubled, config.source)
    selection = Selection(
        config.include,
        config.exclude,
        config.fps,
        config.image_column,
        config.record_timeout_s,
        config.pages,
        config.max_members,
        config.zip_encoding,
    )
    if machines is None:
        return Listing(plan.root, selection, named=named)
    indexes = storage.join(config.table, TABLE_INDEXES) if config.table else storage.join(config.out, INDEXES)
    if machines.is_local or storage.is_local(plan.root):
        return Listing(plan.root, selection, None if storage.is_local(indexes) else indexes, named=named)
    tasks = IndexingTasks(selection, indexes, machines)
    return Listing(plan.root, selection, indexes, tasks, tasks.at_once, named)


def comparison_of(plan: LabelPlan, listing: Listing) -> Comparison | None:
    """Return the comparison of the listing with the published table; None without a table."""
    config = plan.config
    if not config.table:
        return None
    table = LabelTable(config.table)
    table.require_classes(plan.bundle.card.label_space.classes)
    found = Comparison(
        table,
        listing.covers,
        plan.root,
        plan.identity,
        config.max_attempts,
        config.relabel_budget,
        config.retry_status,
        config.detect_px,
    )
    log.info("The table holds %d rows, %d of them of this source", table.rows, len(found.seen))
    return found


def _require_plausible(config: LabelConfig, comparison: Comparison) -> None:
    """Log the counts of the comparison; raise UserError if more rows vanished than `max_vanished` allows."""
    found = comparison.increment()
    log.info(
        "%d records listed: %d held, %d new, %d changed, %d outdated, %d to retry; %d rows vanished",
        found.listed, found.held, found.new, found.changed, found.outdated, found.retried, found.vanished,
    )  # fmt: skip
    if found.scope and found.vanished > config.max_vanished * found.scope:
        raise UserError(
            f"{found.vanished} of the table's {found.scope} rows of '{config.source}' are missing from the source, more than "
            f"--max-vanished {config.max_vanished:g} allows: check that the source is complete, then raise the limit."
        )


def _label(
    plan: LabelPlan, record: RunRecord, machines: Machines, blocked: Blocklist, redo: frozenset[int], resumed: bool
) -> tuple[int, int]:
    """Label and commit the shards that are not committed yet, and those to redo.

    Return the number of records labelled here, and of records whose task died before it committed them.
    """
    config, folder = plan.config, plan.folder
    committed = folder.committed() - redo
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
        reusable = read_reusable(record.increment.table, folder.places_path(record.run_id)) if record.increment else None
        limits = config.record_timeout_s, config.record_memory_bytes
        parts = folder, record, plan.detector, plan.bundle, plan.settings
        shared = share(LabelContext(*parts, *limits, reusable, record.faces_from, blocked))
        tasks = ChunkTasks(shared, machines)
        pool = GpuPool(shared, tasks, config.gpus_per_worker, config.num_gpus) if config.gpus_per_worker else None
        dispatcher = Dispatcher(folder, record, tasks, pool, redo, resumed)
        try:
            return dispatcher.label(pending, counted(advance, record.records - done)), dispatcher.lost_records
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{len(folder.committed())} of {record.shards} shards are committed") from None


def _sum_up(folder: RunFolder, record: RunRecord, machines: Machines) -> Tally:
    """Write `faces/` and return the counts. A task for each file of the manifest verifies that no row is missing."""
    tally = Tally()
    for part in fan_out(write_faces, range(file_count(record.shards)), folder, record, machines=machines):
        tally.merge(part)
    return tally


def _near_blocked(folder: RunFolder, record: RunRecord, blocked: Blocklist, machines: Machines) -> list[str]:
    """Return the images that are near copies of ones that were erased from the table, and say so."""
    files = range(file_count(record.shards)) if blocked.phashes else ()
    near = [path for found in fan_out(near_copies, files, folder, record, blocked, machines=machines) for path in found]
    if near:
        names = ", ".join(near[:NAMED])
        log.warning(
            "%d images look like ones that were erased from the table: look at %s; `table forget` erases them", len(near), names
        )
    return near


def _page(plan: LabelPlan, record: RunRecord) -> str:
    config, folder = plan.config, plan.folder
    pictures = plan.root if config.thumbnails else None
    again = f"`fer-pipeline report {folder.url} --source {plan.root}` draws it again."
    return drawn(f"Run {record.run_id}", lambda: label_report(folder, record, pictures), again)


def _finish(plan: LabelPlan, record: RunRecord, tally: Tally, page: str) -> RunRecord:
    """Write the report, the record with its result and, unless too many records failed, `_SUCCESS`."""
    config, folder = plan.config, plan.folder
    storage.write_bytes(folder.path(REPORT), page.encode())
    folder.finish(record, success=record.failure_rate <= config.max_failure_rate)
    log.info("Labelled %d images: %d faces, %d failed. Page: %s", record.records, tally.faces, tally.failed, folder.path(REPORT))
    if record.failure_rate > config.max_failure_rate:
        raise FailureRateExceeded(
            f"{tally.failed} of {record.records} records failed, more than --max-failure-rate {config.max_failure_rate:g} "
            f"allows; {folder.path(REPORT)} says why."
        )
    return record


def _result(
    tally: Tally, labelled: int, lost: int, seconds: float, near_blocked: Sequence[str] = (), tracks: int = 0
) -> RunResult:
    return RunResult(
        counts=dict(sorted(tally.statuses.items())),
        failed=tally.failed,
        faces=tally.faces,
        uncertain=tally.uncertain,
        confidences=tally.confidences.tolist(),
        faces_per_image=tally.faces_per_image.tolist(),
        carried=tally.carried,
        failed_again=tally.failed_again,
        copies=tally.contents.copies,
        near_blocked=len(near_blocked),
        near_blocked_first=list(near_blocked[:NAMED]),
        tracks=tracks,
        expressions=dict(tally.expressions.most_common()),
        failures=tally.failures,
        labelled_now=labelled,
        lost=lost,
        seconds=round(seconds, 2),
        images_per_s=round(labelled / seconds, 2),
        finished_at=now(),
    )
