"""WebDataset: tars in which `key.png` and `key.cls` (or `key.json`) form one sample."""

import json
import posixpath
import tarfile
from dataclasses import dataclass
from itertools import groupby
from typing import IO, Any

from fer_pipeline.archive.files import CONTAINER_ERRORS, name_below, says_damage
from fer_pipeline.archive.formats import FORMATS, format_of
from fer_pipeline.archive.formats.images import says_image
from fer_pipeline.archive.formats.tars import open_tar, sane_members
from fer_pipeline.archive.record import Record
from fer_pipeline.archive.walk import list_files
from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.datasets.layouts.layout import (
    DAMAGED,
    MISLABELLED,
    Excluded,
    LayoutSpec,
    Part,
    Reading,
    Sample,
    class_of,
    sample_of,
    split_of_path,
)
from fer_pipeline.models.label_space import LabelSpace, Numbering

LABELS = (".cls", ".json", ".txt")
"""Extensions of the files with a sample's label; the first that there is counts."""


@dataclass(frozen=True)
class WebDataset:
    """The class is a name, or a number in the numbering; the split comes from the name of the tar or of a folder above it."""

    source: str
    space: LabelSpace
    numbering: Numbering | None = None

    def plan(self) -> list[Part]:
        parts = [Part(file.uri) for file in list_files(self.source) if format_of(file.uri) is FORMATS["tar"]]
        if not parts:
            raise UserError(f"The source '{self.source}' holds no tars: layout webdataset needs them.")
        return parts

    def read(self, part: Part) -> Reading:
        shard = name_below(self.source, part.uri)
        split = split_of_path(shard)
        try:
            with storage.open_file(part.uri) as opened, open_tar(opened) as tar:
                for key, group in groupby(
                    (info for info in sane_members(tar) if _is_part(info)), key=lambda info: _key(info.name)
                ):
                    yield self._sample(tar, list(group), part.uri, split, f"{shard}/{key}")
        except (*CONTAINER_ERRORS, OSError) as error:
            if not says_damage(error):
                raise
            yield Excluded(DAMAGED, shard, f"the tar is damaged, the rest of it is lost: {storage.reason(error)}")

    def _sample(
        self, tar: tarfile.TarFile, members: list[tarfile.TarInfo], uri: str, split: str, source: str
    ) -> Sample | Excluded:
        by_extension = {posixpath.splitext(info.name)[1].lower(): info for info in members}
        images = [info for info in members if says_image(info.name) or info.name.lower().endswith(".img")]
        extension = next((one for one in LABELS if one in by_extension), None)
        if len(images) != 1 or not extension:
            found = ", ".join(posixpath.basename(info.name) for info in members)
            return Excluded(MISLABELLED, source, f"a sample needs one image and a {' or '.join(LABELS)} file, but it has {found}")
        opened: IO[bytes] | None = tar.extractfile(by_extension[extension])
        value: Any = opened.read().decode("utf-8", "replace") if opened else ""
        if extension == ".json":
            value = _label_in(value)
        label = class_of(value, self.space, source, self.numbering)
        record = Record(uri, images[0].name, images[0].offset_data, size_bytes=images[0].size)
        return sample_of(record, label, split, source)


def _is_part(info: tarfile.TarInfo) -> bool:
    """Return whether a member is part of a sample: a file, and no metadata of macOS."""
    return info.isfile() and not posixpath.basename(info.name).startswith("._")


def _key(name: str) -> str:
    """Return a member's name without its extensions: the key of its sample in WebDataset."""
    folder, _, base = name.rpartition("/")
    return posixpath.join(folder, base.split(".")[0])


def _label_in(text: str) -> Any:
    try:
        annotation = json.loads(text)
    except ValueError:
        return ""
    if not isinstance(annotation, dict):
        return annotation
    return next((annotation[key] for key in ("label", "cls", "class", "emotion", "expression") if key in annotation), "")


WEBDATASET = LayoutSpec(
    name="webdataset",
    help="tars of key.png with key.cls or key.json",
    open=lambda source, space, options: WebDataset(source, space, options.numbering),
    options=("numbering",),
)
