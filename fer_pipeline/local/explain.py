"""Explain one record of a run: where it came from, what was done to it, by which model. On this machine, without Ray."""

import logging
from contextlib import closing
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.core import storage
from fer_pipeline.core.config import Config
from fer_pipeline.core.errors import OutageError, UserError
from fer_pipeline.core.manifest import find_records
from fer_pipeline.core.memory import bounded_read
from fer_pipeline.core.run import RunFolder, RunRecord
from fer_pipeline.core.schemas import FINE, IMAGES
from fer_pipeline.report.pictures import PictureLimits, PictureProcess

log = logging.getLogger(__name__)


class ExplainConfig(Config):
    """Tell everything that a run knows about one record."""

    run: str
    """Run folder of a labelling run."""
    uri: str
    """The file, as it stands in `images/`; its end suffices where only one file ends so."""
    member: str | None = None
    """Its member, where the file is a container."""
    time_ms: int | None = None
    """Its moment, where the file is a video."""
    out: str | None = None
    """Where to write its picture with the faces marked, as a JPEG; needs --source."""
    source: str | None = None
    """Folder or URL below which the picture is read: the run's source. Without it no file outside of the run folder is read."""


class Explained(Config):
    """One record, and what made its row."""

    row: dict[str, Any]
    """As in `images/`, its faces nested."""
    run: dict[str, Any]
    """Id, software, source, settings, model and detector of the run that computed it."""
    shard_file: str
    """The file that holds the row."""
    picture: str | None
    """The marked copy, where one was asked for and the file is still there."""


def run(config: ExplainConfig) -> Explained:
    """Return what is known of the record. Raise UserError where there is no such record, or several."""
    folder = RunFolder(storage.normalize(config.run))
    if config.out and not config.source:
        raise UserError("--out writes a picture of the file: name by --source the folder or URL below which it may be read.")
    record = folder.load()
    if record is None:
        raise UserError(f"There is no labelling run in '{folder.url}'.")
    path, row = _row(config, folder)
    facts = record.model_dump(mode="json", include={"run_id", "version", "created_at", "source", "settings", "model", "detector"})
    log.info("'%s': %s%s", row["uri"], row["status"], f" ({row['error']})" if row["error"] else "")
    for face in row["faces"] or []:
        unsure = ", uncertain" if face["uncertain"] else ""
        log.info("  face %d: %s %.2f%s, %.0f px wide", face["face_id"], face["expression"], face["confidence"], unsure, face["w"])
    picture = _picture(config, folder, record, row) if config.out else None
    return Explained(row=row, run=facts, shard_file=path, picture=picture)


def _row(config: ExplainConfig, folder: RunFolder) -> tuple[str, dict[str, Any]]:
    """Return the record's row and the file that holds it; files are read one after the other."""
    found: list[tuple[str, dict[str, Any]]] = []
    for name in storage.list_names(folder.path("images")):
        path = folder.path("images", name)
        with bounded_read(path):
            rows = storage.read_ours(path, IMAGES)
            mine = rows.filter(pc.ends_with(rows["uri"].cast(pa.string()), config.uri))
            found += [(path, row) for row in mine.to_pylist() if _is_meant(config, row)]
    exact = [one for one in found if one[1]["uri"] == config.uri]
    found = exact or found
    if len(found) != 1:
        names = ", ".join(_name(row) for _, row in found[:5])
        raise UserError(
            f"'{config.uri}' is {len(found)} records of this run ({names}, ...): say more of the path, --member or --time-ms."
            if found
            else f"No record of the run '{folder.url}' has the file '{config.uri}'."
        )
    return found[0]


def _is_meant(config: ExplainConfig, row: dict[str, Any]) -> bool:
    return config.member in (None, row["member"]) and config.time_ms in (None, row["time_ms"])


def _name(row: dict[str, Any]) -> str:
    moment = "" if row["time_ms"] is None else f" at {row['time_ms']} ms"
    return f"{row['uri']}{'' if row['member'] is None else '/' + row['member']}{moment}"


def _picture(config: ExplainConfig, folder: RunFolder, record: RunRecord, row: dict[str, Any]) -> str | None:
    """Write the picture with its faces marked; None where it cannot be had any more, or was not looked at."""
    if row["status"] not in FINE:
        return None
    found = find_records(folder.manifest_prefix(record.run_id), [row["record_id"]])
    if row["record_id"] not in found:
        raise UserError(f"The manifest of '{folder.url}' does not hold the record {row['record_id']}: the run is not whole.")
    source, out = storage.normalize(str(config.source)), storage.normalize(str(config.out))
    storage.require_below([found[row["record_id"]].uri], source, f"The run in '{folder.url}'")
    with closing(PictureProcess(PictureLimits.of(record))) as process:
        try:
            picture = process.marked(found[row["record_id"]], row["faces"] or [])
        except (ValueError, OutageError) as error:
            log.warning("The picture cannot be had any more: %s", error)
            return None
    storage.write_bytes(out, picture)
    return out
