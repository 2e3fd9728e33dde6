"""WebDataset: tars in which `key.png` and `key.cls` (or `key.json`) are one sample."""

import json
import posixpath
import tarfile
from dataclasses import dataclass
from itertools import groupby
from typing import IO, Any

from fer_pipeline.core import storage
from fer_pipeline.core.errors import UserError
from fer_pipeline.core.labels import LabelSpace, Numbering
from fer_pipeline.core.manifest import Record
from fer_pipeline.sources.files import CONTAINER_ERRORS, name_below, says_damage
from fer_pipeline.sources.formats import FORMATS, format_of
from fer_pipeline.sources.formats.images import says_image
from fer_pipeline.sources.formats.tars import sane_members
from fer_pipeline.sources.layouts.layout import (
    DAMAGED,
    MISLABELLED,
    Excluded,
    LayoutSpec,
    Part,
    Reading,
    Sample,
    class_of,
    split_of_file,
)
from fer_pipeline.sources.walk import list_files

LABEL_KEYS = ("label", "cls", "class", "emotion", "expression")
"""The keys of a JSON annotation that may hold the class."""


@dataclass(frozen=True)
class WebDataset:
    """The class is a name, or a number of the numbering; the split is what the tar's name or folder begins with."""

    source: str
    space: LabelSpace
    numbering: Numbering | None = None

    def plan(self) -> list[Part]:
        parts = [Part(file.uri) for file in list_files(self.source) if format_of(file.uri) is FORMATS["tar"]]
        if not parts:
            raise UserError(f"The source '{self.source}' holds no tars, which layout webdataset needs.")
        return parts

    def read(self, part: Part) -> Reading:
        shard = name_below(self.source, part.uri)
        split = split_of_file(shard)
        fs, path = storage.open_filesystem(part.uri)
        try:
            with fs.open(path, "rb") as opened, tarfile.open(fileobj=opened) as tar:
                for key, group in groupby(
                    (info for info in sane_members(tar) if info.isfile()), key=lambda info: _key(info.name)
                ):
                    yield self._sample(tar, list(group), part.uri, split, f"{shard}/{key}")
        except (*CONTAINER_ERRORS, OSError) as error:
            if not says_damage(error):
                raise
            yield Excluded(DAMAGED, shard, f"the tar is damaged, what stands behind is lost: {storage.reason(error)}")

    def _sample(
        self, tar: tarfile.TarFile, members: list[tarfile.TarInfo], uri: str, split: str, source: str
    ) -> Sample | Excluded:
        images = [info for info in members if says_image(info.name)]
        texts = {posixpath.splitext(info.name)[1]: info for info in members if info.name.endswith((".cls", ".json"))}
        if len(images) != 1 or not texts:
            found = ", ".join(posixpath.basename(info.name) for info in members)
            return Excluded(MISLABELLED, source, f"it is not one image with a .cls or .json: {found}")
        extension = ".cls" if ".cls" in texts else ".json"
        opened: IO[bytes] | None = tar.extractfile(texts[extension])
        value: Any = opened.read().decode("utf-8", "replace") if opened else ""
        if extension == ".json":
            value = _label_in(value)
        label = class_of(value, self.space, source, self.numbering)
        record = Record(uri, images[0].name, images[0].offset_data, size_bytes=images[0].size)
        return Sample(record, label, split, source) if isinstance(label, str) else label


def _key(name: str) -> str:
    """Return the name without its extensions, as WebDataset takes it."""
    folder, _, base = name.rpartition("/")
    return posixpath.join(folder, base.split(".")[0])


def _label_in(text: str) -> Any:
    try:
        annotation = json.loads(text)
    except ValueError:
        return ""
    found = [annotation[key] for key in LABEL_KEYS if key in annotation] if isinstance(annotation, dict) else [annotation]
    return found[0] if found else ""


WEBDATASET = LayoutSpec(
    name="webdataset",
    help="tars of key.png with key.cls or key.json",
    open=lambda source, space, options: WebDataset(source, space, options.numbering),
    options=("numbering",),
)
