"""Parquet with an encoded image and a class in every row, as Hugging Face datasets and this project's own samples are."""

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from fer_pipeline.core import storage
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.labels import LabelSpace
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.files import name_below
from fer_pipeline.sources.formats import FORMATS, format_of
from fer_pipeline.sources.formats.parquets import image_column
from fer_pipeline.sources.layouts.layout import (
    DAMAGED,
    Excluded,
    LayoutSpec,
    Part,
    Reading,
    Sample,
    class_of,
    said_split,
    split_of_file,
)
from fer_pipeline.sources.walk import list_files

LABEL_COLUMNS = ("label", "labels", "emotion", "expression", "class", "cls")
SPLIT_COLUMNS = ("split", "usage")


@dataclass(frozen=True)
class Parquet:
    """The class is a name, or an index into the names that the file's own metadata give (Hugging Face), or into the label space.

    The split is that of a column `split` or `usage`, or what the file's name or folder begins with.
    """

    source: str
    space: LabelSpace

    def plan(self) -> list[Part]:
        parts = []
        for file in list_files(self.source):
            if format_of(file.uri) is not FORMATS["parquet"]:
                continue
            try:
                parts += _parts_of(file.uri)
            except pa.ArrowException:
                parts.append(Part(file.uri))  # which `read` finds damaged
        if not parts:
            raise UserError(f"The source '{self.source}' holds no Parquet files with rows.")
        return parts

    def read(self, part: Part) -> Reading:
        name = name_below(self.source, part.uri)
        try:
            yield from self._samples(part, name)
        except pa.ArrowException as error:
            yield Excluded(DAMAGED, name, f"the Parquet file is damaged: {storage.reason(error)}")

    def _samples(self, part: Part, name: str) -> Reading:
        with storage.opened_parquet(part.uri) as parquet:
            schema = parquet.schema_arrow
            label_column, split_column = _first(schema, LABEL_COLUMNS), _first(schema, SPLIT_COLUMNS)
            assert label_column
            names = _class_names(schema, label_column)
            columns = [column for column in (label_column, split_column) if column]
            rows = parquet.read_row_groups(list(range(part.start, part.end)), columns).to_pylist()
        for row, values in enumerate(rows, part.first_row):
            source, value = f"{name}#{row}", values[label_column]
            if names and isinstance(value, int) and 0 <= value < len(names):
                value = names[value]
            label = class_of(value, self.space, source)
            split = said_split(values[split_column], source) if split_column else split_of_file(name)
            record = Record(part.uri, f"row {row}", row)
            if isinstance(label, Excluded):
                yield label
            elif isinstance(split, Excluded):
                yield split
            else:
                yield Sample(record, label, split, source)


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
    open=lambda source, space, options: Parquet(source, space),
)
