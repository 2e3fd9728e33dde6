"""RAF-DB, basic expressions (Li et al., 2017): `EmoLabel/list_patition_label.txt` and the aligned images."""

import posixpath
from dataclasses import dataclass

from fer_pipeline.core import storage
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.labels import RAFDB as RAFDB_NUMBERS
from fer_pipeline.core.labels import LabelSpace
from fer_pipeline.sources.layouts.layout import (
    PART_RECORDS,
    LayoutSpec,
    Part,
    Reading,
    class_of,
    image_below,
    said_split,
    sample_of,
)

LIST = "list_patition_label.txt"
"""So it is spelt."""
LISTS = (f"EmoLabel/{LIST}", f"basic/EmoLabel/{LIST}", LIST)


@dataclass(frozen=True)
class RafDb:
    """`train_00001.jpg 5` names `Image/aligned/train_00001_aligned.jpg`; the split is what the name begins with."""

    source: str
    space: LabelSpace

    def plan(self) -> list[Part]:
        uri = next((uri for name in LISTS if storage.exists(uri := storage.join(self.source, name))), None)
        if uri is None:
            raise UserError(f"The folder '{self.source}' holds no {LISTS[0]}, which layout rafdb needs.")
        rows = len(_lines(uri))
        return [Part(uri, start, min(start + PART_RECORDS, rows)) for start in range(0, rows, PART_RECORDS)]

    def read(self, part: Part) -> Reading:
        folder = posixpath.dirname(part.uri)
        images = storage.join(posixpath.dirname(folder) if folder.endswith("EmoLabel") else folder, "Image", "aligned")
        for line in _lines(part.uri)[part.start : part.end]:
            name, _, text = line.partition(" ")
            label, stem = class_of(text, self.space, name, RAFDB_NUMBERS), posixpath.splitext(name)[0]
            split = said_split(stem.split("_")[0], name)
            yield sample_of(image_below(images, f"{stem}_aligned.jpg", name), label, split, name)


def _lines(uri: str) -> list[str]:
    return [line for line in storage.read_bytes(uri).decode("utf-8", "replace").splitlines() if line.strip()]


RAFDB = LayoutSpec(
    name="rafdb",
    help="EmoLabel/list_patition_label.txt and Image/aligned",
    open=lambda source, space, options: RafDb(source, space),
    terms="RAF-DB (Li et al., 2017): for research that is not commercial, under its licence agreement.",
)
