import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from fer_pipeline.base.errors import UserError
from fer_pipeline.datasets.dataset import read_dataset, read_flagged, read_samples
from fer_pipeline.datasets.duplicates import DUPLICATE_COLUMNS
from fer_pipeline.datasets.leaks import find_learned
from fer_pipeline.datasets.training_data import SplitReader
from fer_pipeline.engine.tasks import share
from fer_pipeline.jobs import ingest, sweep
from fer_pipeline.jobs.ingest import IngestConfig
from fer_pipeline.jobs.train import job as train
from fer_pipeline.jobs.train import rank
from fer_pipeline.jobs.train.config import TrainConfig, TrainResult
from fer_pipeline.jobs.train.plan import _mixed, facts_of, identity_of, make_plan
from fer_pipeline.jobs.train.rank import make_trainer, pretrained_weights
from fer_pipeline.models.bundle import read_bundle, read_learned
from fer_pipeline.models.label_space import FER7, LabelSpace
from fer_pipeline.models.recipe import load_recipe
from fer_pipeline.models.training.trainer import predict
from fer_pipeline.models.weights import last_layer, load_network
from tests.conftest import RECIPE

ONE_EPOCH = RECIPE.replace("epochs = 8", "epochs = 1")


def test_one_worker_and_two_learn_the_same(results: dict[int, TrainResult]) -> None:
    assert results[1].validation_accuracy > 0.9
    assert abs(results[1].validation_accuracy - results[2].validation_accuracy) < 0.08


def test_the_bundle_is_what_its_card_says(results: dict[int, TrainResult], dataset: Path) -> None:
    out = Path(results[2].out)
    assert {path.name for path in out.iterdir()} == {
        "model.safetensors",
        "model.json",
        "history.json",
        "learned.parquet",
        "curves.png",
        "confusion.png",
        "MODEL_CARD.md",
        "model_card.html",
    }
    bundle = read_bundle(str(out))
    split = SplitReader(str(dataset), "validation", bundle.card.network, tuple(range(7))).load()
    predicted = predict(load_network(bundle), torch.from_numpy(split.images)).argmax(1).numpy()
    figures = bundle.card.metrics.validation
    assert figures is not None and bundle.card.framing == read_dataset(str(dataset)).faces.framing
    assert figures.accuracy == pytest.approx(float((predicted == split.labels).mean()))
    assert figures.accuracy == results[2].validation_accuracy
    assert np.sum(figures.confusion) == 64
    assert figures.per_class["happy"].support == 32
    assert bundle.card.recipe["training"]["epochs"] == 8
    assert len(json.loads((out / "history.json").read_text())) == 8


@pytest.mark.slow
def test_a_training_starts_from_the_weights_of_a_bundle(results: dict[int, TrainResult], dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "still.toml").write_text(ONE_EPOCH.replace("0.02", "0.00001"))
    recipe, started = str(tmp_path / "still.toml"), results[1].out
    again = train.run(
        TrainConfig(recipe=recipe, data=str(dataset), out=str(tmp_path / "m"), initial=started, allow_missing_classes=True)
    )
    assert abs(again.validation_accuracy - results[1].validation_accuracy) < 0.05
    assert read_bundle(str(tmp_path / "m")).card.recipe["initial"]["training"]["epochs"] == 8
    (tmp_path / "narrow.toml").write_text(ONE_EPOCH.replace("width = 4", "width = 3"))
    narrow = TrainConfig(recipe=str(tmp_path / "narrow.toml"), data=str(dataset), out=str(tmp_path / "n"), initial=started)
    with pytest.raises(UserError, match="another network"):
        train.run(narrow.model_copy(update={"allow_missing_classes": True}))


