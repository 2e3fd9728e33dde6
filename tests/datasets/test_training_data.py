"""A split of a dataset, read whole, in shares, and without the row groups of other splits."""

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_pipeline.datasets.dataset import SAMPLES
from fer_pipeline.datasets.training_data import SplitReader
from fer_pipeline.models.network_config import NetworkConfig

ROWS, GROUP = 600, 50


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SplitReader:
    """A dataset of one file, whose second half is the validation split."""
    folder, rows = tmp_path_factory.mktemp("data"), []
    for number in range(ROWS):
        image = cv2.imencode(".png", np.full((8, 8), number % 256, np.uint8))[1].tobytes()
        split = "train" if number < ROWS // 2 else "validation"
        facts = {"sample_id": f"{number:04d}", "image": image, "label": number % 7, "split": split, "source": "x", "sha256": "0"}
        rows.append(facts | {"phash": bytes(32), "contrast": 1.0, "width": 8, "height": 8, "votes": None})
    (folder / "samples").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, SAMPLES), folder / "samples" / "00000.parquet", row_group_size=GROUP)
    return SplitReader(str(folder), "validation", NetworkConfig(image_px=8), tuple(range(7)))


def test_shares_are_the_whole_and_each_about_as_large(reader: SplitReader) -> None:
    whole = reader.load()
    assert len(whole) == ROWS // 2
    shares = [list(reader.chunks(40, share, 3)) for share in range(3)]
    sizes = [sum(map(len, chunks)) for chunks in shares]
    assert sum(sizes) == len(whole) and max(sizes) - min(sizes) <= 40
    ids = sorted(name for chunks in shares for chunk in chunks for name in chunk.ids)
    assert ids == sorted(whole.ids)


def test_row_groups_of_other_splits_are_not_read(reader: SplitReader, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = pq.ParquetFile.iter_batches

    def noted(self: pq.ParquetFile, rows: int, groups: list[int], columns: list[str]) -> object:
        read.extend(groups)
        return real(self, rows, groups, columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    assert len(reader.load()) == ROWS // 2
    assert read == list(range(ROWS // 2 // GROUP, ROWS // GROUP))
