"""The tables of docs/columns.md, from the schemas: `python -m tests.columns` writes them into it."""

import re
from pathlib import Path

import pyarrow as pa

from fer_pipeline.faces.quality import QUALITY
from fer_pipeline.labelling.schemas import FACE, FACES, IMAGES, MANIFEST, MEANINGS
from fer_pipeline.labelling.tracks import TRACKS
from fer_pipeline.table.rows import ROWS

PAGE = Path(__file__).parents[1] / "docs" / "columns.md"
WHERE = {"images": IMAGES, "faces": FACES, "table": ROWS, "manifest": MANIFEST}


def type_name(kind: pa.DataType) -> str:
    """Return the name of a type as Arrow writes it; a dictionary of strings is a category, as in pandas."""
    if pa.types.is_dictionary(kind):
        return "category"
    if pa.types.is_list(kind):
        return f"list of {'structs' if pa.types.is_struct(kind.value_type) else type_name(kind.value_type)}"
    if pa.types.is_fixed_size_list(kind):
        return f"{kind.list_size} {type_name(kind.value_type)}"
    return {"float": "float32", "timestamp[us, tz=UTC]": "timestamp, UTC"}.get(str(kind), str(kind))


def rows_of_images() -> list[str]:
    fields = {
        field.name: field
        for schema in WHERE.values()
        for field in schema
        if field.name not in {one.name for one in (*FACE, *QUALITY)}
    }
    fields |= {field.name: field for schema in (MANIFEST, ROWS, IMAGES) for field in schema}
    head = ["| column | type | null | images | faces | table | manifest | what it is |", "|---|---|---|---|---|---|---|---|"]
    return head + [
        f"| `{name}` | {type_name(field.type)} | {'yes' if field.nullable else ''} | "
        + " | ".join("●" if name in schema.names else "" for schema in WHERE.values())
        + f" | {MEANINGS[name]} |"
        for name in MEANINGS
        if (field := fields.get(name)) is not None
    ]


def rows_of_faces() -> list[str]:
    head = ["| column | type | null | what it is |", "|---|---|---|---|"]
    return head + [
        f"| `{one.name}` | {type_name(one.type)} | {'yes' if one.nullable else ''} | {MEANINGS[one.name]} |"
        for one in (*FACE, *QUALITY)
    ]


def rows_of_tracks() -> list[str]:
    head = ["| column | type | null | what it is |", "|---|---|---|---|"]
    own = {
        "expression": "that of the mean of the calibrated logits of all its frames",
        "confidence": "probability of `expression`",
    }
    own |= {name: f"mean of `{name}` over its frames" for name in "xywh"}
    own |= {
        "probabilities": "probability of each class, from the same mean",
        "uncertain": "whether `confidence` is below the model's threshold",
    }
    return head + [
        f"| `{one.name}` | {type_name(one.type)} | {'yes' if one.nullable else ''} | {own.get(one.name, MEANINGS[one.name])} |"
        for one in TRACKS
    ]


def written(text: str) -> str:
    """Return the page with its tables replaced by those of the schemas."""
    tables = iter([rows_of_images(), rows_of_faces(), rows_of_tracks()])
    return re.sub(r"(?:^\|.*\n)+", lambda found: "\n".join(next(tables)) + "\n", text, flags=re.MULTILINE)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
