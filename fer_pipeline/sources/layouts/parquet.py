"""Parquet with an encoded image and a class in every row, as Hugging Face datasets and this project's own samples are."""

import json
import posixpath
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from fer_pipeline.core import storage
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.labels import LabelSpace
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.formats import FORMATS, format_of
from fer_pipeline.sources.formats.parquets import image_column
from fer_pipeline.sources.layouts.layout import LayoutSpec, Part, Reading, Sample, class_of, split_of
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
            with storage.opened_parquet(file.uri) as parquet:
                schema, groups = parquet.schema_arrow, parquet.metadata.num_row_groups
                if image_column(schema) is None or _first(schema, LABEL_COLUMNS) is None:
                    raise UserError(
                        f"'{file.uri}' needs a column of encoded images and one of classes ({', '.join(LABEL_COLUMNS)}); "
                        f"it has {', '.join(schema.names)}."
                    )
                first = 0
                for group in range(groups):
                    parts.append(Part(file.uri, group, group + 1, first_row=first))
                    first += parquet.metadata.row_group(group).num_rows
        if not parts:
            raise UserError(f"The source '{self.source}' holds no Parquet files with rows.")
        return parts

    def read(self, part: Part) -> Reading:
        name = posixpath.basename(part.uri)
        default = split_of([*re.split(r"[^A-Za-z]+", name), *reversed(posixpath.dirname(part.uri).split("/"))])
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
            split = split_of([str(values[split_column])], default) if split_column else default
            record = Record(part.uri, f"row {row}", row)
            yield Sample(record, label, split, source) if isinstance(label, str) else label


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
