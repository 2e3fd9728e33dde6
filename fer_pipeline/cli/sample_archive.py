"""Write a small photo archive, without network, to try the pipeline: faces, no faces, a tar, a zip, broken files."""

import importlib.util
import io
import tarfile
import zipfile
from pathlib import Path

import av
import cv2
import numpy as np
from PIL import Image

from fer_pipeline.base import storage
from fer_pipeline.base.config import Config
from fer_pipeline.base.errors import UserError
from fer_pipeline.faces.exif import ORIENTATION
from fer_pipeline.faces.pixels import Pixels

PHOTOS = {
    "hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    "astronaut": ("skimage", "data/astronaut.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
}
"""Package and path of each photo; the first two show a face."""
PORTRAIT_PX = 320
ROTATIONS = {6: cv2.ROTATE_90_COUNTERCLOCKWISE, 3: cv2.ROTATE_180, 8: cv2.ROTATE_90_CLOCKWISE}
"""Rotation of the stored pixels by EXIF orientation."""


class SampleArchiveConfig(Config):
    """Write a small archive of photos that come with matplotlib and scikit-image: single faces, groups, people, a video."""

    dest: str
    """Folder to write into: new or empty."""
    people: bool = True
    """Add a tar of a hundred small faces of Labeled Faces in the Wild, and a video of some of them."""


class SampleArchive(Config):
    """The folder, and the number of files and images in it."""

    dest: str
    files: int
    images: int


def run(config: SampleArchiveConfig) -> SampleArchive:
    """Write the archive; the same photos give the same files. Raise UserError if the folder is not empty."""
    dest = storage.normalize(config.dest)
    if not storage.is_local(dest) or storage.list_names(dest):
        raise UserError(f"'{dest}' is not a new or empty folder on this machine: choose another.")
    photos = {name: _photo(*place) for name, place in PHOTOS.items()}
    portraits = _portraits() if config.people else []
    video, folder = portraits[:12], Path(dest)
    sides_px = (320, 480, 640, 800, 1024, 1600)
    singles = {f"{name}-{side}.jpg": _jpeg(_sized(photos[name], side)) for name in photos for side in sides_px}
    for number, (name, data) in enumerate(singles.items()):
        _write(folder / f"2026/{1 + number % 3:02d}" / name, data)
    for orientation, rotation in ROTATIONS.items():
        sideways = cv2.rotate(_sized(photos["hopper"], 640), rotation)
        _write(folder / f"phone/orientation-{orientation}.jpg", _jpeg(np.asarray(sideways, np.uint8), orientation))
    two = photos["hopper"], photos["astronaut"]
    groups = {f"group-{count}.png": _group([two[k % 2] for k in range(count)]) for count in (2, 3, 6)}
    _write_tar(folder / "groups.tar", groups)
    if portraits:
        _write_tar(folder / "people.tar", {f"{number:03d}.jpg": _jpeg(portrait) for number, portrait in enumerate(portraits)})
        _write_video(folder / "people.mp4", video)
    with zipfile.ZipFile(folder / "mirrored.zip", "w") as archive:
        for name in photos:
            archive.writestr(zipfile.ZipInfo(f"{name}.webp"), _encode(".webp", _sized(photos[name], 512)[:, ::-1]))
    _write(folder / "broken/truncated.jpg", singles["hopper-800.jpg"][:9000])
    _write(folder / "broken/empty.jpg", b"")
    _write(folder / "notes.txt", b"Not an image: skipped and counted.\n")
    images = len(singles) + len(ROTATIONS) + len(groups) + len(portraits) + len(video) + len(photos) + 2
    return SampleArchive(dest=dest, files=sum(path.is_file() for path in folder.rglob("*")), images=images)


def _portraits() -> list[Pixels]:
    """Return 100 faces of Labeled Faces in the Wild from scikit-image, enlarged."""
    patches = np.load(_file("skimage", "data/lfw_subset.npy"))[:100]  # (n, 25, 25), grey, 0 to 1; the faces come first
    return [_portrait((255 * patch).clip(0, 255).astype(np.uint8)) for patch in patches]


def _portrait(face: Pixels) -> Pixels:
    """Return a face, enlarged, on a grey background."""
    pixels = np.full((PORTRAIT_PX, PORTRAIT_PX), 128, np.uint8)
    side, edge = PORTRAIT_PX * 5 // 8, PORTRAIT_PX * 3 // 16
    pixels[edge : edge + side, edge : edge + side] = cv2.resize(face, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR), np.uint8)


def _file(package: str, place: str) -> str:
    """Return the path of a file in a package. Raise UserError if it is missing."""
    spec = importlib.util.find_spec(package)  # not imported: only report/ imports matplotlib
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"The sample archive needs {package}: install it with pip install 'fer-pipeline[demo]'.")
    path = Path(spec.submodule_search_locations[0]) / place
    if not path.exists():
        raise UserError(f"This version of {package} lacks {place}: install the version in constraints.txt.")
    return str(path)


def _photo(package: str, place: str) -> Pixels:
    pixels = cv2.imread(_file(package, place), cv2.IMREAD_COLOR)
    if pixels is None:
        raise UserError(f"{place} of {package} is not an image that OpenCV can read: install the version in constraints.txt.")
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
    exif[ORIENTATION] = orientation
    out = io.BytesIO()
    Image.fromarray(pixels[:, :, ::-1]).save(out, "JPEG", quality=88, exif=exif)
    return out.getvalue()


def _encode(extension: str, pixels: Pixels) -> bytes:
    return cv2.imencode(extension, np.ascontiguousarray(pixels))[1].tobytes()


def _write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _write_video(path: Path, frames: list[Pixels]) -> None:
    """Write a video that shows each frame for one second."""
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=1)
        stream.width = stream.height = PORTRAIT_PX
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "bgr24")))
        video.mux(stream.encode())


def _write(path: Path, data: bytes) -> None:
    storage.write_bytes(str(path), data)
