"""A small photo archive made without network, to try the pipeline on: faces, no faces, a tar, a zip, a broken file."""

import importlib.util
import io
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from fer_pipeline.core import storage
from fer_pipeline.core.config import Config
from fer_pipeline.core.errors import UserError
from fer_pipeline.stages.decode import EXIF_ORIENTATION, Pixels

FACE_PHOTOS = {"hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"), "astronaut": ("skimage", "data/astronaut.png")}
OTHER_PHOTOS = {"coffee": ("skimage", "data/coffee.png"), "coins": ("skimage", "data/coins.png")}
SIDES_PX = (320, 480, 640, 800, 1024, 1600)
SIDEWAYS = {6: cv2.ROTATE_90_COUNTERCLOCKWISE, 3: cv2.ROTATE_180, 8: cv2.ROTATE_90_CLOCKWISE}
"""EXIF orientation to how the pixels are stored under it."""


class SampleArchiveConfig(Config):
    """Write a small archive of photos that come with matplotlib and scikit-image."""

    dest: str
    """Folder to write into: new or empty."""


class SampleArchive(Config):
    """What was written."""

    dest: str
    files: int
    images: int


def run(config: SampleArchiveConfig) -> SampleArchive:
    """Write the archive; the same photos give the same files. Raise UserError where the folder holds something."""
    dest = storage.normalize(config.dest)
    if not storage.is_local(dest) or storage.list_names(dest):
        raise UserError(f"'{dest}' is not a new or empty folder on this machine: choose another.")
    photos = {name: _photo(*place) for name, place in (FACE_PHOTOS | OTHER_PHOTOS).items()}
    folder = Path(dest)
    singles = {f"{name}-{side}.jpg": _jpeg(_sized(photos[name], side)) for name in photos for side in SIDES_PX}
    for number, (name, data) in enumerate(singles.items()):
        _write(folder / f"2026/{1 + number % 3:02d}" / name, data)
    for orientation, turn in SIDEWAYS.items():
        sideways = cv2.rotate(_sized(photos["hopper"], 640), turn)
        _write(folder / f"phone/orientation-{orientation}.jpg", _jpeg(np.asarray(sideways, np.uint8), orientation))
    people = photos["hopper"], photos["astronaut"]
    groups = {f"group-{count}.png": _group([people[k % 2] for k in range(count)]) for count in (2, 3, 6)}
    with tarfile.open(folder / "groups.tar", "w") as tar:
        for name, data in groups.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with zipfile.ZipFile(folder / "mirrored.zip", "w") as archive:
        for name in photos:
            archive.writestr(zipfile.ZipInfo(f"{name}.webp"), _encode(".webp", _sized(photos[name], 512)[:, ::-1]))
    _write(folder / "broken/truncated.jpg", singles["hopper-800.jpg"][:9000])
    _write(folder / "broken/empty.jpg", b"")
    _write(folder / "notes.txt", b"Not an image: skipped and counted.\n")
    images = len(singles) + len(SIDEWAYS) + len(groups) + len(photos) + 2
    return SampleArchive(dest=dest, files=sum(path.is_file() for path in folder.rglob("*")), images=images)


def _photo(package: str, place: str) -> Pixels:
    spec = importlib.util.find_spec(package)  # found, not imported: matplotlib is at home in report/
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"The sample archive needs {package}: install it with pip install 'fer-pipeline[demo]'.")
    pixels = cv2.imread(str(Path(spec.submodule_search_locations[0]) / place), cv2.IMREAD_COLOR)
    if pixels is None:
        raise UserError(f"This version of {package} does not bring {place}; install the one that constraints.txt names.")
    return np.asarray(pixels, np.uint8)


def _sized(pixels: Pixels, side_px: int) -> Pixels:
    scale = side_px / max(pixels.shape[:2])
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=interpolation), np.uint8)


def _group(photos: list[Pixels]) -> bytes:
    """Return several photos side by side, in rows of three, as a PNG."""
    tiles = [cv2.resize(photo, (400, 400), interpolation=cv2.INTER_AREA) for photo in photos]
    tiles += [np.full((400, 400, 3), 128, np.uint8)] * (-len(tiles) % 3)
    return _encode(".png", np.vstack([np.hstack(tiles[row : row + 3]) for row in range(0, len(tiles), 3)]).astype(np.uint8))


def _jpeg(pixels: Pixels, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    out = io.BytesIO()
    Image.fromarray(pixels[:, :, ::-1]).save(out, "JPEG", quality=88, exif=exif)
    return out.getvalue()


def _encode(extension: str, pixels: Pixels) -> bytes:
    return cv2.imencode(extension, np.ascontiguousarray(pixels))[1].tobytes()


def _write(path: Path, data: bytes) -> None:
    storage.write_bytes(str(path), data)
