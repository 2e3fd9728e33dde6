"""Faces as flat rows, one for each face: the columns of exports, and the choice of rows by SQL."""

import posixpath
import re
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.archive.files import name_below
from fer_pipeline.base.errors import UserError
from fer_pipeline.faces.quality import QUALITY
from fer_pipeline.labelling.faces_table import outputs_of_faces, qualities_of_faces
from fer_pipeline.labelling.schemas import IMAGES, OF_FACES
from fer_pipeline.models.card import MOST_OUTPUTS, OUTPUT_NAME
from fer_pipeline.models.framing import LANDMARK_COLUMNS
from fer_pipeline.table.rows import ROWS, is_taken

LONGEST_PATH = 32_768
"""Longest path of an image, in bytes."""
OF_FACE = ("face_id", "expression", "confidence", "uncertain")
BOX = ("x", "y", "w", "h", "detection_score")
NOT_REPEATED = ("faces", *OF_FACES, "colours")
"""Columns of an image that its faces do not repeat."""
TO_FIND = ("record_id", "etag", "size_bytes", "model_digest")
"""Columns of the image that find its picture again, or say what labelled it to a review. They are not exported."""
OF_IMAGE = (
    "width",
    "height",
    "taken_at",
    "camera",
    "content_sha256",
    "phash",
    "note",
    "model",
    "model_version",
    "detector",
    "run_id",
    "labelled_at",
)
"""Columns of the image that each of its faces has, where they are known."""


def flat_faces(images: pa.Table, classes: Sequence[str], source: str, outputs: Sequence[str] = ()) -> pa.Table:
    """Return one row for each face in rows of `schemas.IMAGES`, of the table, or of `schemas.LABELLED`.

    Columns: `path` below the source and its `folder`, `uri`, `member`, `time_ms`, what the face has, `p_CLASS` for each class,
    the box and the landmarks in pixels of the upright image, and facts of the image and its run.
    """
    _require_short(images)
    nested = images["faces"].combine_chunks()
    if isinstance(nested, pa.ChunkedArray):  # no chunk at all
        nested = pa.array([], nested.type)
    qualities = qualities_of_faces(images)
    parents = images.select([name for name in images.column_names if name not in NOT_REPEATED]).take(
        pc.list_parent_indices(nested)
    )
    faces = pc.list_flatten(nested)
    columns: dict[str, Any] = _places(parents, source)
    columns |= {name: faces.field(name) for name in OF_FACE}
    columns |= _probabilities(faces.field("probabilities"), classes)
    columns |= {name: faces.field(name) for name in BOX}
    columns |= _landmarks(faces.field("landmarks"))
    columns |= {name: qualities[name] for name in QUALITY.names}
    columns |= _outputs(parents, outputs_of_faces(images), outputs)
    columns |= {name: parents[name] for name in (*TO_FIND, "input", *OF_IMAGE) if name in parents.column_names}
    columns |= {name: parents[name] for name in parents.column_names if name not in {*IMAGES.names, *ROWS.names}}  # of a list
    return pa.table({name: _plain(column) for name, column in columns.items()})


def flat_images(images: pa.Table, source: str) -> pa.Table:
    """Return one row for each image: its `path`, `folder` and number of `faces`, and all other columns but those of the faces."""
    columns: dict[str, Any] = _places(images, source) | {"faces": pc.list_value_length(images["faces"])}
    columns |= {name: images[name] for name in images.column_names if name not in (*columns, *NOT_REPEATED)}
    return pa.table({name: _plain(column) for name, column in columns.items()})


def flat_tracks(tracks: pa.Table, classes: Sequence[str]) -> pa.Table:
    """Return rows of `labelling.tracks.TRACKS` with a column `p_CLASS` for each class instead of `probabilities`."""
    columns: dict[str, Any] = {name: tracks[name] for name in tracks.column_names if name != "probabilities"}
    columns |= _probabilities(tracks["probabilities"].combine_chunks(), classes)
    return pa.table({name: _plain(column) for name, column in columns.items()})


def _require_short(images: pa.Table) -> None:
    """Raise ValueError for paths that no store has: each face repeats the path of its image."""
    for name in ("uri", "member"):
        if (pc.max(pc.binary_length(images[name].cast(pa.string()))).as_py() or 0) > LONGEST_PATH:
            raise ValueError(f"a path has more than {LONGEST_PATH} bytes")


def _places(rows: pa.Table, source: str) -> dict[str, Any]:
    uris, members = rows["uri"].to_pylist(), rows["member"].to_pylist()
    sources = rows["source"].to_pylist() if "source" in rows.column_names else [source] * len(uris)
    paths = [name_below(*place) for place in zip(sources, uris, members, strict=True)]
    return {
        "path": pa.array(paths, pa.string()),
        "folder": pa.array([posixpath.dirname(path) for path in paths], pa.string()),
        **{name: rows[name] for name in ("uri", "member", "time_ms")},
    }


