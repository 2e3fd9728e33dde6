"""Redact: copy the images of a labelling run with a mosaic over the faces that were found, and say what is not covered."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.archive.record import records_of
from fer_pipeline.base import storage
from fer_pipeline.base.config import PLACE, Config, read_record, require_same
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.storage import parquet
from fer_pipeline.engine.connect import ClusterConfig, connected
from fer_pipeline.engine.machines import Machines
from fer_pipeline.engine.progress import progress
from fer_pipeline.engine.tasks import Shared, fan_out, share
from fer_pipeline.jobs.lineage import traced
from fer_pipeline.jobs.redact.containers import WORK, Container, containers_of, join
from fer_pipeline.jobs.redact.shards import FILES, RedactContext, redact_carefully, redact_shard
from fer_pipeline.labelling.audits import last_score
from fer_pipeline.labelling.estimates import Interval
from fer_pipeline.labelling.manifest import read_shards
from fer_pipeline.labelling.retention import WRITTEN, mark
from fer_pipeline.labelling.run import AUDITS_FOLDER, READERS, RunFolder, RunRecord
from fer_pipeline.labelling.schemas import IMAGES
from fer_pipeline.table.blocklist import read_blocklist
from fer_pipeline.table.delta import is_table
from fer_pipeline.table.flat import chosen, flat_faces

log = logging.getLogger(__name__)
REDACTION = "redaction.json"
NAMED = 20
"""Records without a copy that are named."""


class RedactConfig(Config):
    """Write copies of the images of a labelling run in which the faces that were found are covered by a mosaic."""

    run: Annotated[str, PLACE]
    """Folder of a finished labelling run."""
    source: Annotated[str, PLACE]
    """The folder or URL of the images. Only files below it are read."""
    out: Annotated[str, PLACE]
    """Folder of the copies: new, or of the same redaction, which goes on. Containers become containers."""
    where: str | None = None
    """Cover only the faces for which this condition of SQL is true, such as "uncertain" or "expression = 'fear'"."""
    table: Annotated[str | None, PLACE] = None
    """A published table: what was erased from it (`table forget`) gets no copy. The default is the run's table."""


class Redaction(Config):
    """What was copied, and what is not covered. People may be known by more than a face: nothing of this is anonymous."""

    out: str
    copies: int
    """Images that were copied."""
    covered: int
    """Faces under a mosaic."""
    visible: int
    """Faces that were found but are visible, because `where` does not choose them."""
    without_face: int
    """Copied images in which no face was found; what detection missed in them is visible."""
    missed: Interval | None = None
    """Share of such images that show a face, by the run's latest audit (`review --audit`)."""
    not_copied: dict[str, int]
    """Records without a copy, by reason."""
    first_not_copied: list[dict[str, str | None]]
    """The first of them; `_redacted/` has a row for each record."""
    other_files: dict[str, int]
    """Files that labelling skipped, by extension: they are not copied."""


class RedactionRecord(Config):
    """`redaction.json`."""

    run_id: str
    where: str | None
    erased: str
    """Digest of the list of what was erased from the table: a redaction does not go on with another one."""
    result: Redaction | None = None


@traced("redact", ("run", "source"), ("out",))
def run(config: RedactConfig, cluster: ClusterConfig = ClusterConfig()) -> Redaction:
    """Write the copies, or the rest of them, and return what is covered. Raise UserError, before any work, for invalid input."""
    folder = RunFolder(storage.normalize(config.run))
    source, out = storage.normalize(config.source), storage.normalize(config.out)
    storage.require_access(folder.url, source, out)
    record = folder.load()
    if record is None or record.result is None:
        raise UserError(f"There is no finished labelling run in '{folder.url}': finish it by fer-pipeline label.")
    if any(storage.is_below(*two) for one in (source, folder.url) for two in ((out, one), (one, out))):
        raise UserError(f"--out '{out}' and the images or the run are in one another: choose another folder for the copies.")
    if config.where:
        chosen(flat_faces(IMAGES.empty_table(), record.classes, record.source), config.where)
    blocked = _blocked(config, record)
    context = RedactContext(folder, record, out, config.where, blocked)
    containers = _containers(context, source)
    kept = _begin(out, RedactionRecord(run_id=record.run_id, where=config.where, erased=_digest(blocked)))
    if kept.result:
        log.info("This redaction is finished, there is nothing to do: %s", out)
        return kept.result
    with connected(cluster, source, out, folder.url) as machines:
        _redact(context, share(context), machines)
        _join(context, containers, machines)
    result = _result(context)
    kept = kept.model_copy(update={"result": result})
    storage.write_bytes(storage.join(out, REDACTION), kept.model_dump_json(indent=2).encode())
    mark(out, "redact")
    log.info("%d faces are covered in %d copies: %s", result.covered, result.copies, out)
    if result.not_copied:
        log.warning("Not copied: %s", ", ".join(f"{count} {reason}" for reason, count in result.not_copied.items()))
    log.warning("No copy is anonymous: detection misses faces, and people are known by more than a face. Look at the copies.")
    return result


