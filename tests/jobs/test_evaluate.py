import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from fer_pipeline.base.errors import UserError
from fer_pipeline.datasets.dataset import read_dataset, read_flagged, read_samples
from fer_pipeline.datasets.duplicates import DUPLICATE_COLUMNS
from fer_pipeline.datasets.leaks import find_leaks, find_learned, learned_images
from fer_pipeline.jobs import evaluate, ingest, promote
from fer_pipeline.jobs.evaluate import EvaluateConfig
from fer_pipeline.jobs.ingest import IngestConfig
from fer_pipeline.jobs.promote import PromoteConfig, Verdict
from fer_pipeline.jobs.train.config import TrainResult
from fer_pipeline.models.bundle import EMBEDDED, bundle_of, read_bundle, read_files, read_learned, save_bundle
from fer_pipeline.models.card import ModelCard, TrainingData
from fer_pipeline.models.comparison import Rule
from fer_pipeline.models.label_space import FER7, LabelSpace
from fer_pipeline.models.registry import Registry


@pytest.fixture(scope="module")
def model(results: dict[int, TrainResult]) -> str:
    return results[1].out


@pytest.fixture(scope="module")
def out(dataset: Path, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "e"
    evaluate.run(EvaluateConfig(model=model, data=str(dataset), split="validation", out=str(folder)))
    return folder


def figures(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
    return found


def test_the_figures_are_those_that_the_training_published(out: Path, model: str) -> None:
    whole = figures(out)["all"]
    published = json.loads((Path(model) / "model.json").read_text())["metrics"]["validation"]
    for name in ("images", "accuracy", "macro_f1", "uar", "confusion", "intervals_95"):
        assert whole[name] == published[name]
    assert whole["calibration"]["cross_fitted"]["ece"] == pytest.approx(published["calibration"]["cross_fitted"]["ece"], abs=1e-4)
    assert figures(out)["data"]["framed_as_the_model"] is True


def test_figures_by_quality_are_of_all_images_and_spoiled_ones_are_poorer(
    out: Path, dataset: Path, model: str, tmp_path: Path
) -> None:
    whole = figures(out)["all"]
    assert sum(one["images"] for one in whole["by_quality"]) == whole["images"]
    right = sum(one["images"] * one["accuracy"] for one in whole["by_quality"])
    assert right == pytest.approx(whole["images"] * whole["accuracy"])
    published = json.loads((Path(model) / "model.json").read_text())["metrics"]["validation"]
    assert published["by_quality"] == whole["by_quality"]
    assert figures(out)["settings"]["corrupted"] is None and "By quality of the picture" in (out / "evaluation.html").read_text()
    spoiled = []
    for name in ("a", "b"):
        config = EvaluateConfig(model=model, data=str(dataset), split="validation", out=str(tmp_path / name), corrupted=1)
        evaluate.run(config)
        spoiled.append(figures(tmp_path / name))
    assert spoiled[0]["all"] == spoiled[1]["all"] != whole and spoiled[0]["settings"]["corrupted"] == 1
    assert "100% of the images were spoiled first" in (tmp_path / "a" / "evaluation.html").read_text()
    with pytest.raises(UserError, match="corrupted"):
        evaluate.run(config.model_copy(update={"corrupted": 0.0}))


def test_the_table_of_predictions_adds_up_to_the_figures(out: Path) -> None:
    table, whole = pq.read_table(out / "predictions.parquet").to_pydict(), figures(out)["all"]
    assert len(set(table["sample_id"])) == len(table["label"]) == whole["images"] == 64
    assert np.mean([a == b for a, b in zip(table["label"], table["expression"], strict=True)]) == whole["accuracy"]
    assert [max(row) for row in table["probabilities"]] == pytest.approx(table["confidence"])
    assert table["copy_of_training"].count("exact") == 1


def test_what_also_stands_in_training_is_left_out_of_the_second_view(out: Path) -> None:
    found = figures(out)
    assert found["data"]["exact_copies_of_training_images"] == 1
    assert found["without_training_images"]["images"] == 63 - found["data"]["near_copies_of_training_images"]


def test_the_split_that_selected_the_model_is_marked_however_it_was_ingested(
    out: Path, dataset: Path, model: str, tmp_path: Path
) -> None:
    assert figures(out)["selected_on_this_split"] is True
    assert "figures are optimistic" in (out / "evaluation.html").read_text()
    again = ingest.run(IngestConfig(source=str(dataset / "samples"), layout="parquet", out=str(tmp_path / "again")))
    assert again.layout != read_dataset(str(dataset)).layout
    config = EvaluateConfig(model=model, data=str(tmp_path / "again"), split="validation", out=str(tmp_path / "a"))
    assert evaluate.run(config).selected_on_this_split
    learned = evaluate.run(EvaluateConfig(model=model, data=str(dataset), split="train", out=str(tmp_path / "e")))
    assert not learned.selected_on_this_split and learned.images_without_training_images is None
    assert "was trained on these images" in (tmp_path / "e" / "evaluation.html").read_text()


def test_another_datasets_training_split_is_not_taken_for_the_models(dataset: Path, tmp_path: Path) -> None:
    found = evaluate.run(EvaluateConfig(model=EMBEDDED, data=str(dataset), split="validation", out=str(tmp_path / "e")))
    assert found.images_without_training_images is None and not found.selected_on_this_split
    assert "leaks of them were not searched for" in " ".join((tmp_path / "e" / "evaluation.html").read_text().split())


def test_images_that_the_training_left_out_leak_nothing(dataset: Path, model: str, tmp_path: Path) -> None:
    bundle = read_bundle(model)
    data = bundle.card.data.model_copy(update={"left_out": 2, "learned_sha256": None})
    card = bundle.card.model_copy(update={"data": data})
    save_bundle(str(tmp_path / "m"), bundle_of(card, bundle.weights))
    config = EvaluateConfig(model=str(tmp_path / "m"), data=str(dataset), split="validation", out=str(tmp_path / "e"))
    assert evaluate.run(config).images_without_training_images is None
    assert figures(tmp_path / "e")["data"]["exact_copies_of_training_images"] == 0


def renamed(model: str, folder: Path, classes: tuple[str, ...]) -> str:
    """The model with other names for its classes."""
    bundle = read_bundle(model)
    data = bundle.card.data.model_copy(update={"learned_sha256": None})
    card = bundle.card.model_copy(update={"label_space": LabelSpace(name="other", classes=classes), "data": data})
    save_bundle(str(folder), bundle_of(card, bundle.weights))
    return str(folder)


def test_a_model_of_other_names_is_evaluated_by_a_mapping(out: Path, dataset: Path, model: str, tmp_path: Path) -> None:
    other = renamed(model, tmp_path / "m", ("angry", "disgust", "fear", "smile", "frown", "surprise", "neutral"))
    config = EvaluateConfig(model=other, data=str(dataset), split="validation", out=str(tmp_path / "e"))
    with pytest.raises(UserError, match=r"no image of a class that the model has"):
        evaluate.run(config)
    assert not (tmp_path / "e").exists()
    happy = evaluate.run(config.model_copy(update={"map": {"happy": "smile"}}))
    assert happy.images == 32 and figures(tmp_path / "e")["data"]["left_out_by_class"] == {"sad": 32}
    mapped = {"map": {"happy": "smile", "sad": "frown"}}
    with pytest.raises(UserError, match=r"The evaluation in .* was begun with another map"):
        evaluate.run(config.model_copy(update=mapped))
    both = evaluate.run(config.model_copy(update=mapped | {"out": str(tmp_path / "both")}))
    assert both.accuracy == figures(out)["all"]["accuracy"]


def test_a_model_of_entirely_other_classes_is_refused(dataset: Path, model: str, tmp_path: Path) -> None:
    other = renamed(model, tmp_path / "m", tuple("abcdefg"))
    config = EvaluateConfig(model=other, data=str(dataset), split="validation", out=str(tmp_path / "e"))
    with pytest.raises(UserError, match="have no class in common"):
        evaluate.run(config)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"split": "test"}, "has no split 'test'; it has train, validation"),
        ({"map": {"joy": "happy"}}, "'joy' cannot be mapped to 'happy'"),
        ({"model": "nowhere"}, "no model bundle at 'nowhere'"),
        ({"use_gpu": True}, "--use-gpu needs 1 GPUs"),
    ],
)
def test_what_does_not_go_together_is_refused_and_nothing_is_written(
    change: dict[str, Any], complaint: str, dataset: Path, tmp_path: Path
) -> None:
    config = EvaluateConfig(model=EMBEDDED, data=str(dataset), split="validation", out=str(tmp_path / "e"))
    with pytest.raises(UserError, match=complaint):
        evaluate.run(config.model_copy(update=change))
    assert not (tmp_path / "e").exists()


