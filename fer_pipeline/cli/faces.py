"""Ways out for labels: `export` as CSV, JSON or Parquet, `crops` of the faces, and `copies` among the images."""

import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.csv import CSVWriter
from pydantic import Field, ValidationInfo, field_validator

from fer_pipeline.api.folders import FolderTool, write_folder
from fer_pipeline.api.labels import Labels, open_labels
from fer_pipeline.api.tools import Tool, label_studio_config, write_coco, write_label_studio
from fer_pipeline.base import storage
from fer_pipeline.base.config import Config
from fer_pipeline.base.errors import UserError
from fer_pipeline.labelling import retention
from fer_pipeline.labelling.retention import MOST_DAYS, Expired, mark, new_folder

log = logging.getLogger(__name__)
STDOUT = "-"


class FacesConfig(Config):
    """Faces of a run folder or a published table."""

    labels: str
    """A run folder or a published table."""
    certain: bool = False
    """Only labels that are not uncertain."""
    where: str | None = None
    """Only faces for which this condition of SQL is true, such as "expression = 'happy' and confidence > 0.9"."""
    once: bool = False
    """Of images with the same bytes only the first."""


def _require_kind(to: str) -> str:
    if to != STDOUT and os.path.splitext(to)[1].lower() not in WRITERS:
        raise ValueError(f"'{to}' must end in {', '.join(WRITERS)}")
    return to


class ExportConfig(FacesConfig):
    """Write one row for each face, with a probability for each class, to a CSV, JSON or Parquet file."""

    format: Tool | FolderTool | None = None
    """For another tool: `coco`, a .json file with all images, or `label-studio`, a .json file of tasks with the labels as
    predictions; with the pictures, into a new folder: `cvat` (also for datumaro), `fiftyone`, or `hf` (Hugging Face). `correct`
    takes what people answer there."""
    to: str = STDOUT
    """A .csv, .json (one array), .jsonl (one object a line) or .parquet file; by default CSV goes to the standard output."""
    columns: str = ""
    """Only these columns, in this order, with commas between them."""
    source: str | None = None
    """The folder or URL of the images, for a format with pictures. Pictures are made only of files below it."""

    @field_validator("to")
    @classmethod
    def _require_kind(cls, to: str, info: ValidationInfo) -> str:
        return to if info.data.get("format") else _require_kind(to)


class Exported(Config):
    """The file, and the number of faces in it."""

    to: str
    faces: int
    images: int | None = None
    """Images in a folder with pictures."""
    without_picture: int | None = None
    """Images that are left out of it because they are gone, unreadable or not below `--source`."""


class CopiesConfig(Config):
    """Find the copies among the images of a run or a table: equal, resized, encoded again, mirrored."""

    labels: str
    """A run folder or a published table."""
    to: str = STDOUT
    """A .csv, .json, .jsonl or .parquet file; by default CSV goes to the standard output."""

    page: str | None = None
    """An .html file to write, too: a page of the largest groups with pictures. It needs --source."""
    source: str | None = None
    """The folder or URL of the images. Pictures are made only of files below it."""

    _kind = field_validator("to")(_require_kind)


class Copied(Config):
    """The file, the page, the groups of copies in the file, and their images by kind."""

    to: str
    page: str | None
    groups: int
    images: dict[str, int]


class FindConfig(Config):
    """Find the rows of a picture in a run or a table, also if it was resized, encoded again or mirrored. Nobody is recognised."""

    labels: str
    """A run folder or a published table."""
    like: str
    """File of the picture."""


class FoundImage(Config):
    """An image that is a copy of the picture."""

    kind: str
    """`exact`, `near` (resized, encoded again, edited a little) or `mirrored`."""
    uri: str
    member: str | None
    status: str
    faces: int
    content_sha256: str | None


class Found(Config):
    """The copies of a picture among labelled images."""

    images: tuple[FoundImage, ...]


