"""RAF-DB, basic expressions (Li et al., 2017): `EmoLabel/list_patition_label.txt` and the aligned images."""

import posixpath
from dataclasses import dataclass

from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.datasets.layouts.layout import (
    PART_RECORDS,
    LayoutSpec,
    Part,
    Reading,
    class_of,
    image_below,
    parse_split,
    sample_of,
)
from fer_pipeline.models.label_space import RAFDB as RAFDB_NUMBERS
from fer_pipeline.models.label_space import LabelSpace

LISTS = ("EmoLabel/list_patition_label.txt", "basic/EmoLabel/list_patition_label.txt", "list_patition_label.txt")
"""Possible paths of the list of labels; RAF-DB misspells its name."""


@dataclass(frozen=True)
class RafDb:
    """The line `train_00001.jpg 5` means `Image/aligned/train_00001_aligned.jpg` with label 5. Its name begins with the split.

    Some copies of the list name `train_00001_aligned.jpg`, or separate the fields by tabs.
    """

    source: str
    space: LabelSpace

    def plan(self) -> list[Part]:
        uri = next((uri for name in LISTS if storage.exists(uri := storage.join(self.source, name))), None)
        if uri is None:
            raise UserError(f"The folder '{self.source}' has no {LISTS[0]}, which the layout rafdb needs.")
        rows = len(_lines(uri))
        return [Part(uri, start, min(start + PART_RECORDS, rows)) for start in range(0, rows, PART_RECORDS)]

    def read(self, part: Part) -> Reading:
        folder = posixpath.dirname(part.uri)
        images = storage.join(posixpath.dirname(folder) if folder.endswith("EmoLabel") else folder, "Image", "aligned")
        for line in _lines(part.uri)[part.start : part.end]:
            name, text = (*line.split(maxsplit=1), "")[:2]
            label = class_of(text, self.space, name, RAFDB_NUMBERS)
            stem = posixpath.splitext(name)[0].removesuffix("_aligned")
            split = parse_split(stem.split("_")[0], name)
            yield sample_of(image_below(images, f"{stem}_aligned.jpg", name), label, split, name)


def _lines(uri: str) -> list[str]:
    return [line for line in storage.read_bytes(uri).decode("utf-8-sig", "replace").splitlines() if line.strip()]


RAFDB = LayoutSpec(
    name="rafdb",
    help="EmoLabel/list_patition_label.txt and Image/aligned",
    open=lambda source, space, options: RafDb(source, space),
    terms="RAF-DB (Li et al., 2017): for non-commercial research, under its licence agreement.",
)
