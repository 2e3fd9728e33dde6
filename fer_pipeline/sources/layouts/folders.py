"""Images in a folder per class, loose, in tars or in zips: `[split/]class/name`."""

import posixpath
import random
from dataclasses import dataclass

from fer_pipeline.core.errors import UserError
from fer_pipeline.core.labels import LabelSpace, Numbering
from fer_pipeline.core.manifest import split_into_shards
from fer_pipeline.sources.files import name_below
from fer_pipeline.sources.layouts.layout import (
    DAMAGED,
    PART_BYTES,
    PART_RECORDS,
    Excluded,
    LayoutSpec,
    Part,
    Reading,
    Sample,
    class_of,
    split_of,
)
from fer_pipeline.sources.listing import Listing


def plan_images(source: str, part_records: int = PART_RECORDS, part_bytes: int = PART_BYTES) -> list[Part]:
    """Return the images below a folder, or in a tar or zip, in stretches; raise UserError where there are none.

    Loose files are shuffled, always alike, so that every stretch holds images of every class, as a training that streams them
    needs it; members of a container are read in their order.
    """
    records = list(Listing(source))
    if all(record.member is None for record in records):
        random.Random(0).shuffle(records)
    parts = [Part(source, records=tuple(stretch)) for stretch in split_into_shards(records, part_records, part_bytes)]
    if not parts:
        raise UserError(f"The source '{source}' holds no images.")
    return parts


@dataclass(frozen=True)
class ImageFolder:
    """The class is the name of the image's folder, or a number of the numbering.

    The split is that of a folder above it, `train` where none says one.
    """

    source: str
    space: LabelSpace
    numbering: Numbering | None = None

    def plan(self) -> list[Part]:
        return plan_images(self.source)

    def read(self, part: Part) -> Reading:
        for record in part.records:
            source = name_below(part.uri, record.uri, record.member)
            if record.error:
                yield Excluded(DAMAGED, source, record.error)
                continue
            folders = posixpath.dirname(record.member or source).split("/")
            label = class_of(folders[-1], self.space, source, self.numbering)
            yield Sample(record, label, split_of(folders[:-1]), source) if isinstance(label, str) else label


IMAGE_FOLDER = LayoutSpec(
    name="image-folder",
    help="[split/]class/name, loose, in tars or zips",
    open=lambda source, space, options: ImageFolder(source, space, options.numbering),
    options=("numbering",),
)
