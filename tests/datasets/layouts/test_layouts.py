"""Every layout except FER-2013's, read from small samples in its published form."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from fer_pipeline.archive.reader import RecordReader
from fer_pipeline.archive.record import Record
from fer_pipeline.base.errors import UserError
from fer_pipeline.datasets.dataset import read_dataset
from fer_pipeline.datasets.layouts import LAYOUTS, open_layout
from fer_pipeline.datasets.layouts.layout import Excluded, Label, LayoutOptions, Sample
from fer_pipeline.models.label_space import AFFECTNET8, FER7, FERPLUS8, NUMBERINGS, LabelSpace, load_numbering
from tests.archive.test_listing import tar_of

AFFECTNET_HEADER = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal\n"


def picture(shade: int) -> bytes:
    return cv2.imencode(".png", np.full((8, 8, 3), shade, np.uint8))[1].tobytes()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def read(
    layout: str, source: Path, space: LabelSpace = FER7, numbering: str | None = None
) -> tuple[dict[str, Sample], dict[str, Excluded]]:
    opened = open_layout(layout, str(source), space, LayoutOptions(numbering=load_numbering(numbering) if numbering else None))
    items = [item for part in opened.plan() for item in opened.read(part)]
    samples = {item.source: item for item in items if isinstance(item, Sample)}
    assert len(samples) == sum(isinstance(item, Sample) for item in items)
    return samples, {item.source: item for item in items if isinstance(item, Excluded)}


def bytes_of(sample: Sample) -> bytes:
    assert isinstance(sample.image, Record)
    return RecordReader().read(sample.image)


def test_folders_name_the_class_and_the_split(tmp_path: Path) -> None:
    names = "train/happy/1.png", "Validation/Sadness/2.png", "angry/3.png", "train/grumpy/4.png", "contempt/5.png", "6.png"
    for name in names:
        write(tmp_path / name, b"bytes")
    samples, excluded = read("image-folder", tmp_path)
    assert {name: (s.split, s.label.name) for name, s in samples.items()} == {
        "train/happy/1.png": ("train", "happy"),
        "Validation/Sadness/2.png": ("validation", "sad"),
        "angry/3.png": ("train", "angry"),
    }
    kinds = {name: item.kind for name, item in excluded.items()}
    assert kinds == {"train/grumpy/4.png": "mislabelled", "contempt/5.png": "dropped", "6.png": "mislabelled"}


def test_ck_plus_is_an_image_folder_of_eight_classes(tmp_path: Path) -> None:
    for name in ("anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise"):
        write(tmp_path / "CK+48" / name / "S010_004_00000017.png", picture(9))
    samples, excluded = read("image-folder", tmp_path, FERPLUS8)
    assert {sample.label.name for sample in samples.values()} == set(FERPLUS8.classes) - {"neutral"}
    assert not excluded


def test_a_webdataset_joins_what_has_one_key(tmp_path: Path) -> None:
    members = {
        "a/1.png": picture(1),
        "a/1.cls": b"3",
        "a/2.png": picture(2),
        "a/2.json": json.dumps({"label": "sadness"}).encode(),
        "a/3.png": picture(3),
        "a/4.png": picture(4),
        "a/4.cls": b"17",
        "a/5.seg.png": picture(5),
        "a/5.cls": b"contempt",
    }
    with tarfile.open(tmp_path / "val-00000.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    samples, excluded = read("webdataset", tmp_path, numbering="fer7")
    assert {name: (s.split, s.label.name) for name, s in samples.items()} == {
        "val-00000.tar/a/1": ("validation", "happy"),
        "val-00000.tar/a/2": ("validation", "sad"),
    }
    assert bytes_of(samples["val-00000.tar/a/2"]) == picture(2)
    assert {name[-1]: item.kind for name, item in excluded.items()} == {"3": "mislabelled", "4": "mislabelled", "5": "dropped"}
    whole = (tmp_path / "val-00000.tar").read_bytes()
    (tmp_path / "val-00000.tar").write_bytes(whole[: 512 * 5])
    samples, excluded = read("webdataset", tmp_path, numbering="fer7")
    assert list(samples) == ["val-00000.tar/a/1"]
    assert "damaged" in {item.kind for item in excluded.values()}


@pytest.mark.parametrize("name", ["w_apple", "w_txt", "w_jpg_named_img"])
def test_a_webdataset_of_the_field_is_read_whole(name: str, shared: Path) -> None:
    """04c3eb5 stopped at metadata of macOS, and knew neither .txt nor .img."""
    samples, excluded = read("webdataset", shared / "data" / "field" / name, numbering="fer7")
    assert len(samples) == 12 and not excluded
    assert all(bytes_of(sample).startswith(b"\x89PNG") for sample in samples.values())


@pytest.mark.parametrize("ending", ["tar.gz", "tar.bz2", "tar.xz", "tar.zst"])
def test_a_compressed_webdataset_is_read(ending: str, tmp_path: Path) -> None:
    members, mode = {"1.png": picture(1), "1.cls": b"happy"}, ending.removeprefix("tar.")
    tar_of(tmp_path / f"train.{ending}", members, "w" if mode == "zst" else f"w:{mode}")
    if mode == "zst":
        (tmp_path / f"train.{ending}").write_bytes(zstd.compress((tmp_path / f"train.{ending}").read_bytes()))
    samples, excluded = read("webdataset", tmp_path)
    assert [bytes_of(sample) for sample in samples.values()] == [picture(1)] and not excluded


def test_extensions_of_a_webdataset_may_be_capitals(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name, data in {
            "1.PNG": picture(1),
            "1.CLS": b"happy",
            "._1.png": b"x",
            "2.jpeg": picture(2),
            "2.Json": b'"sad"',
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    samples, excluded = read("webdataset", tmp_path)
    assert [sample.label.name for sample in samples.values()] == ["happy", "sad"] and not excluded


def test_parquet_takes_names_from_hugging_faces_metadata(tmp_path: Path) -> None:
    feature = {"info": {"features": {"label": {"names": ["Happiness", "anger", "boredom"], "_type": "ClassLabel"}}}}
    images = [{"bytes": picture(n), "path": None} for n in range(4)]
    table = pa.table({"image": images, "label": [0, 1, 2, 0]}).replace_schema_metadata({"huggingface": json.dumps(feature)})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "test-00000-of-00001.parquet", row_group_size=3)
    samples, excluded = read("parquet", tmp_path)
    assert [(s.split, s.label.name) for s in samples.values()] == [("test", "happy"), ("test", "angry"), ("test", "happy")]
    assert [item.kind for item in excluded.values()] == ["mislabelled"]
    assert bytes_of(samples["data/test-00000-of-00001.parquet#3"]) == picture(3)


def test_parquet_takes_indices_and_a_split_column(tmp_path: Path) -> None:
    table = pa.table({"png": [picture(1), picture(2)], "emotion": [3, 9], "usage": ["PublicTest", "Training"]})
    pq.write_table(table, tmp_path / "all.parquet")
    samples, excluded = read("parquet", tmp_path, numbering="fer7")
    assert [(s.split, s.label.name) for s in samples.values()] == [("validation", "happy")]
    assert "the label '9' is not one of 0 angry, 1 disgust" in excluded["all.parquet#1"].reason


@pytest.mark.parametrize("layout", ["image-folder", "webdataset", "parquet"])
def test_numbers_mean_nothing_until_a_numbering_is_named(layout: str, tmp_path: Path) -> None:
    """Copies of RAF-DB often have folders 1 to 7. Read as indices of a label space, nearly all labels would be wrong."""
    if layout == "image-folder":
        for number in range(1, 8):
            write(tmp_path / "train" / str(number) / "a.jpg", picture(number))
    elif layout == "parquet":
        table = pa.table({"image": [picture(n) for n in range(7)], "label": list(range(1, 8))})
        pq.write_table(table, tmp_path / "train.parquet")
    else:
        with tarfile.open(tmp_path / "train.tar", "w") as tar:
            for number in range(1, 8):
                for name, data in ((f"{number}.png", picture(number)), (f"{number}.cls", str(number).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    samples, excluded = read(layout, tmp_path, AFFECTNET8)
    assert samples == {} and {item.kind for item in excluded.values()} == {"mislabelled"}
    assert "is a number of unknown meaning: set --numbering to one of fer7 (0 angry, 1 disgust" in str(excluded)
    assert "rafdb (1 surprise, 2 fear" in str(excluded)
    samples, excluded = read(layout, tmp_path, AFFECTNET8, "rafdb")
    labels = [sample.label.name for _, sample in sorted(samples.items())]
    assert not excluded and labels == list(NUMBERINGS["rafdb"].classes)


def test_our_own_samples_map_by_name_into_another_label_space(dataset: Path) -> None:
    samples, excluded = read("parquet", dataset / "samples", AFFECTNET8)
    assert not excluded
    found = Counter((sample.split, sample.label.name) for sample in samples.values())
    counts = read_dataset(str(dataset)).counts
    assert found == {(split, name): count for split, of in counts.items() for name, count in of.items() if count}


@pytest.mark.parametrize("damaged", ["footer", "page"])
def test_a_damaged_parquet_file_is_one_damaged_record(damaged: str, tmp_path: Path) -> None:
    """Arrow raises an OSError without an errno for a footer or a page that it cannot decode."""
    images = [np.random.default_rng(n).bytes(4000) for n in range(8)]
    pq.write_table(pa.table({"image": images, "label": ["happy"] * 8}), tmp_path / "a.parquet", compression="zstd")
    pq.write_table(pa.table({"image": [picture(1)], "label": ["sad"]}), tmp_path / "b.parquet")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    label_page = data.index(b"happy") if damaged == "page" else len(data) - 200
    data[label_page - 30 : label_page + 10] = b"\xff" * 40
    (tmp_path / "a.parquet").write_bytes(data)
    samples, excluded = read("parquet", tmp_path)
    assert [sample.label.name for sample in samples.values()] == ["sad"]
    assert [item.kind for item in excluded.values()] == ["damaged"] and "a.parquet" in excluded


@pytest.mark.parametrize(
    ("name", "split"),
    [("validation_filtered", "validation"), ("val_list", "validation"), ("affectnet-validation", "validation"),
     ("manually_annotated_training", "train"), ("test", "test")],
)  # fmt: skip
def test_the_split_of_an_affectnet_csv_is_the_word_of_its_name(name: str, split: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.csv").write_text(AFFECTNET_HEADER + affectnet_row(1))
    write(tmp_path / "1" / "a.jpg", picture(1))
    samples, _ = read("affectnet-csv", tmp_path, AFFECTNET8)
    assert [sample.split for sample in samples.values()] == [split]


@pytest.mark.parametrize("folder", ["val", "val_set", "validation-set", "Validate", "VAL"])
def test_the_words_of_a_folder_say_its_split(folder: str, tmp_path: Path) -> None:
    write(tmp_path / folder / "happy" / "1.png", picture(1))
    samples, _ = read("image-folder", tmp_path)
    assert [sample.split for sample in samples.values()] == ["validation"]
    (tmp_path / "parquet" / folder).mkdir(parents=True)
    pq.write_table(pa.table({"image": [picture(1)], "label": ["sad"]}), tmp_path / "parquet" / folder / "part-0.parquet")
    samples, _ = read("parquet", tmp_path / "parquet")
    assert [sample.split for sample in samples.values()] == ["validation"]


def test_anothers_dataset_json_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"name": "mine"}')
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"image": [picture(1)], "label": [0]}), tmp_path / "data" / "train.parquet")
    assert read("parquet", tmp_path / "data", numbering="fer7")[0]["train.parquet#0"].label.name == "angry"
    assert not read("parquet", tmp_path / "data")[0]


def test_names_that_say_no_split_stop_the_ingest(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "automatically_annotated.csv").write_text(AFFECTNET_HEADER + affectnet_row(1))
    with pytest.raises(UserError, match="contains no split: rename it"):
        read("affectnet-csv", tmp_path / "csv", AFFECTNET8)
    write(tmp_path / "npy" / "set1" / "images" / "0.jpg", picture(1))
    buffer = io.BytesIO()
    np.save(buffer, np.array(1))
    write(tmp_path / "npy" / "set1" / "annotations" / "0_exp.npy", buffer.getvalue())
    _, excluded = read("affectnet-npy", tmp_path / "npy", AFFECTNET8)
    assert "names a split" in str(excluded) and {item.kind for item in excluded.values()} == {"mislabelled"}


def test_parquet_files_of_one_name_are_told_apart_and_the_folders_above_the_dataset_say_nothing(tmp_path: Path) -> None:
    source = tmp_path / "test" / "mine"
    for folder in ("train", "validation", "other"):
        (source / folder).mkdir(parents=True)
        pq.write_table(pa.table({"image": [picture(1)], "label": ["happy"]}), source / folder / "0000.parquet")
    samples, _ = read("parquet", source)
    assert {name: one.split for name, one in samples.items()} == {
        "train/0000.parquet#0": "train",
        "validation/0000.parquet#0": "validation",
        "other/0000.parquet#0": "train",
    }


def test_a_split_that_nobody_knows_is_not_learned(tmp_path: Path) -> None:
    splits = ["train", "dev", "eval", "Test", "holdout", None]
    table = pa.table({"image": [picture(n) for n in range(6)], "label": ["happy"] * 6, "split": splits})
    pq.write_table(table, tmp_path / "a.parquet")
    samples, excluded = read("parquet", tmp_path)
    assert [one.split for one in samples.values()] == ["train", "validation", "validation", "test"]
    assert [one.kind for one in excluded.values()] == ["mislabelled"] * 2
    assert "the split 'holdout' is not one of train" in excluded["a.parquet#4"].reason


def test_a_damaged_container_is_one_damaged_record(tmp_path: Path) -> None:
    write(tmp_path / "folders" / "train" / "sad.zip", b"PK no more")
    _, excluded = read("image-folder", tmp_path / "folders")
    assert [(one.kind, name) for name, one in excluded.items()] == [("damaged", "train/sad.zip")]
    write(tmp_path / "tables" / "train.parquet", b"PAR1 no more")
    _, excluded = read("parquet", tmp_path / "tables")
    assert [(one.kind, name) for name, one in excluded.items()] == [("damaged", "train.parquet")]


def affectnet_row(expression: int, name: str = "1/a.jpg", box: str = "10,20,100,120") -> str:
    landmarks = ";".join(f"{n};{n + 0.5}" for n in range(68))
    return f"{name},{box},{landmarks},{expression},-0.5,0.25\n"


def test_affectnet_is_read_from_its_manual_csvs(tmp_path: Path) -> None:
    folder = tmp_path / "Manually_Annotated_file_lists"
    write(tmp_path / "Manually_Annotated" / "Manually_Annotated_Images" / "1" / "a.jpg", b"x")
    rows = "".join(affectnet_row(number) for number in range(11))
    write(folder / "training.csv", (AFFECTNET_HEADER + rows).encode())
    write(folder / "validation.csv", (AFFECTNET_HEADER + affectnet_row(7) + affectnet_row(11)).encode())
    samples, excluded = read("affectnet-csv", folder, AFFECTNET8)
    assert [s.label.name for s in samples.values()] == [*AFFECTNET8.classes, "contempt"]
    assert [s.split for s in samples.values()] == ["train"] * 8 + ["validation"]
    reasons = {(item.kind, item.reason) for item in excluded.values()}
    assert reasons == {("dropped", "none"), ("dropped", "uncertain"), ("dropped", "no face")} | {
        ("mislabelled", "the expression '11' is not one of 0 to 10")
    }
    first = next(iter(samples.values()))
    assert bytes_of(first) == b"x"
    assert first.face and first.face.box_xywh == (10, 20, 100, 120)
    assert first.face.landmarks == ((38.5, 39.0), (44.5, 45.0), (30, 30.5), (48, 48.5), (54, 54.5))
    assert read("affectnet-csv", folder, FER7)[1][list(samples)[7]].reason == "contempt is no class of fer7"


def test_affectnets_npy_layout_is_read(tmp_path: Path) -> None:
    for name, number in (("train_set", 0), ("val_set", 7), ("val_set", 9)):
        write(tmp_path / name / "images" / f"{number}.jpg", picture(number))
        (tmp_path / name / "annotations").mkdir(exist_ok=True)
        np.save(tmp_path / name / "annotations" / f"{number}_exp.npy", np.array(str(number)))
    write(tmp_path / "train_set" / "images" / "5.jpg", picture(5))
    samples, excluded = read("affectnet-npy", tmp_path, AFFECTNET8)
    assert {name: (s.split, s.label.name) for name, s in samples.items()} == {
        "train_set/images/0.jpg": ("train", "neutral"),
        "val_set/images/7.jpg": ("validation", "contempt"),
    }
    assert {item.kind for item in excluded.values()} == {"mislabelled"} and len(excluded) == 2


def test_rafdb_is_read_from_its_list(tmp_path: Path) -> None:
    lines = ["train_00001.jpg 5", "test_0001.jpg 1", "test_0002.jpg 8"]
    write(tmp_path / "basic" / "EmoLabel" / "list_patition_label.txt", "\n".join(lines).encode())
    write(tmp_path / "basic" / "Image" / "aligned" / "train_00001_aligned.jpg", b"x")
    for source in (tmp_path, tmp_path / "basic"):
        samples, excluded = read("rafdb", source)
        assert {name: (s.split, s.label.name) for name, s in samples.items()} == {
            "train_00001.jpg": ("train", "sad"),
            "test_0001.jpg": ("test", "surprise"),
        }
        assert bytes_of(samples["train_00001.jpg"]) == b"x"
        assert excluded["test_0002.jpg"].reason.startswith("the label '8' is not one of 1 surprise, 2 fear")


@pytest.mark.parametrize("line", ["train_00001_aligned.jpg 5", "train_00001.jpg\t5", "train_00001_aligned.jpg \t  5 "])
def test_a_list_of_rafdb_may_name_the_aligned_images_and_have_tabs(line: str, tmp_path: Path) -> None:
    write(tmp_path / "EmoLabel" / "list_patition_label.txt", f"\ufeff{line}\r\n\ntest_0002.jpg\n".encode())
    write(tmp_path / "Image" / "aligned" / "train_00001_aligned.jpg", b"x")
    samples, excluded = read("rafdb", tmp_path)
    ((name, sample),) = samples.items()
    assert (name, sample.split, sample.label) == (line.split()[0], "train", Label("sad", "5"))
    assert bytes_of(sample) == b"x" and "the label '' is" in excluded["test_0002.jpg"].reason


def true_classes(shared: Path) -> dict[bytes, set[str]]:
    """Return the emotions of FER-2013 by pixels: the field's datasets are made of its images. Some are in it under two labels."""
    classes: dict[bytes, set[str]] = {}
    for file in sorted((shared / "data" / "fer2013").glob("*.parquet")):
        for row in pq.read_table(file, columns=["png", "emotion"]).to_pylist():
            classes.setdefault(grey(row["png"]), set()).add(FER7.classes[row["emotion"]])
    return classes