@pytest.mark.slow
def test_a_share_of_the_initial_weights_is_kept(results: dict[int, TrainResult], dataset: Path, tmp_path: Path) -> None:
    started, out = results[1].out, str(tmp_path / "h")
    (tmp_path / "half.toml").write_text(ONE_EPOCH.replace("[training]", "[training]\nkeep_initial = 0.5"))
    config = TrainConfig(recipe=str(tmp_path / "half.toml"), data=str(dataset), out=out, allow_missing_classes=True)
    with pytest.raises(UserError, match="use --initial"):
        train.run(config)
    train.run(config.model_copy(update={"initial": started, "drop_leaks": True}))
    card = read_bundle(out).card
    without = card.metrics.validation_without_training_images
    assert without and without.images < 64 and card.data.left_out == 0  # the initial model has learned what this one leaves out
    kept = torch.load(next((tmp_path / "h.checkpoints").rglob("state.pt")), weights_only=True)["kept"]
    before, half = (load_network(read_bundle(url)).state_dict() for url in (started, out))
    assert all(torch.allclose(value, (before[name] + kept[name][: len(value)]) / 2) for name, value in half.items() if value.ndim)


@pytest.mark.slow
def test_a_deeper_network_starts_from_a_shallower_one(results: dict[int, TrainResult], dataset: Path, tmp_path: Path) -> None:
    deep = ONE_EPOCH.replace("width = 4", "width = 4\nblocks = [1, 1, 2]")
    (tmp_path / "deep.toml").write_text(deep)
    (tmp_path / "half.toml").write_text(deep.replace("[training]", "[training]\nkeep_initial = 0.5"))
    config = TrainConfig(recipe=str(tmp_path / "deep.toml"), data=str(dataset), out=str(tmp_path / "d"), initial=results[1].out)
    config = config.model_copy(update={"allow_missing_classes": True})
    assert train.run(config).epochs == 1
    with pytest.raises(UserError, match="needs a model as large"):
        train.run(config.model_copy(update={"recipe": str(tmp_path / "half.toml"), "out": str(tmp_path / "n")}))


def test_the_same_command_continues_from_the_last_checkpoint(results: dict[int, TrainResult], dataset: Path) -> None:
    out = Path(results[1].out)
    shutil.move(out, out.with_name("before"))
    again = train.run(
        TrainConfig(recipe=str(out.parent / "stripes.toml"), data=str(dataset), out=str(out), allow_missing_classes=True)
    )
    assert (out / "history.json").read_text() == (out.with_name("before") / "history.json").read_text()  # nothing trained twice
    assert again == results[1]


def test_what_the_user_must_mend_writes_nothing(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "eight.toml").write_text('label_space = "affectnet8"')
    (tmp_path / "split.toml").write_text('validation_split = "test"')
    (tmp_path / "votes.toml").write_text('[training]\nvotes = "target"')
    (tmp_path / "sampling.toml").write_text('[training]\nclass_balance = "sampling"')
    (tmp_path / "taught.toml").write_text("[network]\nimage_px = 40\n[training]\nteacher_weight = 0.5")
    (tmp_path / "once.toml").write_text('[network]\nwidth = 24\n[training]\nteacher_weight = 0.5\nteacher_view = "original"')
    (tmp_path / "others.toml").write_text('label_space = "ferplus8"\n[training]\nteacher_weight = 0.5')
    good = TrainConfig(recipe="fer2013-small", data=str(dataset), out=str(tmp_path / "m"), allow_missing_classes=True)
    faults: list[tuple[dict[str, Any], str]] = [
        ({"data": str(tmp_path)}, "not an ingested dataset"),
        ({"recipe": str(tmp_path / "eight.toml"), "allow_missing_classes": False}, "no images of neutral, surprise, fear"),
        ({"recipe": str(tmp_path / "split.toml")}, "no split 'test'"),
        ({"recipe": str(tmp_path / "votes.toml")}, "ingest it with --votes"),
        ({"recipe": str(tmp_path / "sampling.toml"), "data_from": "stream"}, "cannot be sampled by class"),
        ({"out": str(tmp_path)}, "not empty"),
        ({"teachers": ("embedded",)}, "names no teacher_weight: leave out --teachers"),
        ({"recipe": str(tmp_path / "taught.toml")}, "learns from teachers: name them by --teachers"),
        ({"recipe": str(tmp_path / "taught.toml"), "teachers": ("embedded",)}, "another input than"),
        ({"recipe": str(tmp_path / "once.toml"), "teachers": ("embedded",), "data_from": "stream"}, "set teacher_view"),
        ({"recipe": str(tmp_path / "others.toml"), "teachers": ("embedded",)}, "'fer2013-small-steady' has other classes"),
        ({"num_workers": 99}, "fewer than 99 cores"),
        ({"data_from": "stream", "num_workers": 2}, "one for each worker and one for the streamed data"),
        ({"use_gpu": True}, "--use-gpu needs"),
    ]
    for faulty, complaint in faults:
        with pytest.raises(UserError, match=complaint):
            train.run(good.model_copy(update=faulty))
        assert not (tmp_path / "m").exists()


