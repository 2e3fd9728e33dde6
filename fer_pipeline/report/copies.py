"""The page of copies among images: the largest groups with small pictures."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.base.errors import RecordError
from fer_pipeline.report.gallery import link_of
from fer_pipeline.report.page import render

MAX_GROUPS, MAX_IMAGES = 40, 12
"""Groups on a page, and images of one group."""


def to_show(copies: pa.Table) -> pa.Table:
    """Return the rows of the images that a page shows: the first images of the largest groups, the original first."""
    found = copies.filter(pc.less(copies["group"], MAX_GROUPS))
    order = pc.if_else(pc.equal(found["kind"], "original"), 0, 1)
    found = found.append_column("order", order).sort_by([("group", "ascending"), ("order", "ascending"), ("path", "ascending")])
    seen, first = Counter[int](), []
    for place, group in enumerate(found["group"].to_pylist()):
        seen[group] += 1
        if seen[group] <= MAX_IMAGES:
            first.append(place)
    return found.take(pa.array(first, pa.int64())).drop_columns("order")


def copies_page(url: str, copies: pa.Table, shown: pa.Table, pictures: Sequence[str | RecordError]) -> str:
    """Return the page. `shown`: what `to_show` returns of `copies`. `pictures`: of these images, or why they have none."""
    rows: list[dict[str, Any]] = [
        row | {"picture": None if isinstance(one, RecordError) else one, "link": link_of(row["uri"])}
        for row, one in zip(shown.to_pylist(), pictures, strict=True)
    ]
    sizes = {one["values"]: one["counts"] for one in pc.value_counts(copies["group"]).to_pylist()}
    kinds = {one["values"]: one["counts"] for one in pc.value_counts(copies["kind"]).to_pylist()}
    groups = [(sizes[number], list(group)) for number, group in groupby(rows, lambda row: row["group"])]
    return render("copies.html", url=url, groups=groups, total=len(sizes), images=len(copies), kinds=dict(sorted(kinds.items())))
