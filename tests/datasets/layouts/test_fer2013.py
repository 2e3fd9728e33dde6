from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_pipeline.base.errors import UserError
from fer_pipeline.datasets.layouts.fer2013 import VOTES, Fer2013Csv
from fer_pipeline.datasets.layouts.layout import Excluded, Sample
from fer_pipeline.models.label_space import FER7, FERPLUS8, LabelSpace

HEADER = "emotion,pixels,Usage\n"
VOTES_HEADER = f"Usage,Image name,{','.join(VOTES)}\n"


def pixels(seed: int, count: int = 48 * 48) -> str:
    return " ".join(map(str, np.random.default_rng(seed).integers(0, 256, count)))


def read_csv(path: Path, part_bytes: int = 10**9, votes: str | None = None, space: LabelSpace = FER7) -> list[Sample | Excluded]:
    layout = Fer2013Csv(str(path), space, votes, part_bytes)
    return [sample for part in layout.plan() for sample in layout.read(part)]


def test_pixels_come_back_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + f"3,{pixels(1)},Training\n0,{pixels(2)},PrivateTest\n")
    first, second = read_csv(tmp_path / "a.csv")
    assert isinstance(first, Sample) and isinstance(second, Sample)
    assert (first.label.name, first.split, second.label.name, second.split) == ("happy", "train", "angry", "test")
    assert isinstance(first.image, bytes)
    image = cv2.imdecode(np.frombuffer(first.image, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None and " ".join(map(str, image.ravel())) == pixels(1)


@pytest.mark.parametrize("part_bytes", [1, 700, 8000, 8313, 20000])
@pytest.mark.parametrize("end", ["", "\n"])
def test_every_row_is_read_once_however_the_file_is_cut(tmp_path: Path, part_bytes: int, end: str) -> None:
    count = 3 if part_bytes == 1 else 12
    rows = [f"{number % 7},{pixels(number)},Training" for number in range(count)]
    votes = [f"Training,fer{number:07d}.png,{number}" + ",0" * 9 for number in range(count)]
    (tmp_path / "a.csv").write_text(HEADER + "\n".join(rows) + end)
    (tmp_path / "votes.csv").write_text(VOTES_HEADER + "\n".join(votes) + end)
    whole = read_csv(tmp_path / "a.csv", votes=str(tmp_path / "votes.csv"))
    assert read_csv(tmp_path / "a.csv", part_bytes, str(tmp_path / "votes.csv")) == whole
    assert [sample.votes[0] for sample in whole if isinstance(sample, Sample) and sample.votes] == list(range(count))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (f"3,{pixels(1, 2303)},Training", "2303 pixels instead of 2304"),
        (f"7,{pixels(1)},Training", "the label '7' is not one of 0 to 6"),
        (f"3,{pixels(1)},Somewhen", "the usage 'Somewhen' is not one of"),
        ("3," + "256 " * 2304 + ",Training", "not a number from 0 to 255"),
        (f"²,{pixels(1)},Training", "the label '²'"),
        ("3," + "9" * 5000 + " 1" * 2303 + ",Training", "not a number from 0 to 255"),
        (f"3,{pixels(1)}\r7,Training", "pixels instead of"),
        ("3", "the usage '' is not one of"),
    ],
)
def test_a_bad_row_is_excluded_with_its_reason(tmp_path: Path, row: str, reason: str) -> None:
    (tmp_path / "a.csv").write_text(HEADER + row + f"\n1,{pixels(2)},Training\n")
    bad, good = read_csv(tmp_path / "a.csv")
    assert isinstance(bad, Excluded) and reason in bad.reason
    assert bad.kind == ("mislabelled" if reason.startswith("the ") else "damaged")
    assert isinstance(good, Sample)


@pytest.mark.parametrize(
    ("text", "complaint"), [("emotion,Usage\n1,Training\n", "no column pixels"), ("", "no column"), (HEADER, "holds no rows")]
)
def test_a_csv_that_cannot_be_used_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=complaint):
        Fer2013Csv(str(tmp_path / "a.csv"), FER7).plan()


def test_a_class_that_the_label_space_lacks_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "fer2013.csv"
    path.write_text(f"{HEADER}3,{pixels(0)},Training\n1,{pixels(1)},Training\n")
    kept, dropped = read_csv(path, space=LabelSpace(name="mine", classes=("happy", "sad")))
    assert isinstance(kept, Sample) and kept.label.name == "happy"
    assert isinstance(dropped, Excluded) and (dropped.kind, dropped.reason) == ("dropped", "disgust is no class of mine")


def test_the_majority_of_votes_is_the_label_in_ferplus8(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + f"0,{pixels(1)},Training\n" * 4)
    rows = ["0,0,0,2,1,0,0,7,0,0", "5,0,0,5,0,0,0,0,0,0", "1,0,0,0,0,0,0,0,9,0", "0,0,0,0,0,0,0,0,0,10"]
    votes = VOTES_HEADER + "".join(f"Training,x,{row}\n" for row in rows)
    (tmp_path / "votes.csv").write_text(votes)
    read = read_csv(tmp_path / "a.csv", votes=str(tmp_path / "votes.csv"), space=FERPLUS8)
    assert isinstance(read[0], Sample) and read[0].label.name == "contempt" and read[0].votes == (0, 0, 0, 2, 1, 0, 0, 7, 0, 0)
    reasons = [item.reason for item in read[1:] if isinstance(item, Excluded) and item.kind == "dropped"]
    assert reasons == ["no majority of votes", "most votes for unknown", "most votes for no face"]


@pytest.mark.parametrize(
    ("usages", "complaint"),
    [(["Training"], "has 1 rows"), (["Training", "PublicTest"], "say usage PublicTest"), (["Training"] * 3, "has 3 rows")],
)
def test_votes_of_other_images_are_refused(tmp_path: Path, usages: list[str], complaint: str) -> None:
    (tmp_path / "a.csv").write_text(HEADER + f"0,{pixels(1)},Training\n" * 2)
    (tmp_path / "votes.csv").write_text(VOTES_HEADER + "".join(f"{usage},x{',1' * 10}\n" for usage in usages))
    with pytest.raises(UserError, match=complaint):
        Fer2013Csv(str(tmp_path / "a.csv"), FER7, str(tmp_path / "votes.csv")).plan()


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("kaggle_train.csv", {"train": 30}),
        ("quoted.csv", {"train": 10, "validation": 10, "test": 10}),
        ("usage_lower.csv", {"train": 10, "validation": 10, "test": 10}),
        ("usage_other.csv", {"train": 10, "validation": 10, "test": 10}),
    ],
)
def test_a_csv_of_the_field_is_read_as_it_is_handed_on(name: str, splits: dict[str, int], shared: Path) -> None:
    """04c3eb5 refused all four."""
    layout = Fer2013Csv(str(shared / "data" / "field" / name), FER7)
    samples = [sample for part in layout.plan() for sample in layout.read(part)]
    assert all(isinstance(one, Sample) for one in samples)
    assert Counter(one.split for one in samples if isinstance(one, Sample)) == splits
