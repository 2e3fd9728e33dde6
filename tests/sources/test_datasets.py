from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_pipeline.core.errors import UserError
from fer_pipeline.core.labels import FER7
from fer_pipeline.sources.datasets import (
    Quarantined,
    Sample,
    plan_fer2013_csv,
    plan_image_folder,
    read_fer2013_csv,
    read_image_folder,
)

HEADER = "emotion,pixels,Usage\n"


def pixels(seed: int, count: int = 48 * 48) -> str:
    return " ".join(map(str, np.random.default_rng(seed).integers(0, 256, count)))


def read_csv(path: Path, part_bytes: int = 10**9) -> list[Sample | Quarantined]:
    parts = plan_fer2013_csv(str(path), part_bytes)
    return [sample for part in parts for sample in read_fer2013_csv(part, FER7)]


def test_pixels_come_back_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + f"3,{pixels(1)},Training\n0,{pixels(2)},PrivateTest\n")
    first, second = read_csv(tmp_path / "a.csv")
    assert isinstance(first, Sample) and isinstance(second, Sample)
    assert (first.label, first.split, second.label, second.split) == (3, "train", 0, "test")
    image = cv2.imdecode(np.frombuffer(first.image, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None and " ".join(map(str, image.ravel())) == pixels(1)


@pytest.mark.parametrize("part_bytes", [1, 700, 8000, 8313, 20000])
@pytest.mark.parametrize("end", ["", "\n"])
def test_every_row_is_read_once_however_the_file_is_cut(tmp_path: Path, part_bytes: int, end: str) -> None:
    rows = [f"{number % 7},{pixels(number)},Training" for number in range(3 if part_bytes == 1 else 12)]
    (tmp_path / "a.csv").write_text(HEADER + "\n".join(rows) + end)
    assert read_csv(tmp_path / "a.csv", part_bytes) == read_csv(tmp_path / "a.csv")
    assert len(read_csv(tmp_path / "a.csv", part_bytes)) == len(rows)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (f"3,{pixels(1, 2303)},Training", "2303 pixels instead of 2304"),
        (f"7,{pixels(1)},Training", "the label '7' is not one of 0 to 6"),
        (f"3,{pixels(1)},Testing", "the usage 'Testing' is none of"),
        ("3," + "256 " * 2304 + ",Training", "not a number from 0 to 255"),
        (f"²,{pixels(1)},Training", "the label '²'"),
        ("3," + "9" * 5000 + " 1" * 2303 + ",Training", "not a number from 0 to 255"),
        (f"3,{pixels(1)}\r7,Training", "pixels instead of"),
        ("3", "the usage '' is none of"),
    ],
)
def test_a_bad_row_is_quarantined_with_its_reason(tmp_path: Path, row: str, reason: str) -> None:
    (tmp_path / "a.csv").write_text(HEADER + row + f"\n1,{pixels(2)},Training\n")
    bad, good = read_csv(tmp_path / "a.csv")
    assert isinstance(bad, Quarantined) and reason in bad.reason
    assert isinstance(good, Sample)


@pytest.mark.parametrize(
    ("text", "complaint"), [("emotion,Usage\n1,Training\n", "no column pixels"), ("", "no column"), (HEADER, "holds no rows")]
)
def test_a_csv_that_cannot_be_used_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=complaint):
        plan_fer2013_csv(str(tmp_path / "a.csv"))


def test_folders_name_the_class_and_the_split(tmp_path: Path) -> None:
    for name in ("train/happy/1.png", "Validation/sad/2.png", "angry/3.png", "train/grumpy/4.png", "5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"bytes")
    (part,) = plan_image_folder(str(tmp_path))
    read = {sample.source: sample for sample in read_image_folder(part, FER7)}
    found = {name: (s.split, FER7.classes[s.label]) for name, s in read.items() if isinstance(s, Sample)}
    assert found == {
        "train/happy/1.png": ("train", "happy"),
        "Validation/sad/2.png": ("validation", "sad"),
        "angry/3.png": ("train", "angry"),
    }
    assert {name for name, sample in read.items() if isinstance(sample, Quarantined)} == {"train/grumpy/4.png", "5.png"}
