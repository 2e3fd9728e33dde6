import io
import json
import logging
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401 (Pillow writes JPEG XL)
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fer_pipeline.base.errors import UserError
from fer_pipeline.datasets.dataset import SAMPLES, read_dataset, read_samples
from fer_pipeline.jobs import ingest
from fer_pipeline.jobs.ingest import IngestConfig
from tests.datasets.layouts.test_fer2013 import HEADER, pixels


def image(seed: int) -> bytes:
    return cv2.imencode(".png", np.random.default_rng(seed).integers(0, 256, (40, 30, 3)).astype(np.uint8))[1].tobytes()


def test_a_csv_becomes_samples_and_a_card(tmp_path: Path, local_ray: None) -> None:
    rows = [f"{n % 7},{pixels(n)},Training" for n in range(14)] + [
        f"2,{pixels(3)},PublicTest",
        f"1,{pixels(50, 2303)},PublicTest",
    ]
    (tmp_path / "fer.csv").write_text(HEADER + "\n".join(rows) + "\n")
    card = ingest.run(IngestConfig(source=str(tmp_path / "fer.csv"), out=str(tmp_path / "out"), layout="fer2013-csv"))
    samples = pq.read_table(tmp_path / "out" / "samples")
    assert samples.schema.equals(SAMPLES)
    assert card.samples == len(samples) == 15
    assert card.counts["train"] == dict.fromkeys(card.label_space.classes, 2)
    assert card.duplicates.across == {"train -> validation": 1, "validation -> train": 1}
    assert card.duplicates.conflicting_groups == 1
    assert [record["reason"] for record in card.quarantined_records] == ["2303 pixels instead of 2304"]
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["samples"] == 15


def test_a_folder_and_a_tar_of_it_give_the_same_samples(tmp_path: Path, local_ray: None) -> None:
    files = {f"train/{name}/{n}.png": image(n) for n, name in enumerate(("happy", "sad", "fear"))}
    files |= {"validation/happy/9.png": image(0), "train/happy/broken.png": image(1)[:300]}
    for name, data in files.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(data)
    with tarfile.open(tmp_path / "tree.tar", "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    cards = [
        ingest.run(IngestConfig(source=str(tmp_path / source), out=str(tmp_path / f"out-{source}")))
        for source in ("tree", "tree.tar")
    ]
    for card in cards:
        assert (card.samples, card.quarantined) == (4, 1)
        assert card.duplicates.across["train -> validation"] == 1
        assert card.counts["train"]["happy"] == card.counts["validation"]["happy"] == 1
    read = [pq.read_table(tmp_path / f"out-{source}" / "samples").to_pylist() for source in ("tree", "tree.tar")]
    shas = [sorted((row["sha256"], row["label"], row["split"]) for row in samples) for samples in read]
    assert shas[0] == shas[1]


def test_what_the_user_must_mend_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("emotion,Usage\n1,Training\n")
    (tmp_path / "thesis" / "samples").mkdir(parents=True)
    (tmp_path / "thesis" / "samples" / "thesis.doc").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    out = str(tmp_path / "out")
    faults = [
        (IngestConfig(source=str(tmp_path / "a.csv"), out=out, layout="fer2013-csv"), "no column pixels"),
        (IngestConfig(source=str(tmp_path / "none"), out=out), "does not exist"),
        (IngestConfig(source=str(tmp_path / "a.csv"), out=out, label_space="fer9"), "no label space 'fer9'"),
        (IngestConfig(source=str(tmp_path / "a.csv"), out=str(tmp_path / "thesis"), layout="fer2013-csv"), "not empty"),
        (IngestConfig(source=str(tmp_path / "a.csv"), out=str(tmp_path / "full"), layout="fer2013-csv"), "not empty"),
    ]
    for faulty, complaint in faults:
        with pytest.raises(UserError, match=complaint):
            ingest.run(faulty)
        assert not Path(out).exists()
    assert (tmp_path / "thesis" / "samples" / "thesis.doc").exists()