@pytest.mark.slow
@pytest.mark.long
def test_streamed_data_is_learnt_as_well(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "stripes.toml").write_text(RECIPE)
    config = TrainConfig(recipe=str(tmp_path / "stripes.toml"), data=str(dataset), out=str(tmp_path / "m"), data_from="stream")
    result = train.run(config.model_copy(update={"allow_missing_classes": True}))
    assert result.data_from == "stream"
    assert result.validation_accuracy > 0.9


@pytest.mark.slow
def test_flagged_samples_are_left_out_when_leaks_are_to_be_dropped(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "stripes.toml").write_text(RECIPE)
    flagged = read_flagged(str(dataset))
    assert set(flagged["reason"].to_pylist()) == {"leak", "copy"}
    config = TrainConfig(recipe=str(tmp_path / "stripes.toml"), data=str(dataset), out=str(tmp_path / "m"), drop_leaks=True)
    config = config.model_copy(update={"allow_missing_classes": True})
    train.run(config)
    card = read_bundle(str(tmp_path / "m")).card
    assert (card.data.train_images, card.data.left_out) == (190, 2)
    plan = make_plan(config, load_recipe(config.recipe), read_dataset(str(dataset)), str(dataset), None)
    assert sorted(plan.class_counts) == [0, 0, 0, 0, 0, 95, 95]  # weights of the classes know what is left out
    without = card.metrics.validation_without_training_images
    assert without is not None and without.images == 64  # the copy that it has in train was not learned


@pytest.mark.slow
@pytest.mark.long
def test_a_diverging_training_names_the_step_and_what_is_left(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "wild.toml").write_text(RECIPE.replace("0.02", "1e30"))
    config = TrainConfig(recipe=str(tmp_path / "wild.toml"), data=str(dataset), out=str(tmp_path / "m"))
    with pytest.raises(UserError, match=r"not finite at step \d+ \(epoch 1\); no epoch was finished. Lower learning_rate"):
        train.run(config.model_copy(update={"allow_missing_classes": True}))
    assert not (tmp_path / "m").exists()


def test_pretrained_weights_are_read_once_and_every_rank_starts_from_them(
    results: dict[int, TrainResult], dataset: Path, tmp_path: Path
) -> None:
    file = Path(shutil.copy(Path(results[1].out) / "model.safetensors", tmp_path / "start.safetensors"))
    (tmp_path / "r.toml").write_text(f'pretrained = "{file}"\n{RECIPE}')
    config = TrainConfig(
        recipe=str(tmp_path / "r.toml"), data=str(dataset), out="x", batch_size=16, epochs=3, allow_missing_classes=True
    )
    plan = make_plan(config, load_recipe(config.recipe), read_dataset(str(dataset)), str(dataset), None)
    plan = replace(plan, pretrained=share(pretrained_weights(plan.recipe, plan.outputs)))
    file.unlink()
    found = make_trainer(plan, torch.device("cpu")).network.state_dict()
    expected = load_network(read_bundle(results[1].out)).state_dict()
    same = [name for name, value in expected.items() if torch.equal(found[name], value)]
    assert set(expected) - set(same) <= set(last_layer(expected)) and len(same) > len(expected) / 2
    assert (plan.recipe.training.batch_size, plan.recipe.training.epochs) == (16, 3)