def test_a_folder_with_other_files_is_left_alone(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files \(notes.txt\)"):
        evaluate.run(EvaluateConfig(model=EMBEDDED, data=str(dataset), split="validation", out=str(tmp_path)))


@pytest.fixture
def registry(model: str, tmp_path: Path) -> Registry:
    """The embedded model as version 1 and in production, and a model that learned the stripes as version 2."""
    found = Registry(str(tmp_path / "registry"))
    for source in (EMBEDDED, model):
        found.push("face", read_files(source))
    found.point("face", "production", "1")
    return found


def candidate(registry: Registry, version: str, dataset: Path, **options: Any) -> PromoteConfig:
    options = {"rule": Rule(allow_unchecked_leaks=True)} | options  # nobody knows all that the embedded model learned
    return PromoteConfig(name="face", version=version, data=str(dataset), split="validation", registry=registry.url, **options)


def test_a_better_version_is_promoted_and_the_former_one_is_not(
    dataset: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    better = promote.run(candidate(registry, "2", dataset))
    assert better.promoted and registry.resolve("face", "production").version == "2"
    worse = promote.run(candidate(registry, "1", dataset))
    assert not worse.promoted and registry.resolve("face", "production").version == "2"
    assert (better.number, worse.number) == (1, 2) and better.comparison.left_out == 1
    assert (better.uses, worse.uses) == (1, 2) and promote.worn(worse) is None
    assert "have judged 4 candidates: draw others" in str(promote.worn(worse.model_copy(update={"uses": 4})))
    with pytest.raises(UserError, match="compare on the split 'audit' of a dataset of layout corrections, not on"):
        promote.run(candidate(registry, "1", dataset, audited=True))
    with monkeypatch.context() as patch, pytest.raises(UserError, match="these answers have judged 2 candidates"):
        patch.setattr(promote, "AUDIT", "validation")
        patch.setattr(promote, "read_dataset", lambda url: read_dataset(url).model_copy(update={"layout": "corrections"}))
        patch.setattr(promote, "MOST_USES", 2)
        rule = Rule(allow_unchecked_leaks=True, min_gain=0.5)
        promote.run(candidate(registry, "1", dataset, audited=True, rule=rule))
    kept = Path(registry.url) / "face" / "verdicts" / "production"
    assert Verdict.model_validate_json((kept / "000002.json").read_text()) == worse
    with pytest.raises(UserError, match="is version 2 already"):
        promote.run(candidate(registry, "2", dataset))


def test_a_promotion_that_is_asked_for_again_is_decided(dataset: Path, registry: Registry) -> None:
    first = promote.run(candidate(registry, "2", dataset))
    assert promote.run(candidate(registry, "2", dataset)) == first
    assert len(list((Path(registry.url) / "face" / "verdicts" / "production").glob("*.json"))) == 1


def test_a_verdict_says_which_form_was_judged_and_on_which_images(dataset: Path, registry: Registry, tmp_path: Path) -> None:
    verdict = promote.run(candidate(registry, "2", dataset))
    ours, theirs = verdict.judged
    assert (ours.precision, theirs.precision) == ("fp32", "int8")  # the form that CPUs label with, where a version has it
    assert (ours.selected_on_this_split, theirs.selected_on_this_split) == (True, False)
    wanted = {"model": EMBEDDED, "data": str(dataset), "split": "validation", "precision": "int8"}
    evaluate.run(EvaluateConfig.model_validate(wanted | {"out": str(tmp_path / "e")}))
    table, kept = (pq.read_table(f"{place}/predictions.parquet") for place in (tmp_path / "e", f"{verdict.evidence}-1"))
    assert table["probabilities"].equals(kept["probabilities"])
    assert "in int8" in promote.describe(theirs) and "that selected it" in promote.describe(ours)


def test_a_model_that_may_have_learned_the_images_is_not_promoted_unless_that_is_allowed(
    dataset: Path, registry: Registry
) -> None:
    refused = promote.run(candidate(registry, "2", dataset, rule=Rule()))
    assert not refused.promoted and refused.comparison.leaks == "cannot be checked"
    assert "it is unknown what version 1 learned" in refused.comparison.reasons[0]
    assert promote.run(candidate(registry, "2", dataset)).promoted


@pytest.fixture(scope="module")
def another_cut(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of the dataset in other splits."""
    folder = tmp_path_factory.mktemp("cut")
    for path in (dataset.parent / "tree").glob("*/*/*.png"):
        place = folder / "tree" / path.parent.name / f"{path.parts[-3]}-{path.name}"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    ingest.run(IngestConfig(source=str(folder / "tree"), out=str(folder / "out"), validation_share=0.4, seed=7))
    return folder / "out"


def test_images_that_were_learned_in_another_cut_are_found(
    dataset: Path, another_cut: Path, model: str, registry: Registry, tmp_path: Path
) -> None:
    """Same images, other seed: no split equals the split that the model learned, but it learned most of the images."""
    learned, judged = (read_samples(str(one), DUPLICATE_COLUMNS) for one in (dataset, another_cut))
    digests = set(learned.filter(pc.equal(learned["split"], "train"))["sha256"].to_pylist())
    ours = judged.filter(pc.equal(judged["split"], "validation"))["sha256"].to_pylist()
    expected = sum(digest in digests for digest in ours)
    found = evaluate.run(EvaluateConfig(model=model, data=str(another_cut), split="validation", out=str(tmp_path / "e")))
    leaks = figures(tmp_path / "e")["data"]
    assert leaks["exact_copies_of_training_images"] == expected > 0 and leaks["leaks_checked"] and found.leaks_checked
    assert found.images_without_training_images == len(ours) - expected - leaks["near_copies_of_training_images"]
    page = " ".join((tmp_path / "e" / "evaluation.html").read_text().split())
    assert "leaks of them were not searched for" not in page and f"{expected} images have an exact copy" in page
    registry.push("face", read_files(model), "3")
    verdict = promote.run(candidate(registry, "3", another_cut))
    assert verdict.comparison.left_out == len(ours) - (found.images_without_training_images or 0)


def test_what_a_model_learned_travels_with_it(dataset: Path, model: str, tmp_path: Path) -> None:
    """A model that starts from another one, or is exported from it, has learned the same images."""
    ours = read_learned(model, read_bundle(model).card)
    assert ours is not None and len(ours) == len(set(ours["pixels"].to_pylist())) == 191
    assert "learned.parquet" in read_files(model)
    (tmp_path / "copy").mkdir()
    for name, data in read_files(model).items():
        (tmp_path / "copy" / name).write_bytes(data[:-1] if name == "learned.parquet" else data)
    with pytest.raises(UserError, match=r"learned.parquet of the model .* does not match its card"):
        read_learned(str(tmp_path / "copy"), read_bundle(str(tmp_path / "copy")).card)
    (tmp_path / "copy" / "learned.parquet").unlink()
    with pytest.raises(UserError, match=r"lacks learned.parquet"):
        evaluate.run(EvaluateConfig(model=str(tmp_path / "copy"), data=str(dataset), split="train", out=str(tmp_path / "e")))


def test_a_page_that_cannot_be_drawn_costs_no_evaluation(
    dataset: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "evaluation_page", Mock(side_effect=RuntimeError("no ink")))
    evaluate.run(EvaluateConfig(model=model, data=str(dataset), split="validation", out=str(tmp_path / "e")))
    assert figures(tmp_path / "e") and "no ink" in (tmp_path / "e" / "evaluation.html").read_text()


def test_of_two_promotions_at_once_one_decides(dataset: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = promote._compared

    def overtaken(*arguments: Any) -> Any:
        with monkeypatch.context() as alone:
            alone.setattr(promote, "_compared", compared)
            promote.run(candidate(registry, "2", dataset))
        return compared(*arguments)

    registry.push("face", read_files(EMBEDDED), "3")
    monkeypatch.setattr(promote, "_compared", overtaken)
    with pytest.raises(UserError, match="Another promotion"):
        promote.run(candidate(registry, "3", dataset))
    assert registry.resolve("face", "production").version == "2"
    assert len(list((Path(registry.url) / "face" / "verdicts" / "production").glob("*.json"))) == 1


def test_what_a_recipe_names_as_learned_is_looked_for_among_what_it_may_be(dataset: Path) -> None:
    samples = read_samples(str(dataset), DUPLICATE_COLUMNS)
    learned = learned_images(samples.slice(0, 9))

    def checked(layout: str, *external: str) -> bool:
        card = ModelCard(name="m", network=read_bundle(EMBEDDED).card.network, label_space=FER7)
        card = card.model_copy(update={"data": TrainingData(external=external)})
        return find_leaks(card, learned, samples, "validation", read_flagged(str(dataset)), layout, "d").checked

    assert checked("affectnet-csv") and checked("affectnet-csv", "imagenet") and checked("image-folder", "imagenet")
    assert checked("fer2013-csv", "affectnet")
    assert not checked("affectnet-csv", "affectnet") and not checked("affectnet-npy", "affectnet-csv")
    assert not checked("image-folder", "affectnet")  # which may be it, unpacked


def test_two_samples_of_one_name_are_two_images(dataset: Path) -> None:
    samples = read_samples(str(dataset), DUPLICATE_COLUMNS)
    twice = pa.concat_tables([samples, samples.filter(pc.equal(samples["split"], "validation")).slice(0, 3)])
    assert find_learned(twice, "validation", learned_images(samples)).exact


def test_a_verdict_of_an_earlier_version_is_no_obstacle(dataset: Path, registry: Registry) -> None:
    first = promote.run(candidate(registry, "2", dataset, rule=Rule(min_images=10_000, allow_unchecked_leaks=True)))
    path = Path(registry.url) / "face" / "verdicts" / "production" / "000001.json"
    path.write_text(path.read_text().replace('"min_gain": 0.0', '"min_gain": -0.9'))
    assert not first.promoted and promote.run(candidate(registry, "2", dataset)).promoted


def test_another_form_is_another_question(dataset: Path, registry: Registry) -> None:
    rule = Rule(min_images=10_000, allow_unchecked_leaks=True)
    first = promote.run(candidate(registry, "2", dataset, rule=rule, precision="fp32"))
    second = promote.run(candidate(registry, "2", dataset, rule=rule))
    assert (first.number, second.number) == (1, 2) and [one.precision for one in second.judged] == ["fp32", "int8"]
