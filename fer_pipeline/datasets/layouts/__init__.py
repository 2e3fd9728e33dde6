"""Layouts of labelled datasets: each file reads one layout, and the table `LAYOUTS` lists them."""

from typing import TYPE_CHECKING, Literal

from fer_pipeline.base.errors import UserError
from fer_pipeline.datasets.layouts.affectnet import AFFECTNET_CSV, AFFECTNET_NPY
from fer_pipeline.datasets.layouts.corrections import CORRECTIONS_LAYOUT
from fer_pipeline.datasets.layouts.fer2013 import FER2013_CSV
from fer_pipeline.datasets.layouts.folders import IMAGE_FOLDER
from fer_pipeline.datasets.layouts.layout import Layout, LayoutOptions, LayoutSpec
from fer_pipeline.datasets.layouts.parquet import PARQUET_LAYOUT
from fer_pipeline.datasets.layouts.rafdb import RAFDB
from fer_pipeline.datasets.layouts.webdataset import WEBDATASET
from fer_pipeline.models.label_space import LabelSpace

_SPECS = (IMAGE_FOLDER, FER2013_CSV, WEBDATASET, PARQUET_LAYOUT, AFFECTNET_CSV, AFFECTNET_NPY, RAFDB, CORRECTIONS_LAYOUT)
LAYOUTS: dict[str, LayoutSpec] = {spec.name: spec for spec in _SPECS}

if TYPE_CHECKING:
    LayoutName = str
else:
    LayoutName = Literal[tuple(LAYOUTS)]

LAYOUT_HELP = "; ".join(f"`{spec.name}`: {spec.help}" for spec in LAYOUTS.values())


def open_layout(name: str, source: str, space: LabelSpace, options: LayoutOptions = LayoutOptions()) -> Layout:  # noqa: B008
    """Return the dataset at `source` in the layout `name`. Raise UserError for an option that the layout does not take."""
    if name not in LAYOUTS:
        raise UserError(f"There is no layout '{name}': choose one of {', '.join(LAYOUTS)}.")
    spec = LAYOUTS[name]
    for option, value in vars(options).items():
        if value is not None and option not in spec.options:
            takes = [other.name for other in LAYOUTS.values() if option in other.options]
            raise UserError(f"Layout {name} takes no --{option}: leave it out, or choose layout {' or '.join(takes)}.")
    return spec.open(source, space, options)
