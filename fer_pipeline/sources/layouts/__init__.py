"""Labelled datasets: one reader per layout, which says where images are and what their labels are."""

from collections.abc import Callable

from fer_pipeline.core.errors import UserError
from fer_pipeline.core.labels import LabelSpace
from fer_pipeline.sources.layouts.affectnet import AffectNetCsv, AffectNetNpy
from fer_pipeline.sources.layouts.fer2013 import Fer2013Csv
from fer_pipeline.sources.layouts.folders import ImageFolder
from fer_pipeline.sources.layouts.parquet import Parquet
from fer_pipeline.sources.layouts.rafdb import RafDb
from fer_pipeline.sources.layouts.samples import Layout
from fer_pipeline.sources.layouts.webdataset import WebDataset

LAYOUTS: dict[str, Callable[[str, LabelSpace], Layout]] = {
    "fer2013-csv": Fer2013Csv,
    "image-folder": ImageFolder,
    "webdataset": WebDataset,
    "parquet": Parquet,
    "affectnet-csv": AffectNetCsv,
    "affectnet-npy": AffectNetNpy,
    "rafdb": RafDb,
}


def open_layout(name: str, source: str, space: LabelSpace, votes: str | None = None) -> Layout:
    """Return the dataset at `source` as the layout `name` reads it; raise UserError where there is no such layout."""
    if name not in LAYOUTS:
        raise UserError(f"There is no layout '{name}'; choose one of {', '.join(LAYOUTS)}.")
    if votes is None:
        return LAYOUTS[name](source, space)
    if name != "fer2013-csv":
        raise UserError(f"Layout {name} takes no --votes: the votes of FER+ belong to layout fer2013-csv.")
    return Fer2013Csv(source, space, votes)