def grey(image: bytes) -> bytes:
    decoded = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert decoded is not None
    return decoded.tobytes()


HF_ORDER = ("angry", "surprise", "contempt", "happy", "neutral", "fear", "sad", "disgust")


@pytest.mark.parametrize(
    ("layout", "name", "count", "order"),
    [
        ("image-folder", "f_neutrality", 140, None),
        ("image-folder", "f_typo", 140, None),
        ("image-folder", "f_rafdb_1to7", 140, "rafdb"),
        ("parquet", "hf_nometa", 30, "hf.toml"),
        ("rafdb", "raf_alignednames", 40, None),
    ],
)
def test_a_dataset_of_the_field_gets_its_true_labels(
    layout: str, name: str, count: int, order: str | None, shared: Path, tmp_path: Path
) -> None:
    """04c3eb5 refused the names and found no aligned image; it read the numbers as indices of the label space."""
    source = shared / "data" / "field" / name
    if order:
        refused = read(layout, source)[1]
        assert len(refused) == count and all("set --numbering to one of" in one.reason for one in refused.values())
    if order == "hf.toml":
        order = str(tmp_path / order)
        Path(order).write_text(f"classes = {list(HF_ORDER)}\n")
    samples, excluded = read(layout, source, numbering=order)
    assert len(samples) == count and not excluded
    true = true_classes(shared)
    assert all(sample.label.name in true[grey(bytes_of(sample))] for sample in samples.values())


