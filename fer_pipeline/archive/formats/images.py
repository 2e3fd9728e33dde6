"""Images as plain files, recognised by extension, or by their first bytes if the extension is unknown."""

import posixpath
from collections.abc import Iterator

from fer_pipeline.archive.files import File, Selection, valid_text
from fer_pipeline.archive.formats.spec import Ranged, ReadRange, SourceFormat
from fer_pipeline.archive.record import Record, Skipped
from fer_pipeline.base import storage
from fer_pipeline.base.errors import ChangedError

IMAGE_EXTENSIONS = (
    "jpg jpeg jpe jfif png apng webp bmp dib gif tif tiff btf tf8 mpo jp2 j2k jpx jpf jpc j2c avif avifs heic heics heif "
    "heifs hif ppm pgm pbm pnm jxl psd psb svg pdf "
    "dng nef nrw arw sr2 srf cr2 cr3 crw raf orf rw2 pef srw 3fr iiq dcr kdc mrw x3f erf mef mos"
)
"""Files of all of these are records. Which of them are decoded is a matter of their content (`faces/decode.py`)."""
OTHER_EXTENSIONS = frozenset(
    "txt json jsonl csv tsv xml html htm md yaml yml toml ini log cls py js css sh ipynb doc docx xls xlsx ppt pptx odt ods odp "
    "npy npz pkl db sqlite mp3 wav flac m4a aac opus xmp aae thm ds_store lock tmp bak exe dll so jar apk epub whl".split()
)
"""Files of these hold no images that anybody wants labelled, whatever their content; many of them are zips."""


def list_image(file: File, selection: Selection) -> Iterator[Record | Skipped]:
    """Yield the only record of a plain file."""
    uri = valid_text(file.uri)
    error = file.error or (None if uri == file.uri else "the file name is not valid UTF-8: rename the file")
    yield Record(uri, size_bytes=file.size_bytes, etag=file.etag, error=error)


class ImageFile(Ranged):
    """A plain file, read whole."""

    def read(self, record: Record, read_range: ReadRange) -> bytes:
        data = storage.read_bytes(record.uri, record.etag)
        if record.etag and len(data) != record.size_bytes:
            raise ChangedError
        return data


IMAGE = SourceFormat(
    name="image",
    extensions=tuple(f".{extension}" for extension in IMAGE_EXTENSIONS.split()),
    list_records=list_image,
    open=ImageFile,
    is_container=False,
)


def says_image(name: str) -> bool | None:
    """Return whether a file is an image by its name; None if the name does not tell."""
    base = posixpath.basename(name).lower()
    if base.startswith("._"):  # a metadata file of macOS
        return False
    if base.endswith(IMAGE.extensions):
        return True
    return False if "." in base and base.rpartition(".")[2] in OTHER_EXTENSIONS else None
