"""Explain one record of a run: its source, its result, and the model that labelled it. Runs on this machine, without Ray."""

import logging
import re
from contextlib import closing
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.base import storage
from fer_pipeline.base.config import Config
from fer_pipeline.base.errors import OutageError, UserError
from fer_pipeline.base.memory import bounded_read
from fer_pipeline.base.storage import parquet
from fer_pipeline.labelling.manifest import find_records
from fer_pipeline.labelling.run import RunFolder, RunRecord
from fer_pipeline.labelling.schemas import ADDED, IMAGES, SUCCEEDED
from fer_pipeline.report.pictures import PictureLimits, PictureProcess

log = logging.getLogger(__name__)


class ExplainConfig(Config):
    """Show everything that a run knows about one record."""

    run: str
    """Run folder of a labelling run."""
    uri: str
    """The file as named in `images/`, or the end of its path if only one file matches."""
    member: str | None = None
    """Name of the member in the file, if the file is a container."""
    time_ms: int | None = None
    """Time of the frame in ms, if the file is a video."""
    out: str | None = None
    """File for the picture with the faces marked, as a JPEG. Needs --source."""
    source: str | None = None
    """Folder or URL below which the picture is read: the run's source. Without it, only the run folder is read."""


class Explained(Config):
    """One record, and the run that computed its row."""

    row: dict[str, Any]
    """The row in `images/`, with its faces nested."""
    run: dict[str, Any]
    """Id, software, source, settings, model and detector of the run that computed the row."""
    shard_file: str
    """The file that holds the row."""
    picture: str | None
    """The marked copy, if it was requested and the file still exists."""


def run(config: ExplainConfig) -> Explained:
    """Return what the run knows about the record. Raise UserError if no record matches, or several do."""
    folder = RunFolder(storage.normalize(config.run))
    if config.out and not config.source:
        raise UserError("--out needs --source: name the folder or URL below which the image may be read.")
    record = folder.load()
    if record is None:
        raise UserError(f"There is no labelling run in '{folder.url}': name the folder of a run.")
    path, row = _row(config, folder)
    facts = record.model_dump(mode="json", include={"run_id", "version", "created_at", "source", "settings", "model", "detector"})
    log.info("'%s': %s%s", row["uri"], row["status"], f" ({row['error']})" if row["error"] else "")
    for face in row["faces"] or []:
        unsure = ", uncertain" if face["uncertain"] else ""
        log.info("  face %d: %s %.2f%s, %.0f px wide", face["face_id"], face["expression"], face["confidence"], unsure, face["w"])
    picture = _picture(config, folder, record, row) if config.out else None
    return Explained(row=row, run=facts, shard_file=path, picture=picture)


def _row(config: ExplainConfig, folder: RunFolder) -> tuple[str, dict[str, Any]]:
    """Return the path of the file that holds the record, and the record's row."""
    if moment := re.fullmatch(r"(.+) at (\d+) ms", config.uri):  # as the message below names a frame
        config = config.model_copy(update={"uri": moment[1], "time_ms": int(moment[2])})
    found: list[tuple[str, dict[str, Any]]] = []
    for name in storage.list_names(folder.path("images")):
        path = folder.path("images", name)
        with bounded_read(path):
            rows = parquet.read_own(path, IMAGES, added=ADDED)
            found += [(path, row) for row in _ending(rows, config.uri).to_pylist() if _matches(config, row)]
    exact = [one for one in found if config.uri in (one[1]["uri"], _path(one[1]))]
    found = exact or found
    if len(found) != 1:
        names = ", ".join(_name(row) for _, row in found[:5])
        raise UserError(
            f"'{config.uri}' matches {len(found)} records of this run ({names}, ...): name a longer path, --member or --time-ms."
            if found
            else f"No record of the run '{folder.url}' matches '{config.uri}': check the path, --member and --time-ms."
        )
    return found[0]


def _ending(rows: pa.Table, name: str) -> pa.Table:
    """Return the rows whose file, or member of a container, has a path that ends with a name."""
    paths = pc.binary_join_element_wise(rows["uri"].cast(pa.string()), rows["member"], "/", null_handling="skip")
    return rows.filter(pc.or_(pc.ends_with(rows["uri"].cast(pa.string()), name), pc.ends_with(paths, name)))


def _path(row: dict[str, Any]) -> str:
    return row["uri"] if row["member"] is None else f"{row['uri']}/{row['member']}"


def _matches(config: ExplainConfig, row: dict[str, Any]) -> bool:
    return config.member in (None, row["member"]) and config.time_ms in (None, row["time_ms"])


def _name(row: dict[str, Any]) -> str:
    moment = "" if row["time_ms"] is None else f" at {row['time_ms']} ms"
    return f"{_path(row)}{moment}"


def _picture(config: ExplainConfig, folder: RunFolder, record: RunRecord, row: dict[str, Any]) -> str | None:
    """Write the picture with its faces marked; return None if the record failed or its file cannot be read any more."""
    if row["status"] not in SUCCEEDED:
        return None
    found = find_records(folder.manifest_prefix(record.run_id), [row["record_id"]])
    if row["record_id"] not in found:
        raise UserError(f"The manifest of '{folder.url}' has no record {row['record_id']}: the run folder is incomplete.")
    source, out = storage.normalize(str(config.source)), storage.normalize(str(config.out))
    storage.require_below([found[row["record_id"]].uri], [source], f"The run in '{folder.url}'")
    with closing(PictureProcess(PictureLimits.of(record))) as process:
        try:
            picture = process.marked(found[row["record_id"]], row["faces"] or [])
        except (ValueError, OutageError) as error:
            log.warning("The picture cannot be read any more: %s", error)
            return None
    storage.write_bytes(out, picture)
    return out