def test_wrong_labels_stop_the_ingest_until_they_are_to_be_skipped(tmp_path: Path, local_ray: None) -> None:
    (tmp_path / "fer.csv").write_text(HEADER + f"1,{pixels(1)},Training\n7,{pixels(2)},Training\n")
    config = IngestConfig(source=str(tmp_path / "fer.csv"), out=str(tmp_path / "out"), layout="fer2013-csv")
    with pytest.raises(
        UserError, match=r"1 records are mislabelled, the first at fer.csv@\d+: the label '7' is not one of 0 to 6"
    ):
        ingest.run(config)
    assert not (tmp_path / "out" / "dataset.json").exists()
    card = ingest.run(config.model_copy(update={"skip_mislabelled": True}))
    assert (card.samples, card.quarantined) == (1, 1)


def test_names_that_differ_from_the_classes_are_shown_and_kept(
    tmp_path: Path, local_ray: None, caplog: pytest.LogCaptureFixture
) -> None:
    for number, name in enumerate(("train/0_angry", "train/Anger", "train/suprise", "train/fear", "test/0_angry")):
        (tmp_path / "tree" / name).mkdir(parents=True)
        (tmp_path / "tree" / name / "a.png").write_bytes(image(number))
    with caplog.at_level(logging.INFO, "fer_pipeline"):
        card = ingest.run(IngestConfig(source=str(tmp_path / "tree"), out=str(tmp_path / "out")))
    assert card.class_names == {"0_angry": "angry", "Anger": "angry", "fear": "fear", "suprise": "surprise"}
    assert card.counts["train"]["angry"] == 2 and card.counts["test"]["angry"] == 1
    assert "Labels of the source: '0_angry' is angry, 'Anger' is angry, 'suprise' is surprise" in caplog.text
    path = tmp_path / "out" / "dataset.json"
    assert read_dataset(str(path.parent)) == card
    before = {name: value for name, value in json.loads(path.read_text()).items() if name != "class_names"}
    path.write_text(json.dumps(before))
    assert read_dataset(str(path.parent)) == card.model_copy(update={"class_names": {}})


def test_numbers_without_an_order_stop_the_ingest_and_are_read_with_it(tmp_path: Path, local_ray: None) -> None:
    for number in range(1, 8):
        (tmp_path / "tree" / str(number)).mkdir(parents=True)
        (tmp_path / "tree" / str(number) / "a.png").write_bytes(image(number))
    config = IngestConfig(source=str(tmp_path / "tree"), out=str(tmp_path / "out"))
    for skip in (False, True):
        with pytest.raises(UserError, match=r"is a number of unknown meaning: set --numbering to one of fer7 \(0 angry"):
            ingest.run(config.model_copy(update={"skip_mislabelled": skip}))
    card = ingest.run(config.model_copy(update={"numbering": "rafdb"}))
    names = ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral")
    assert card.class_names == {str(number): name for number, name in enumerate(names, 1)}
    assert card.counts == {"train": dict.fromkeys(card.label_space.classes, 1)}


def test_a_held_out_share_is_stratified_and_keeps_copies_and_groups_together(tmp_path: Path, local_ray: None) -> None:
    for number in range(60):
        path = tmp_path / "tree" / ("happy", "sad", "fear")[number % 3] / f"person{number // 6}_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number))
    (tmp_path / "tree" / "happy" / "zoe_copy.png").write_bytes(image(0))
    config = IngestConfig(source=str(tmp_path / "tree"), out=str(tmp_path / "out"), validation_share=0.2, test_share=0.1)
    card = ingest.run(config)
    sizes = {split: sum(counts.values()) for split, counts in card.counts.items()}
    assert sizes == {"train": 43, "validation": 12, "test": 6}
    assert {card.counts["validation"][name] for name in ("happy", "sad", "fear")} == {4}
    assert not card.duplicates.across
    grouped = ingest.run(config.model_copy(update={"out": str(tmp_path / "grouped"), "group_by": r"person(\d+)_"}))
    samples = pq.read_table(tmp_path / "grouped" / "samples", columns=["source", "split"]).to_pylist()
    people = {row["source"].split("_")[0].split("/")[1]: set[str]() for row in samples if "person" in row["source"]}
    for row in samples:
        if "person" in row["source"]:
            people[row["source"].split("_")[0].split("/")[1]].add(row["split"])
    assert all(len(splits) == 1 for splits in people.values())
    assert sum(grouped.counts["validation"].values()) in range(6, 20)


