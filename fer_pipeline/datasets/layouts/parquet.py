"""Parquet with an encoded image and a class in every row, such as Hugging Face datasets and the samples of this project."""

import json
import posixpath
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from fer_pipeline.archive.files import name_below, says_damage
from fer_pipeline.archive.formats import FORMATS, format_of
from fer_pipeline.archive.formats.rows import image_columns
from fer_pipeline.archive.record import Record
from fer_pipeline.archive.walk import list_files
from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.storage import parquet
from fer_pipeline.datasets.dataset import DATASET_FILE
from fer_pipeline.datasets.layouts.layout import (
    DAMAGED,
    Excluded,
    LayoutSpec,
    Part,
    Reading,
    class_of,
    parse_split,
    sample_of,
    split_of_path,
)
from fer_pipeline.models.label_space import LabelSpace, Numbering

LABEL_COLUMNS = ("label", "labels", "emotion", "expression", "class", "cls")


@dataclass(frozen=True)
class Parquet:
    """The class is a name, an index into the names in the file's metadata (Hugging Face) or in this project's `dataset.json`,
    or a number in the numbering.

    The split comes from a column `split` or `usage`, otherwise from the name of the file or of a folder above it.
    """

    source: str
    space: LabelSpace
    numbering: Numbering | None = None

    def plan(self) -> list[Part]:
        parts = []
        for file in list_files(self.source):
            if format_of(file.uri) is not FORMATS["parquet"]:
                continue
            try:
                parts += _parts_of(file.uri)
            except (pa.ArrowException, MemoryError, *storage.STORAGE_ERRORS) as error:
                if not says_damage(error):
                    raise
                parts.append(Part(file.uri))  # `read` reports the damage
        if not parts:
            raise UserError(f"The source '{self.source}' holds no Parquet files with rows.")
        return parts

    def read(self, part: Part) -> Reading:
        name = name_below(self.source, part.uri)
        try:
            yield from self._samples(part, name)
        except (pa.ArrowException, MemoryError, *storage.STORAGE_ERRORS) as error:
            if not says_damage(error):
                raise
            yield Excluded(DAMAGED, name, f"the Parquet file is damaged: {storage.reason(error)}")

    def _samples(self, part: Part, name: str) -> Reading:
        with parquet.opened(part.uri) as file:
            schema = file.schema_arrow
            label_column, split_column = _first(schema, LABEL_COLUMNS), _first(schema, ("split", "usage"))
            assert label_column
            names = _class_names(schema, label_column)
            if not names and pa.types.is_integer(schema.field(label_column).type):
                names = _classes_of_dataset(part.uri)
            columns = [column for column in (label_column, split_column) if column]
            rows = file.read_row_groups(list(range(part.start, part.end)), columns).to_pylist()
        for row, values in enumerate(rows, part.first_row):
            source, value = f"{name}#{row}", values[label_column]
            if names and isinstance(value, int) and 0 <= value < len(names):
                value = names[value]
            label = class_of(value, self.space, source, self.numbering)
            split = parse_split(values[split_column], source) if split_column else split_of_path(name)
            yield sample_of(Record(part.uri, f"row {row}", row), label, split, source)


def _classes_of_dataset(uri: str) -> list[str]:
    """Return the classes of the ingested dataset to which a file of samples belongs; empty for any other file."""
    path = storage.join(posixpath.dirname(posixpath.dirname(uri)), DATASET_FILE)
    if not storage.exists(path):
        return []
    try:
        return list(LabelSpace.model_validate(json.loads(storage.read_bytes(path))["label_space"]).classes)
    except (ValueError, KeyError, TypeError):  # an unrelated file of that name
        return []


def _parts_of(uri: str) -> list[Part]:
    """Return a part for each row group. Raise UserError if a column is missing, ArrowException if the file is damaged."""
    with parquet.opened(uri) as file:
        schema, metadata = file.schema_arrow, file.metadata
        if [column.in_list for column in image_columns(schema)] != [None] or _first(schema, LABEL_COLUMNS) is None:
            raise UserError(
                f"'{uri}' lacks one column of encoded images, each row with one, or a column of classes "
                f"({', '.join(LABEL_COLUMNS)}): it has {', '.join(schema.names)}."
            )
        parts, first = [], 0
        for group in range(metadata.num_row_groups):
            parts.append(Part(uri, group, group + 1, first_row=first))
            first += metadata.row_group(group).num_rows
    return parts


def _first(schema: pa.Schema, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in schema.names), None)


def _class_names(schema: pa.Schema, column: str) -> list[str]:
    """Return the class names of a Hugging Face `ClassLabel`, which the metadata of the schema hold."""
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        feature: Any = json.loads(text)["info"]["features"][column] if text else {}
    except (ValueError, KeyError, TypeError):
        return []
    return [str(name) for name in feature.get("names", [])] if isinstance(feature, dict) else []


PARQUET_LAYOUT = LayoutSpec(
    name="parquet",
    help="a column of encoded images and one of classes",
    open=lambda source, space, options: Parquet(source, space, options.numbering),
    options=("numbering",),
)