def _begin(out: str, asked: RedactionRecord) -> RedactionRecord:
    """Return the record of the redaction in `out`, which begins if the folder is empty."""
    place = storage.join(out, REDACTION)
    if not storage.exists(place):
        if set(storage.list_names(out)) - {WRITTEN}:
            raise UserError(f"'{out}' is not empty and holds no {REDACTION}: choose a new folder for --out.")
        mark(out, "redact", finished=False)
        storage.create(place, asked.model_dump_json(indent=2).encode())
    kept = read_record(place, RedactionRecord, "record of a redaction")
    settings = {"run_id", "where"}
    require_same(f"The redaction in '{out}'", asked.model_dump(include=settings), kept.model_dump(include=settings))
    if kept.erased != asked.erased:
        raise UserError(f"Since the redaction in '{out}' began, images were erased from the table: delete it and begin again.")
    return kept


def _digest(blocked: frozenset[str]) -> str:
    return hashlib.sha256("\n".join(sorted(blocked)).encode()).hexdigest()


def _blocked(config: RedactConfig, record: RunRecord) -> frozenset[str]:
    table = config.table or (record.increment.table if record.increment else None)
    if config.table and not is_table(storage.normalize(config.table)):
        raise UserError(f"There is no table in '{config.table}': name a published table, or leave out --table.")
    return read_blocklist(table).contents if table else frozenset()


def _containers(context: RedactContext, source: str) -> list[Container]:
    """Return the containers of the run. Raise UserError if one of its records is outside of the source."""
    if not all(storage.is_below(root, source) for root in context.record.roots):
        roots = "' and '".join(context.record.roots)
        raise UserError(f"The run in '{context.folder.url}' is of '{roots}', not of '{source}': name that by --source.")
    return containers_of(context.out, ((shard, records_of(table)) for shard, table in _manifests(context, source)))


def _manifests(context: RedactContext, source: str) -> Iterator[tuple[int, pa.Table]]:
    """Yield all shards with their manifests. Raise UserError for a record outside of the source."""
    for shard, manifest in read_shards(context.folder.manifest_prefix(context.record.run_id), range(context.record.shards)):
        readable = manifest.filter(pc.is_null(manifest["error"]))
        storage.require_below(pc.unique(readable["uri"]).to_pylist(), [source], f"The run in '{context.folder.url}'")
        yield shard, manifest


def _redact(context: RedactContext, shared: Shared[RedactContext], machines: Machines) -> None:
    """Redact the shards that are not done."""
    done = set(storage.list_names(storage.join(context.out, WORK)))
    pending = [shard for shard in range(context.record.shards) if f"{shard:06d}.parquet" not in done]
    manifests = read_shards(context.folder.manifest_prefix(context.record.run_id), pending)
    with progress("redacting shards", context.record.shards) as advance:
        advance(context.record.shards - len(pending))
        for _ in fan_out(redact_shard, manifests, shared, machines=machines, careful=redact_carefully):
            advance(1)


def _join(context: RedactContext, containers: list[Container], machines: Machines) -> None:
    """Make containers of what the shards kept."""
    with progress("writing containers", len(containers)) as advance:
        for _ in fan_out(join, containers, context.record.source, context.out, machines=machines):
            advance(1)


def _rows(context: RedactContext) -> Iterator[pa.Table]:
    """Yield the rows of all shards, in order."""
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, context.record.shards, READERS):
            shards = range(start, min(start + READERS, context.record.shards))
            yield from pool.map(lambda shard: parquet.read_own(context.rows_path(shard), FILES), shards)


def _result(context: RedactContext) -> Redaction:
    """Return what the rows of all shards say."""
    sums, reasons, first = Counter[str](), Counter[str](), list[dict[str, Any]]()
    for rows in _rows(context):
        is_copied = pc.is_valid(rows["copy"])
        copied, rest = rows.filter(is_copied), rows.filter(pc.invert(is_copied))
        empty = pc.and_(pc.equal(copied["covered"], 0), pc.equal(copied["visible"], 0))
        sums.update(copies=len(copied), without_face=pc.sum(empty).as_py() or 0)
        sums.update({name: pc.sum(copied[name]).as_py() or 0 for name in ("covered", "visible")})
        reasons.update(rest["reason"].to_pylist())
        first += rest.slice(0, NAMED - len(first)).select(["path", "reason", "error"]).to_pylist()
    score = last_score(context.folder.path(AUDITS_FOLDER))
    counts = {name: sums[name] for name in ("copies", "covered", "visible", "without_face")}
    return Redaction(
        out=context.out,
        **counts,
        missed=score.missed if score and not score.where else None,
        not_copied=dict(reasons.most_common()),
        first_not_copied=first,
        other_files=context.record.skipped,
    )