class ExpireConfig(Config):
    """Erase run folders, and folders that `crops`, `review`, `export` or `redact` wrote, if they are too old; never a table."""

    place: tuple[str, ...]
    """Folders or URLs at or below which they are."""
    retain_days: int = Field(ge=1, le=MOST_DAYS)
    """Erase what was finished more than this number of days ago."""
    dry_run: bool = False
    """Only say what would be erased."""


class CropsConfig(FacesConfig):
    """Write pictures of faces, the most confident first, and `faces.csv` with their rows."""

    out: str
    """Folder to write into: new or empty."""
    source: str
    """The folder or URL of the images. Faces are cut only from files below it."""
    top: int = Field(50, ge=1)
    """Number of faces."""


class Crops(Config):
    """The folder, and the number of pictures in it."""

    out: str
    faces: int


def export(config: ExportConfig) -> Exported | None:
    """Write the faces. Raise UserError if there is no run or table, or a column or the condition is impossible."""
    labels, count = open_labels(config.labels), 0
    if config.format:
        return _export_for(config.format, labels, config)
    wanted = [name.strip() for name in config.columns.split(",") if name.strip()]

    def chosen() -> Iterator[pa.Table]:
        nonlocal count
        for part in labels.face_batches(certain=config.certain, where=config.where, columns=wanted, once=config.once):
            count += len(part)
            yield part

    to = _write(chosen(), config.to)
    if to is None:
        return None
    log.info("Exported %d faces", count)
    return Exported(to=to, faces=count)


def _export_for(tool: Tool | FolderTool, labels: Labels, config: ExportConfig) -> Exported:
    place = storage.normalize(config.to)
    if tool != "coco" and tool != "label-studio":
        return _export_folder(tool, labels, config)
    if os.path.splitext(place)[1].lower() != ".json" or config.columns or config.once:
        raise UserError(f"The format {tool} has all columns and copies: name a .json file by --to, without --columns, --once.")
    with _written(place) as file:
        write = write_coco if tool == "coco" else write_label_studio
        count = write(labels, file, where=config.where, certain=config.certain)
    if tool == "label-studio":
        log.info("Labelling configuration for Label Studio: %s", label_studio_config(labels.classes))
    log.info("Exported %d faces", count)
    return Exported(to=place, faces=count)


def _export_folder(tool: FolderTool, labels: Labels, config: ExportConfig) -> Exported:
    if not config.source or config.to == STDOUT or config.columns or config.once:
        raise UserError(
            f"The format {tool} is a folder with pictures of all columns and copies: name the folder by --to and the images by "
            "--source, without --columns, --once."
        )
    out, source = new_folder(config.to), storage.normalize(config.source)
    found = write_folder(labels, out, tool, source, where=config.where, certain=config.certain)
    if found.without_picture:
        log.warning("%d images are left out: they are gone, unreadable or not below '%s'", found.without_picture, source)
    log.info("Exported %d faces in %d images: %s", found.faces, found.images, out)
    return Exported(to=out, faces=found.faces, images=found.images, without_picture=found.without_picture)


