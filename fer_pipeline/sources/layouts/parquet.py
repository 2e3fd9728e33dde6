"""Parquet with an encoded image and a class in every row, as Hugging Face datasets and this project's own samples are."""

import json
import posixpath
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from fer_pipeline.core import storage
from fer_pipeline.core.dataset import DATASET_FILE
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.labels import LabelSpace, Numbering
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.files import name_below, says_damage
from fer_pipeline.sources.formats import FORMATS, format_of
from fer_pipeline.sources.formats.parquets import image_column
from fer_pipeline.sources.layouts.layout import (
    DAMAGED,
    Excluded,
    LayoutSpec,
    Part,
    Reading,
    class_of,
    said_split,
    sample_of,
    split_of_file,
)
from fer_pipeline.sources.walk import list_files

LABEL_COLUMNS = ("label", "labels", "emotion", "expression", "class", "cls")
SPLIT_COLUMNS = ("split", "usage")


@dataclass(frozen=True)
class Parquet:
    """The class is a name, or an index into the names that the file's own metadata give (Hugging Face), into those of the dataset
    of this project that it belongs to, or a number of the numbering.

    The split is that of a column `split` or `usage`, or what the file's name or folder begins with.
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
                parts.append(Part(file.uri))  # which `read` finds damaged
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
        with storage.opened_parquet(part.uri) as parquet:
            schema = parquet.schema_arrow
            label_column, split_column = _first(schema, LABEL_COLUMNS), _first(schema, SPLIT_COLUMNS)
            assert label_column
            names = _class_names(schema, label_column)
            if not names and pa.types.is_integer(schema.field(label_column).type):
                names = _own_classes(part.uri)
            columns = [column for column in (label_column, split_column) if column]
            rows = parquet.read_row_groups(list(range(part.start, part.end)), columns).to_pylist()
        for row, values in enumerate(rows, part.first_row):
            source, value = f"{name}#{row}", values[label_column]
            if names and isinstance(value, int) and 0 <= value < len(names):
                value = names[value]
            label = class_of(value, self.space, source, self.numbering)
            split = said_split(values[split_column], source) if split_column else split_of_file(name)
            yield sample_of(Record(part.uri, f"row {row}", row), label, split, source)


def _own_classes(uri: str) -> list[str]:
    """Return the classes of the ingested dataset of this project whose samples a file holds; none of any other file."""
    path = storage.join(posixpath.dirname(posixpath.dirname(uri)), DATASET_FILE)
    if not storage.exists(path):
        return []
    try:
        return list(LabelSpace.model_validate(json.loads(storage.read_bytes(path))["label_space"]).classes)
    except (ValueError, KeyError, TypeError):  # another's file of that name
        return []


def _parts_of(uri: str) -> list[Part]:
    """Return a part for each row group; raise UserError for a file without the columns, ArrowException for a damaged one."""
    with storage.opened_parquet(uri) as parquet:
        schema, metadata = parquet.schema_arrow, parquet.metadata
        if image_column(schema) is None or _first(schema, LABEL_COLUMNS) is None:
            raise UserError(
                f"'{uri}' needs a column of encoded images and one of classes ({', '.join(LABEL_COLUMNS)}); "
                f"it has {', '.join(schema.names)}."
            )
        parts, first = [], 0
        for group in range(metadata.num_row_groups):
            parts.append(Part(uri, group, group + 1, first_row=first))
            first += metadata.row_group(group).num_rows
    return parts


def _first(schema: pa.Schema, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in schema.names), None)


def _class_names(schema: pa.Schema, column: str) -> list[str]:
    """Return the names of a Hugging Face `ClassLabel`, which stand in the schema's metadata."""
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