def test_faces_are_cut_out_and_images_without_one_are_dropped(archive: Path, tmp_path: Path, local_ray: None) -> None:
    portrait = next(archive.rglob("hopper-640.jpg")).read_bytes()
    for name, data in {"happy/a.jpg": portrait, "sad/noise.png": image(1)}.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(data)
    config = IngestConfig(source=str(tmp_path / "tree"), out=str(tmp_path / "out"), faces="align", crop_px=64, detector="mtcnn")
    card = ingest.run(config)
    assert (card.samples, card.dropped) == (1, {"no face found": 1})
    (row,) = pq.read_table(tmp_path / "out" / "samples").to_pylist()
    assert (row["width"], row["height"]) == (64, 64)


@pytest.mark.slow
def test_fer2013_has_its_known_counts(shared: Path, tmp_path: Path, local_ray: None) -> None:
    import runpy

    tool = runpy.run_path(str(shared / "tools" / "make_fer2013.py"))
    tool["kaggle_csv"](tmp_path / "fer2013.csv", None)
    tool["ferplus_csv"](tmp_path / "votes.csv", None)
    source, votes = str(tmp_path / "fer2013.csv"), str(tmp_path / "votes.csv")
    config = IngestConfig(source=source, out=str(tmp_path / "out"), layout="fer2013-csv", votes=votes)
    card = ingest.run(config)
    assert {split: sum(counts.values()) for split, counts in card.counts.items()} == {"train": 28_709, "validation": 3_589}
    assert card.duplicates.across["train -> validation"] == 280
    assert card.counts["train"]["disgust"] == 436
    assert card.quarantined == 0
    assert card.duplicates.near_pairs == 124 and card.duplicates.blank == 13
    read = pq.read_table(tmp_path / "out" / "samples", columns=["votes"])["votes"].to_pylist()
    given = [pq.read_table(shared / "data" / "fer2013" / f"{name}.parquet") for name in ("training", "public_test")]
    votes_given = [row or [0] * 10 for table in given for row in table["ferplus_votes"].to_pylist()]
    assert read == votes_given
    assert ingest.run(config) == card
    Path(votes).write_text(Path(votes).read_text() + "\n")
    with pytest.raises(UserError, match="was begun with another votes"):
        ingest.run(config)


def test_an_ingest_that_is_asked_for_again_is_done_and_another_is_refused(dataset: Path, tmp_path: Path) -> None:
    config = IngestConfig(source=str(dataset.parent / "tree"), out=str(tmp_path / "out"))
    first = ingest.run(config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert ingest.run(config) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    with pytest.raises(UserError, match="was begun with another seed"):
        ingest.run(config.model_copy(update={"seed": 1}))


def test_the_same_indices_under_other_names_are_another_dataset(dataset: Path, tmp_path: Path) -> None:
    digests = set()
    for number, names in enumerate((("happy", "sad"), ("sad", "happy"))):
        (tmp_path / f"{number}.toml").write_text(f"name = 'two'\nclasses = {list(names)}\n")
        table = pa.table({"image": [row["image"] for row in read_samples(str(dataset), ["image"]).slice(0, 4).to_pylist()]})
        pq.write_table(table.append_column("label", pa.array([0, 1, 0, 1])), tmp_path / "train.parquet")
        options = {"label_space": str(tmp_path / f"{number}.toml"), "numbering": str(tmp_path / f"{number}.toml")}
        config = {
            "source": str(tmp_path / "train.parquet"),
            "layout": "parquet",
            "out": str(tmp_path / f"out-{number}"),
        } | options
        digests.add(ingest.run(IngestConfig.model_validate(config)).digest)
    assert len(digests) == 2


def test_photos_of_phones_become_samples(tmp_path: Path, local_ray: None) -> None:
    """HEIC, JPEG XL and AVIF, as in 04c3eb5 only the last did, and the first was excluded."""
    (tmp_path / "set/happy").mkdir(parents=True)
    (tmp_path / "set/sad").mkdir()
    for number, format_name in enumerate(("HEIF", "JXL", "AVIF")):
        picture = Image.fromarray(np.random.default_rng(number).integers(0, 256, (64, 64, 3)).astype(np.uint8))
        path = tmp_path / "set" / ("happy" if number % 2 else "sad") / f"{number}.{format_name.lower()}"
        if format_name == "HEIF":
            pillow_heif.from_pillow(picture).save(path)
        else:
            picture.save(path, format_name)
    card = ingest.run(IngestConfig(source=str(tmp_path / "set"), out=str(tmp_path / "out"), layout="image-folder"))
    assert card.samples == 3 and not card.quarantined_records
