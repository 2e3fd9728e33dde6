"""What the page of a labelling run counts, and which faces it shows."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fer_pipeline.base.errors import UserError
from fer_pipeline.cli import report
from fer_pipeline.cli.report import ReportConfig
from fer_pipeline.labelling.run import REPORT
from fer_pipeline.report.gallery import PER_GROUP, Choice
from fer_pipeline.report.mistakes import confusions
from fer_pipeline.report.places import MAX_FOLDERS, Places
from tests.table.runs import finished_run, record_of


def faces_of(uris: list[str], members: list[str | None] | None = None, uncertain: bool = False) -> pa.Table:
    count = len(uris)
    return pa.table(
        {
            "uri": uris,
            "member": pa.array(members or [None] * count, pa.string()),
            "time_ms": pa.nulls(count, pa.int64()),
            "uncertain": [uncertain] * count,
        }
    )


def test_faces_are_counted_by_folder_and_container() -> None:
    places = Places("s3://bucket/photos")
    places.add(faces_of(["s3://bucket/photos/a/1.jpg", "s3://bucket/photos/a/2.jpg", "s3://bucket/photos/3.jpg"]))
    places.add(faces_of(["s3://bucket/photos/b/x.tar"], ["inside/1.jpg"], uncertain=True))
    counts = {name: (count.faces, count.uncertain) for name, count in places.by_folder().items()}
    assert counts == {"a": (2, 0), ".": (1, 0), "b/x.tar": (1, 1)}


def test_many_folders_are_counted_with_those_above_them() -> None:
    places = Places("/source")
    places.add(faces_of([f"/source/{number % 3}/{number}/1.jpg" for number in range(2 * MAX_FOLDERS)]))
    assert {name: count.faces for name, count in places.by_folder().items()} == {"0": 27, "1": 27, "2": 26}


def test_many_folders_side_by_side_are_counted_as_others() -> None:
    places = Places("/source")
    places.add(faces_of([f"/source/{number:03d}/1.jpg" for number in range(MAX_FOLDERS + 5)] + ["/source/000/2.jpg"]))
    found = places.by_folder()
    assert (len(found), next(iter(found)), found["5 others"].faces) == (MAX_FOLDERS + 1, "000", 5)


@pytest.mark.parametrize(
    ("path", "date"),
    [
        ("2026/05/31/a.jpg", "2026-05-31"),
        ("IMG_20260531_1200.jpg", "2026-05-31"),
        ("2026-05/a.jpg", "2026-05"),
        ("x2026.jpg", None),
    ],
)
def test_a_date_is_found_in_a_path(path: str, date: str | None) -> None:
    places = Places("/2020-01-01/source")
    places.add(faces_of([f"/2020-01-01/source/{path}"]))
    assert list(places.dates) == ([date] if date else [])


def test_many_days_are_counted_by_month() -> None:
    places = Places("/s")
    places.add(faces_of([f"/s/2026/{month:02d}/{day:02d}/a.jpg" for month in (1, 2, 3) for day in range(1, 29)]))
    assert places.by_date() == {"2026-01": 28, "2026-02": 28, "2026-03": 28}


def test_each_face_is_chosen_for_one_group_whatever_the_order_of_the_files() -> None:
    rng = np.random.default_rng(0)
    count = 500
    faces = pa.table(
        {
            "record_id": np.arange(count),
            "face_id": np.zeros(count, np.int32),
            "w": rng.uniform(10, 200, count),
            "h": rng.uniform(10, 200, count),
            "detection_score": rng.uniform(0.6, 1, count),
            "confidence": rng.uniform(0.2, 1, count),
            "expression": rng.choice(["happy", "sad"], count),
        }
    )

    def ranked(order: list[int]) -> dict[str, list[int]]:
        choice = Choice(random.Random(0))
        for part in order:
            choice.add(faces[part * 100 : (part + 1) * 100])
        assert all(len(sampled) == 2 * PER_GROUP for sampled in choice.sampled.values())
        return {title: [face["record_id"] for face in rows] for title, rows in choice.ranked.items()}

    assert ranked([0, 1, 2, 3, 4]) == ranked([4, 2, 0, 1, 3])
    smallest = ranked([0, 1, 2, 3, 4])["The smallest faces"][0]
    side = np.minimum(faces["w"].to_numpy(), faces["h"].to_numpy())
    assert side[smallest] == side.min()


def test_the_worst_mistakes_come_by_pair_the_surest_first() -> None:
    probabilities = np.array([[0.1, 0.9], [0.2, 0.8], [0.9, 0.1], [0.7, 0.3], [0.3, 0.7]], np.float32)
    found = confusions(np.array(list("abcde"), object), np.array([0, 0, 0, 1, 1]), probabilities, ("x", "y"))
    assert [(one.label, one.predicted, one.images, [m.sample for m in one.worst]) for one in found] == [
        ("x", "y", 2, ["a", "b"]),
        ("y", "x", 1, ["d"]),
    ]


def test_a_run_is_compared_with_the_one_before(tmp_path: Path) -> None:
    for name, mix in (("before", {"happy": 300, "sad": 100}), ("now", {"happy": 200, "sad": 200})):
        finished_run(str(tmp_path / name), [record_of("/source/1.jpg")], expressions=mix)
    run, before = str(tmp_path / "now"), str(tmp_path / "before")
    report.run(ReportConfig(run=run, before=before))
    page = (tmp_path / "now" / REPORT).read_text()
    assert "Compared with the run" in page and "-25.0 points" in page and "+25.0 points" in page
    with pytest.raises(UserError, match="no finished labelling run"):
        report.run(ReportConfig(run=run, before=str(tmp_path / "nowhere")))


def test_a_source_that_is_one_file_has_its_own_name() -> None:
    places = Places("/photos/groups.tar")
    places.add(faces_of(["/photos/groups.tar"], ["1.jpg"]))
    assert (list(places.by_folder()), places.name("/photos/groups.tar")) == (["."], "groups.tar")
    places = Places("/photos/a.jpg")
    places.add(faces_of(["/photos/a.jpg"]))
    assert (list(places.by_folder()), places.name("/photos/a.jpg")) == (["."], "a.jpg")
