"""Images in one folder per class, as files, in tars or in zips: `[split/]class/name`."""

import posixpath
import random
from collections.abc import Callable
from dataclasses import dataclass

from fer_pipeline.archive.files import name_below
from fer_pipeline.archive.listing import Listing
from fer_pipeline.archive.record import Record, split_into_shards
from fer_pipeline.base.errors import UserError
from fer_pipeline.datasets.layouts.layout import (
    DAMAGED,
    PART_RECORDS,
    Excluded,
    LayoutSpec,
    Part,
    Reading,
    Sample,
    class_of,
    sample_of,
    split_or_train,
)
from fer_pipeline.models.label_space import LabelSpace, Numbering


def plan_images(source: str) -> list[Part]:
    """Return the images below a folder, or in a tar or zip, in parts. Raise UserError if there are none.

    Files are shuffled with a fixed seed, so that every part holds images of every class; a training that streams the samples
    needs this. Members of a container keep their order.
    """
    listing = Listing(source)
    records = list(listing)
    listing.log_skipped()
    if all(record.member is None for record in records):
        random.Random(0).shuffle(records)
    parts = [Part(source, records=tuple(some)) for some in split_into_shards(records, PART_RECORDS, 64 * 1024**2)]
    if not parts:
        raise UserError(listing.holds_nothing())
    return parts


def read_images(part: Part, sample: Callable[[Record, str], Sample | Excluded]) -> Reading:
    """Yield `sample(record, source)` for each image of a part; an image that cannot be listed is excluded."""
    for record in part.records:
        source = name_below(part.uri, record.uri, record.member)
        yield Excluded(DAMAGED, source, record.error) if record.error else sample(record, source)


@dataclass(frozen=True)
class ImageFolder:
    """The class is the name of the image's folder, or its number in the numbering.

    The split is that of a folder above it, `train` by default.
    """

    source: str
    space: LabelSpace
    numbering: Numbering | None = None

    def plan(self) -> list[Part]:
        return plan_images(self.source)

    def read(self, part: Part) -> Reading:
        return read_images(part, self._sample)

    def _sample(self, record: Record, source: str) -> Sample | Excluded:
        folders = posixpath.dirname(record.member or source).split("/")
        label = class_of(folders[-1], self.space, source, self.numbering)
        return sample_of(record, label, split_or_train(folders[:-1]), source)


IMAGE_FOLDER = LayoutSpec(
    name="image-folder",
    help="[split/]class/name, as files, in tars or zips",
    open=lambda source, space, options: ImageFolder(source, space, options.numbering),
    options=("numbering",),
)