def test_one_rule_reads_names_of_classes_everywhere(tmp_path: Path) -> None:
    """Folders, a ClassLabel, a column of texts, and the files of a WebDataset."""
    names = {"0_angry": "angry", " 01. Suprise ": "surprise", "Natural": "neutral", "disgusted": "disgust", "2-Sadness": "sad"}
    feature = {"info": {"features": {"label": {"names": list(names), "_type": "ClassLabel"}}}}
    images = [picture(number) for number in range(len(names))]
    table = pa.table({"image": images, "label": list(range(len(names)))})
    (tmp_path / "hf").mkdir()
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(feature)}), tmp_path / "hf" / "train.parquet")
    (tmp_path / "texts").mkdir()
    pq.write_table(pa.table({"image": images, "label": list(names)}), tmp_path / "texts" / "train.parquet")
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "train.tar", "w") as tar:
        for number, (image, found) in enumerate(zip(images, names, strict=True)):
            write(tmp_path / "folders" / found / f"{number}.png", image)
            for member, data in ((f"{number}.png", image), (f"{number}.cls", found.encode())):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    for layout, source in (("image-folder", "folders"), ("parquet", "hf"), ("parquet", "texts"), ("webdataset", "tars")):
        samples, excluded = read(layout, tmp_path / source)
        assert not excluded
        assert {s.label.found: s.label.name for s in samples.values()} == {found.strip(): ours for found, ours in names.items()}