@pytest.mark.parametrize("native", [True, False])
def test_a_cpu_without_bf16_trains_in_fp32(native: bool, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.toml").write_text(RECIPE.replace('"fp32"', '"bf16"'))
    config = TrainConfig(recipe=str(tmp_path / "r.toml"), data=str(dataset), out="x", allow_missing_classes=True)
    plan = make_plan(config, load_recipe(config.recipe), read_dataset(str(dataset)), str(dataset), None)
    monkeypatch.setattr(rank, "has_native_bf16", lambda: native)
    assert make_trainer(plan, torch.device("cpu")).config.precision == ("bf16" if native else "fp32")


def test_a_training_that_is_asked_for_again_is_done_and_another_is_refused(
    results: dict[int, TrainResult], dataset: Path, tmp_path: Path
) -> None:
    """Also with another number of workers, which does not change the weights."""
    recipe = str(Path(results[1].out).parent / "stripes.toml")
    config = TrainConfig(recipe=recipe, data=str(dataset), out=results[1].out, num_workers=2, allow_missing_classes=True)
    assert train.run(config) == results[1]
    with pytest.raises(UserError, match="was begun with another left out"):
        train.run(config.model_copy(update={"drop_leaks": True}))


@pytest.mark.parametrize("change", ["names", "order"])
def test_a_corrected_label_space_is_another_training(change: str, dataset: Path, tmp_path: Path) -> None:
    """Same images and indices, but corrected class names: a checkpoint with the wrong names is not continued."""
    info = read_dataset(str(dataset))
    classes = list(info.label_space.classes)
    if change == "order":
        happy, sad = classes.index("happy"), classes.index("sad")
        classes[happy], classes[sad] = "sad", "happy"
    else:
        classes[classes.index("surprise")] = "contempt"
    other = info.model_copy(update={"label_space": LabelSpace(name="fer7", classes=tuple(classes))})
    (tmp_path / "r.toml").write_text(RECIPE)
    config = TrainConfig(recipe=str(tmp_path / "r.toml"), data=str(dataset), out=str(tmp_path / "m"), allow_missing_classes=True)
    recipe = load_recipe(config.recipe)
    ours, theirs = (facts_of(make_plan(config, recipe, one, str(dataset), None), one) for one in (info, other))
    assert identity_of(ours) != identity_of(theirs)
    with pytest.raises(UserError, match=r"The sweep in '.*' was begun with another labels"):
        for facts in (ours, theirs):
            sweep._require_same(str(tmp_path), facts)


def write(folder: Path, images: Sequence[bytes], labels: Sequence[str], splits: Sequence[str]) -> None:
    folder.mkdir()
    pq.write_table(pa.table({"image": images, "label": labels, "split": splits}), folder / "samples.parquet")


@pytest.fixture(scope="module")
def corrected(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset to mix: 8 new images to learn, a copy of a validation image and one of an audited image, and 4 that audit."""
    folder, rng = tmp_path_factory.mktemp("corrected"), np.random.default_rng(5)
    pictures = [rng.integers(0, 256, (48, 48), np.uint8) for _ in range(12)]
    rows = [
        (picture, ("happy", "sad")[number % 2], "train" if number < 8 else "audit") for number, picture in enumerate(pictures)
    ]
    rows.append((np.clip(pictures[8].astype(int) + 2, 0, 255).astype(np.uint8), "sad", "train"))
    files = [(cv2.imencode(".png", picture)[1].tobytes(), *facts) for picture, *facts in rows]
    files.append((next((dataset.parent / "tree" / "validation" / "sad").iterdir()).read_bytes(), "sad", "train"))
    write(folder / "tree", *zip(*files, strict=True))
    ingest.run(IngestConfig(source=str(folder / "tree"), out=str(folder / "out"), layout="parquet"))
    return folder / "out"


def mixing(dataset: Path, corrected: Path, folder: Path, **options: Any) -> TrainConfig:
    (folder / "r.toml").write_text(ONE_EPOCH)
    facts = {"recipe": str(folder / "r.toml"), "data": str(dataset), "mix": str(corrected), "out": str(folder / "m")}
    return TrainConfig.model_validate(facts | {"allow_missing_classes": True} | options)


def test_a_mixed_dataset_is_learned_without_copies_of_what_judges(dataset: Path, corrected: Path, tmp_path: Path) -> None:
    config = mixing(dataset, corrected, tmp_path, mix_weight=3)
    result = train.run(config)
    card = read_bundle(result.out).card
    assert card.data.train_images == 192 + 8  # neither the copy of a validation image nor that of an audited one
    learned = read_learned(result.out, card)
    samples = read_samples(str(corrected), DUPLICATE_COLUMNS)
    assert learned is not None and not find_learned(samples, "audit", learned).learned
    assert len(find_learned(samples, "train", learned).exact) == 8
    plan = make_plan(config, load_recipe(config.recipe), read_dataset(str(dataset)), str(dataset), None)
    assert sum(plan.epoch_counts) == 192 + 3 * 8 == len(make_trainer(plan, torch.device("cpu")).train)
    assert train.run(config) == result
    with pytest.raises(UserError, match="was begun with another mixed"):
        train.run(config.model_copy(update={"mix_weight": 4}))


def test_what_audits_is_never_learned(dataset: Path, corrected: Path, tmp_path: Path) -> None:
    config = mixing(dataset, corrected, tmp_path)
    for part in ("train_split", "validation_split"):
        (tmp_path / "r.toml").write_text(f'{part} = "audit"\n{ONE_EPOCH}')
        with pytest.raises(UserError, match="The split 'audit' measures models and is never learned"):
            train.run(config)


def test_copies_of_what_audits_do_not_select_either(dataset: Path, corrected: Path, tmp_path: Path) -> None:
    samples = pq.read_table(str(dataset / "samples")).filter(pc.field("split") == "validation")
    write(tmp_path / "audited", samples["image"].to_pylist()[:3], ["sad"] * 3, ["audit"] * 3)
    mine = pq.read_table(corrected.parent / "tree" / "samples.parquet").filter(pc.field("split") == "train")
    pq.write_table(mine, tmp_path / "audited" / "more.parquet")
    ingest.run(IngestConfig(source=str(tmp_path / "audited"), out=str(tmp_path / "mixed"), layout="parquet"))
    config = mixing(dataset, tmp_path / "mixed", tmp_path)
    plan = make_plan(config, load_recipe(config.recipe), read_dataset(str(dataset)), str(dataset), None)
    assert len(plan.validation.leave_out) >= 3 and len(plan.validation.load()) == 64 - len(plan.validation.leave_out)


def test_a_dataset_that_cannot_be_mixed_says_why(dataset: Path, corrected: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Streamed data cannot be mixed"):
        train.run(mixing(dataset, corrected, tmp_path, data_from="stream"))
    wide = tmp_path / "wide.toml"
    wide.write_text('cut = "box"\nbox_scale = 1.6\n')
    tree = str(corrected.parent / "tree")
    ingest.run(IngestConfig(source=tree, out=str(tmp_path / "wide"), framing=str(wide), layout="parquet"))
    with pytest.raises(UserError, match="are cut in another framing than those of --data"):
        train.run(mixing(dataset, tmp_path / "wide", tmp_path))
    audited = pq.read_table(f"{tree}/samples.parquet").filter(pc.field("split") == "audit").to_pydict()
    write(tmp_path / "few", audited["image"], audited["label"], ["train"] * 4)
    ingest.run(IngestConfig(source=str(tmp_path / "few"), out=str(tmp_path / "all"), layout="parquet"))
    with pytest.raises(UserError, match="No image of the dataset to mix is left to learn"):
        config = mixing(corrected, tmp_path / "all", tmp_path)
        (tmp_path / "r.toml").write_text(f'validation_split = "train"\n{ONE_EPOCH}')
        train.run(config)


def test_votes_of_a_mixed_dataset_go_to_the_outputs_of_the_first(dataset: Path, corrected: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(mixing(dataset, corrected, tmp_path).recipe))
    voting = recipe.model_copy(update={"training": recipe.training.model_copy(update={"votes": "auxiliary"})})
    first, second = (read_dataset(str(one)) for one in (dataset, corrected))
    first = first.model_copy(update={"vote_classes": ("neutral", "sad", "unknown")})
    second = second.model_copy(update={"vote_classes": ("angry", "sad", "neutral")})
    mixed = _mixed(mixing(dataset, corrected, tmp_path), voting, first, second, FER7, str(corrected), [])
    assert mixed.train.votes == (None, 1, 0)