def _write(parts: Iterator[pa.Table], to: str) -> str | None:
    """Write a table to a file, by its extension, and return its path; None for the standard output."""
    if to == STDOUT:
        try:
            write_csv(parts, sys.stdout.buffer)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has all that it wants, such as `head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return None
    place = storage.normalize(to)
    with _written(place) as file:
        WRITERS[os.path.splitext(place)[1].lower()](parts, file)
    return place


def copies(config: CopiesConfig) -> Copied | None:
    """Write the images that have copies. Raise UserError if there is no run or table."""
    labels = open_labels(config.labels)
    if config.page:
        if not config.source:
            raise UserError("--page needs pictures of the images: name their folder or URL by --source.")
        rows, page = labels.copies_page(config.source)
        storage.write_bytes(storage.normalize(config.page), page.encode())
        log.info("Page: %s", config.page)
    else:
        rows = labels.copies()
    to = _write(iter([rows]), config.to)
    kinds = Counter(rows["kind"].to_pylist())
    return None if to is None else Copied(to=to, page=config.page, groups=kinds["original"], images=dict(kinds))


def find(config: FindConfig) -> Found:
    """Return the copies of the picture. Raise UserError if there is no run or table, or the picture cannot be read."""
    labels, place = open_labels(config.labels), storage.normalize(config.like)
    try:
        picture = storage.read_bytes(place)
    except OSError as error:
        raise UserError(f"'{config.like}' cannot be read: {storage.reason(error)}.") from error
    rows = labels.like(picture).to_pylist()
    found = tuple(FoundImage.model_validate({name: row[name] for name in FoundImage.model_fields}) for row in rows)
    log.info("%d of the images are copies of '%s'", len(found), config.like)
    return Found(images=found)


def expire(config: ExpireConfig) -> Expired:
    """Erase what is too old, and name it."""
    found = [retention.expire(storage.normalize(place), config.retain_days, config.dry_run) for place in config.place]
    folders, left = (tuple(url for one in found for url in getattr(one, name)) for name in ("folders", "left"))
    for url in folders:
        log.info("%s %s", "To erase:" if config.dry_run else "Erased:", url)
    return Expired(folders=folders, files=sum(one.files for one in found), left=left)


@contextmanager
def _written(to: str) -> Iterator[IO[bytes]]:
    """Open a file that becomes `to`, at once, when the context ends well."""
    try:
        with storage.written(to) as file:
            yield file
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(f"'{to}' cannot be written: {error.strerror}. Choose another --to.") from error


def _plain(name: str) -> str:
    """Return a name of a class, which anybody may have written, as a part of a file name."""
    return re.sub(r"[^\w-]", "_", name)[:40]


def _write_tables(writer_of: Callable[[IO[bytes], pa.Schema], Any], parts: Iterator[pa.Table], file: IO[bytes]) -> None:
    first = next(parts)
    with writer_of(file, first.schema) as writer:
        for part in chain([first], parts):
            writer.write_table(part.cast(first.schema))


write_csv = partial(_write_tables, CSVWriter)


def _write_lines(parts: Iterator[pa.Table], file: IO[bytes]) -> None:
    for part in parts:
        file.writelines(f"{_json(row)}\n".encode() for row in part.to_pylist())


def _write_array(parts: Iterator[pa.Table], file: IO[bytes]) -> None:
    before = "[\n"
    for row in (row for part in parts for row in part.to_pylist()):
        file.write(f"{before}{_json(row)}".encode())
        before = ",\n"
    file.write(b"[]\n" if before == "[\n" else b"\n]\n")


def _json(row: dict[str, Any]) -> str:
    return json.dumps(row, default=str, ensure_ascii=False)  # `str` writes moments in ISO 8601


WRITERS: dict[str, Callable[[Iterator[pa.Table], IO[bytes]], None]] = {
    ".csv": write_csv,
    ".json": _write_array,
    ".jsonl": _write_lines,
    ".parquet": partial(_write_tables, partial(pq.ParquetWriter, compression="zstd")),
}


def crops(config: CropsConfig) -> Crops:
    """Write the pictures. Raise UserError if the folder is not empty, or as `export` does."""
    out = new_folder(config.out)
    found = open_labels(config.labels).crops(
        where=config.where,
        certain=config.certain,
        top=config.top,
        source=storage.normalize(config.source),
        once=config.once,
    )
    names = [f"{number:05d}-{_plain(one.row['expression'])}-{one.row['confidence']:.2f}.jpg" for number, one in enumerate(found)]
    mark(out, "crops", finished=False)
    for name, one in zip(names, found, strict=True):
        storage.write_bytes(storage.join(out, name), one.jpeg)
    if found:
        rows = pa.Table.from_pylist([{"picture": name} | one.row for name, one in zip(names, found, strict=True)])
        with _written(storage.join(out, "faces.csv")) as file:
            write_csv(iter([rows]), file)
    mark(out, "crops")
    log.info("Wrote %d pictures", len(found))
    return Crops(out=out, faces=len(found))
