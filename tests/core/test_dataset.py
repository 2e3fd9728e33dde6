import pyarrow as pa

from fer_pipeline.core.dataset import count, find_duplicates
from fer_pipeline.core.labels import FER7

SAMPLES = pa.table(
    {
        "sha256": ["a", "a", "b", "c", "a", "c"],
        "split": ["train", "train", "train", "train", "validation", "validation"],
        "label": [0, 0, 1, 2, 0, 3],
    }
)


def test_duplicates_are_told_within_and_across_splits() -> None:
    found = find_duplicates(SAMPLES)
    assert (found.groups, found.images, found.conflicting_groups) == (2, 5, 1)
    assert found.within == {"train": 1, "validation": 0}
    assert found.across == {"train -> validation": 2, "validation -> train": 3}


def test_samples_are_counted_by_split_and_class() -> None:
    counts = count(SAMPLES, FER7)
    assert counts["train"]["angry"] == 2
    assert counts["validation"] == dict.fromkeys(FER7.classes, 0) | {"angry": 1, "happy": 1}
