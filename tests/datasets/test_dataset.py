import pyarrow as pa

from fer_pipeline.datasets.dataset import count
from fer_pipeline.models.label_space import FER7


def test_samples_are_counted_by_split_and_class() -> None:
    samples = pa.table({"split": ["train", "train", "validation", "validation"], "label": [0, 0, 0, 3]})
    counts = count(samples, FER7)
    assert counts["train"]["angry"] == 2
    assert counts["validation"] == dict.fromkeys(FER7.classes, 0) | {"angry": 1, "happy": 1}
