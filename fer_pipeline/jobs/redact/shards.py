"""Redact a shard of a run: images of plain files are written, and those in containers are kept in parts."""

import errno
import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from fer_pipeline.archive.fetch import Fetched, fetch
from fer_pipeline.archive.files import inner_path, name_below, with_ending
from fer_pipeline.archive.record import Record, records_of
from fer_pipeline.base import storage
from fer_pipeline.base.boundary import as_record_error
from fer_pipeline.base.errors import ChangedError, RecordError
from fer_pipeline.base.isolated import IsolatedProcess, alarm
from fer_pipeline.base.memory import MEMORY_BYTES, limit_memory
from fer_pipeline.base.storage import parquet
from fer_pipeline.engine.tasks import Shared
from fer_pipeline.faces.decode import survives
from fer_pipeline.faces.mosaic import covered_copy
from fer_pipeline.jobs.redact.containers import MARK, TABLE, WORK, Parts, container_copy, is_member, name_of_copy
from fer_pipeline.labelling.run import RunFolder, RunRecord
from fer_pipeline.labelling.schemas import ADDED, BLOCKED, FAILED, IMAGES
from fer_pipeline.report.pictures import TIMEOUT_S, PictureLimits
from fer_pipeline.table.flat import chosen, flat_faces

FILES = pa.schema(
    [
        pa.field("record_id", pa.int64(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("time_ms", pa.int64()),
        pa.field("copy", pa.string()),
        pa.field("covered", pa.int32(), nullable=False),
        pa.field("visible", pa.int32(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("error", pa.string()),
    ]
)
"""What became of each record: the path of its copy below the folder, null if there is none; faces that are covered, and that were
found but are not chosen; why there is no copy, in a few words and in detail."""
FRAME = "frame"
UNWRITABLE = "no file can have their name"
NAMELESS = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
"""Error numbers of a name that the copy cannot have."""
REASONS = {FRAME: "frames of videos", BLOCKED: "erased from the table", "changed": "changed after they were labelled"}


@dataclass(frozen=True)
class RedactContext:
    """What each task needs."""

    folder: RunFolder
    record: RunRecord
    out: str
    where: str | None
    blocked: frozenset[str]
    """Digests of what was erased."""

    def rows_path(self, shard: int) -> str:
        """Return the file of a shard's rows of `FILES`. Writing it is the commit of the shard."""
        return storage.join(self.out, WORK, f"{shard:06d}.parquet")


def redact_shard(shared: Shared[RedactContext], numbered: tuple[int, pa.Table], careful: bool = False) -> int:
    """Write the copies of a shard's images; `numbered`: its number and its manifest. Return the number of its records."""
    context, (shard, manifest) = shared.load(_limited), numbered
    images = parquet.read_own(context.folder.images_path(shard), IMAGES, added=ADDED, kept=context.record.known.keep or ())
    known = images.select(["status", "error", "content_sha256"]).to_pylist()
    rows = dict(zip(images["record_id"].to_pylist(), known, strict=True))
    covered, found = _boxes(context, images)
    records, ids = records_of(manifest), manifest["record_id"].to_pylist()
    limits, said, time_limit = PictureLimits.of(context.record), list[dict[str, Any]](), alarm(TIMEOUT_S)
    wanted = [_to_read(context, record, rows[one]) for record, one in zip(records, ids, strict=True)]
    wanted = _survivors(wanted, limits) if careful else wanted
    fetching = fetch(wanted, limits.max_bytes, limits.image_column)
    with Parts(context.out, shard, records) as parts, fetching as fetched:
        for record, one, data in zip(records, ids, fetched, strict=True):
            path = name_below(context.record.source, record.uri, record.member)
            row = {"record_id": one, "path": path, "time_ms": record.time_ms, "covered": 0, "visible": 0}
            try:
                with time_limit():
                    copy, endings = _copy(data, rows[one]["content_sha256"], covered[one], limits)
            except Exception as error:  # noqa: BLE001 (the boundary around one record)
                fault = as_record_error(error, "undecodable")
                said.append(row | {"reason": REASONS.get(fault.status, fault.status), "error": fault.reason or None})
                continue
            name, fault_of_name = _write(context, parts, record, copy, endings)
            if name:
                row |= {"covered": len(covered[one]), "visible": found[one] - len(covered[one])}
            said.append(row | {"copy": name, "reason": fault_of_name and UNWRITABLE, "error": fault_of_name})
    parquet.write_table(context.rows_path(shard), pa.Table.from_pylist(said, schema=FILES))
    return len(said)


def _write(
    context: RedactContext, parts: Parts, record: Record, copy: bytes, endings: tuple[str, ...]
) -> tuple[str | None, str | None]:
    """Write a copy, or keep it for its container. Return its path below the folder, or why no file can have its name."""
    source = context.record.source
    if is_member(record):
        container, member = container_copy(source, record), inner_path(record.member or "page")
        member = member if container.lower().endswith(TABLE) else with_ending(member, MARK, *endings)
        parts.add(record.uri, member, copy)
        return f"{container}/{member}", None
    name = name_of_copy(source, record.uri, *endings)
    try:
        storage.write_bytes(storage.join(context.out, name), copy)
    except OSError as error:
        if error.errno not in NAMELESS:  # the store is at fault, not the record
            raise
        return None, error.strerror or storage.reason(error)
    return name, None


def redact_carefully(shared: Shared[RedactContext], numbered: tuple[int, pa.Table]) -> int:
    """Redact a shard that killed its worker, without the records that kill it."""
    return redact_shard(shared, numbered, careful=True)


def _limited(context: RedactContext) -> RedactContext:
    limit_memory(MEMORY_BYTES)
    return context


def _boxes(context: RedactContext, images: pa.Table) -> tuple[dict[int, list[list[float]]], Counter[int]]:
    """Return the boxes to cover, and the number of all faces, by record."""
    faces, boxes = flat_faces(images, context.record.classes, context.record.source), defaultdict[int, list[list[float]]](list)
    to_cover = chosen(faces, context.where) if context.where else faces
    for face in to_cover.select(["record_id", *"xywh"]).to_pylist():
        boxes[face["record_id"]].append([face[side] for side in "xywh"])
    return boxes, Counter(faces["record_id"].to_pylist())


def _to_read(context: RedactContext, record: Record, row: dict[str, Any]) -> Record | RecordError:
    """Return a record, or why it gets no copy."""
    if name_below(context.record.source, record.uri).startswith(f"{WORK}/"):
        return RecordError(UNWRITABLE, f"the folder '{WORK}' holds what is known of the copies")
    if record.time_ms is not None:
        return RecordError(FRAME, "a video is not copied, because the faces between the sampled frames are not known")
    if row["status"] == BLOCKED or row["content_sha256"] in context.blocked:
        return RecordError(BLOCKED, "")
    return RecordError(row["status"], row["error"] or "") if row["status"] in FAILED else record


def _survivors(wanted: Sequence[Record | RecordError], limits: PictureLimits) -> list[Record | RecordError]:
    """Return the records; one that kills the process that decodes it becomes an error."""
    with closing(IsolatedProcess()) as process:
        faults = [
            survives(process, one, limits.max_pixels, limits.max_bytes, TIMEOUT_S) if isinstance(one, Record) else None
            for one in wanted
        ]
    return [fault or one for fault, one in zip(faults, wanted, strict=True)]


def _copy(
    data: Fetched, digest: str | None, boxes: Sequence[Sequence[float]], limits: PictureLimits
) -> tuple[bytes, tuple[str, ...]]:
    """Return `covered_copy` of an image. Raise ChangedError if its bytes are not those that were labelled."""
    if isinstance(data, bytes) and digest and hashlib.sha256(data).hexdigest() != digest:
        raise ChangedError
    return covered_copy(data, boxes, limits.max_pixels)