def test_two_folders_of_one_class_are_both_read_and_an_unknown_name_is_named(tmp_path: Path) -> None:
    for name in ("happy", "3_Happiness", "hapy2", "12_monkeys"):
        write(tmp_path / "train" / name / "1.png", picture(1))
    samples, excluded = read("image-folder", tmp_path)
    assert {one.label for one in samples.values()} == {Label("happy", "happy"), Label("happy", "3_Happiness")}
    assert {name: one.reason for name, one in excluded.items()} == {
        f"train/{name}/1.png": f"the label '{name}' is not a known name of a class of fer7: rename it to one of angry, disgust, "
        "fear, happy, sad, surprise, neutral, or choose another --label-space"
        for name in ("hapy2", "12_monkeys")
    }


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "fer2013-csv"])
def test_a_folder_without_what_the_layout_needs_is_refused(tmp_path: Path, layout: str) -> None:
    (tmp_path / "thesis.doc").write_text("x")
    with pytest.raises(UserError, match=r"(holds|has) no"):
        read(layout, tmp_path)


def test_unknown_layouts_and_votes_without_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no layout 'fer2014'"):
        open_layout("fer2014", str(tmp_path), FER7)
    with pytest.raises(UserError, match="takes no --votes"):
        open_layout("rafdb", str(tmp_path), FER7, LayoutOptions(votes="votes.csv"))