def _probabilities(lists: pa.Array, classes: Sequence[str]) -> dict[str, pa.Array]:
    if not len(lists):
        return {f"p_{name}": pa.array([], pa.float32()) for name in classes}
    if set(pc.unique(pc.list_value_length(lists)).to_pylist()) != {len(classes)} or len(set(classes)) < len(classes):
        raise ValueError("the probabilities are not those of the classes")
    values = pc.list_flatten(lists).to_numpy().reshape(-1, len(classes))
    return {f"p_{name}": pa.array(column) for name, column in zip(classes, values.T.copy(), strict=True)}


def names_of_outputs(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the names in values of `output_names`, each once. Raise ValueError for what cannot be a column of its own."""
    names = tuple(dict.fromkeys(name for text in texts for name in text.split(",")))
    if len(names) > MOST_OUTPUTS or not all(re.fullmatch(OUTPUT_NAME, name) and not is_taken(name) for name in names):
        raise ValueError("the names of its further outputs are not names of columns")
    return names


def _outputs(parents: pa.Table, lists: pa.Array, wanted: Sequence[str]) -> dict[str, pa.Array]:
    """Return a column for each of the wanted outputs of the models that labelled the faces; null where a model has it not."""
    values = {name: np.zeros(len(lists), np.float32) for name in wanted}
    known = {name: np.zeros(len(lists), bool) for name in wanted}
    texts = parents["output_names"].cast(pa.string()) if wanted else pa.chunked_array([], pa.string())
    for text in pc.unique(texts.drop_null()).to_pylist():
        names, rows = text.split(","), np.flatnonzero(pc.fill_null(pc.equal(texts, text), False).to_numpy())
        some = lists.take(pa.array(rows))
        if set(pc.unique(pc.list_value_length(some)).to_pylist()) != {len(names)}:
            raise ValueError("the outputs are not those of their names")
        for name, column in zip(names, pc.list_flatten(some).to_numpy().reshape(-1, len(names)).T, strict=True):
            values[name][rows], known[name][rows] = column, True
    return {name: pa.array(values[name], mask=~known[name]) for name in wanted}


def _landmarks(lists: pa.Array) -> dict[str, pa.Array]:
    points, known = np.zeros((len(lists), len(LANDMARK_COLUMNS)), np.float32), lists.is_valid().to_numpy(zero_copy_only=False)
    points[known] = pc.list_flatten(lists.drop_null()).to_numpy().reshape(-1, len(LANDMARK_COLUMNS))
    return {name: pa.array(points[:, index], mask=~known) for index, name in enumerate(LANDMARK_COLUMNS)}


def _plain(column: Any) -> Any:
    """Return a column without dictionaries, which CSV and joins of several files do not take."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def chosen(rows: pa.Table, where: str) -> pa.Table:
    """Return the rows for which a condition of SQL (SQLite's) is true. Raise UserError if it is not one about their columns.

    A condition is about one row, so it has no sub-select. SQLite reads an unknown name in double quotes as a text; here it is an
    error, as in other databases.
    """
    code = re.sub(r"'(?:[^']|'')*'", "''", where)
    known = {name.lower() for name in rows.column_names}
    unknown = next((name for name in re.findall(r'"([^"]*)"', code) if name.lower() not in known), None)
    fault = "a condition is about one row, without select" if re.search(r"\bselect\b", code, re.I) else None
    fault = f'there is no column "{unknown}"; a text stands in single quotes' if unknown is not None else fault
    if fault:
        raise _impossible(where, fault, rows)
    names = [name for name in rows.column_names if re.search(rf"\b{re.escape(name)}\b", code, re.I)]
    values = [[_scalar(value) for value in rows[name].to_pylist()] for name in names]
    with sqlite3.connect(":memory:") as database:
        try:
            columns = ["row integer", *(f'"{name}" {_affinity(rows.schema.field(name).type)}' for name in names)]
            database.execute(f"create table faces ({', '.join(columns)})")
            marks = ", ".join("?" * (1 + len(names)))
            database.executemany(f"insert into faces values ({marks})", zip(range(len(rows)), *values, strict=True))
            found = [number for (number,) in database.execute(f"select row from faces where ({where}) order by row")]
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise _impossible(where, str(error), rows) from error
    return rows.take(pa.array(found, pa.int64()))


def _impossible(where: str, fault: str, rows: pa.Table) -> UserError:
    example = "\"expression = 'happy' and confidence > 0.9\""
    columns = ", ".join(name for name in rows.column_names if name not in TO_FIND)
    return UserError(
        f"The condition '{where[:200]}' cannot be used: {fault}. Write one in SQL, such as {example}; the columns are {columns}."
    )


def _affinity(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return "integer"
    return "real" if pa.types.is_floating(kind) else "text"


def _scalar(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