OUTSIDE = ["/etc/secret.png", "../../secret.png", "http://127.0.0.1:9/x.png", "simplecache::http://h/x.png", "s3://b/x.png", ""]


@pytest.mark.parametrize("path", OUTSIDE)
def test_an_image_outside_of_its_dataset_is_quarantined_and_the_rest_is_read(path: str, tmp_path: Path) -> None:
    rows = [affectnet_row(1, path), affectnet_row(1), "1/short.jpg\n", affectnet_row(3)]
    (tmp_path / "training.csv").write_text(AFFECTNET_HEADER + "".join(rows))
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "a.jpg").write_bytes(b"x")
    samples, excluded = read("affectnet-csv", tmp_path, AFFECTNET8)
    assert [sample.image.uri for sample in samples.values() if isinstance(sample.image, Record)][-2:] == [
        str(tmp_path / "1" / "a.jpg")
    ] * 2
    assert path == "" or any("not below the dataset" in one.reason for one in excluded.values())
    labels = tmp_path / "EmoLabel"
    labels.mkdir()
    names = [f"{path.removesuffix('.png')}.jpg 4", "train_00001.jpg 4"]
    (labels / "list_patition_label.txt").write_text("\n".join(names))
    samples, excluded = read("rafdb", tmp_path, FER7)
    assert list(samples) == ["train_00001.jpg"]
    assert len(excluded) == 1
