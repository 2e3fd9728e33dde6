"""ONNX networks: our own, exported, and foreign ones with a card written by hand."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from fer_pipeline.base.errors import UserError
from fer_pipeline.faces.classify import Classifier
from fer_pipeline.models.bundle import EMBEDDED, bundle_of, read_bundle
from fer_pipeline.models.card import ModelCard
from fer_pipeline.models.export import to_int8, to_onnx
from fer_pipeline.models.label_space import LabelSpace
from fer_pipeline.models.network_config import NetworkConfig
from fer_pipeline.models.onnx import OnnxNetwork
from fer_pipeline.models.weights import load_network

CROPS = np.random.default_rng(0).integers(0, 256, (70, 1, 48, 48), np.uint8)


@pytest.fixture(scope="module")
def exported() -> bytes:
    return to_onnx(read_bundle(EMBEDDED))


def as_onnx(model: bytes) -> Any:
    return bundle_of(read_bundle(EMBEDDED).card.model_copy(update={"format": "onnx"}), model)


@pytest.mark.parametrize("count", [0, 1, 5, 70])
def test_an_exported_network_gives_the_same_probabilities_for_any_number_of_crops(exported: bytes, count: int) -> None:
    crops = CROPS[:count]
    ours, theirs = Classifier(read_bundle(EMBEDDED), "fp32")(crops), Classifier(as_onnx(exported), "fp32")(crops)
    assert ours.shape == theirs.shape == (count, 7)
    assert count == 0 or np.abs(ours - theirs).max() < 1e-4


def test_int8_is_a_quarter_of_the_size_and_nearly_the_same(exported: bytes) -> None:
    small = to_int8(exported, CROPS)
    assert len(small) < 0.3 * len(exported)
    ours, theirs = Classifier(read_bundle(EMBEDDED), "fp32")(CROPS), Classifier(as_onnx(small), "fp32")(CROPS)
    assert 0 < np.abs(ours - theirs).max() < 0.2


def test_int8_answers_to_the_bit_whatever_the_batch() -> None:
    """A photo's labels must not depend on its batch. In torch they do on some processors, by 1e-6 of the logits."""
    classifier = Classifier(read_bundle(EMBEDDED), "int8")
    crops = np.random.default_rng(0).integers(0, 256, (64, 1, 48, 48), np.uint8)
    for size in (1, 3, 8, 17):
        parts = [classifier.logits(crops[start : start + size]) for start in range(0, len(crops), size)]
        assert np.array_equal(np.concatenate(parts), classifier.logits(crops)), size


def test_the_file_says_which_classes_its_outputs_are(exported: bytes) -> None:
    facts = {entry.key: entry.value for entry in onnx.load_from_string(exported).metadata_props}
    assert '"disgust"' in facts["classes"] and "AI Act" in facts["intended_use"]


def foreign(
    shape: list[Any], weight: np.ndarray[Any, Any], kind: int = TensorProto.FLOAT, softmax: bool = False, twice: bool = False
) -> bytes:
    """Return a network that multiplies the flattened image by `weight` (pixels, classes); `twice`: output `double`, too."""
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["y"], ["p"], axis=1))
    if twice:
        nodes.append(helper.make_node("Add", ["y", "y"], ["double"]))
    outputs = ["p" if softmax else "y", *(["double"] if twice else [])]
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def card(**network: Any) -> ModelCard:
    space = LabelSpace(name="two", classes=("happy", "sad"))
    return ModelCard(name="foreign", format="onnx", label_space=space, network=NetworkConfig(image_px=4, **network))


def wanted(crops: np.ndarray[Any, Any], weight: np.ndarray[Any, Any], mean: Any, std: Any) -> np.ndarray[Any, Any]:
    shape = (1, -1, 1, 1)
    scaled = (crops / 255 - np.reshape(mean, shape)) / np.reshape(std, shape)
    return np.asarray(scaled.reshape(len(crops), -1) @ weight)


RGB = np.random.default_rng(1).integers(0, 256, (5, 3, 4, 4), np.uint8)
WEIGHT = np.random.default_rng(2).normal(size=(48, 2))
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def test_another_ones_network_gets_normalised_floats() -> None:
    network = OnnxNetwork(bundle_of(card(channels=3, **IMAGENET), foreign(["n", 3, 4, 4], WEIGHT)))
    assert network(RGB) == pytest.approx(wanted(RGB, WEIGHT, **IMAGENET), abs=1e-4)


def test_a_network_of_channels_last_and_one_of_a_fixed_batch_get_what_they_take() -> None:
    last = WEIGHT.reshape(3, 4, 4, 2).transpose(1, 2, 0, 3).reshape(48, 2)
    network = OnnxNetwork(bundle_of(card(channels=3, **IMAGENET), foreign([2, 4, 4, 3], last)))
    assert network(RGB) == pytest.approx(wanted(RGB, WEIGHT, **IMAGENET), abs=1e-4)


def test_probabilities_are_taken_as_such() -> None:
    given = card(channels=3, **IMAGENET).model_copy(update={"outputs": "probabilities"})
    found = Classifier(bundle_of(given, foreign(["n", 3, 4, 4], 0.1 * WEIGHT, softmax=True)), "fp32")(RGB)
    logits = 0.1 * wanted(RGB, WEIGHT, **IMAGENET)
    assert found == pytest.approx(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), abs=1e-5)


@pytest.mark.parametrize(
    ("model", "network", "complaint"),
    [
        (foreign(["n", 3, 4, 4], np.ones((48, 5))), {"channels": 3}, r"shape \(1, 5\), but its card names 2 classes"),
        (foreign(["n", 3, 8, 8], np.ones((192, 2))), {"channels": 3}, "does not accept the input that its card describes"),
        (foreign(["n", 48], np.ones((48, 2))), {"channels": 3}, "one input, images in four dimensions"),
        (foreign(["n", 3, 4, 4], np.full((48, 2), np.nan)), {"channels": 3}, "not finite"),
        (b"no model", {"channels": 3}, "cannot be loaded"),
    ],
)
def test_a_file_that_does_not_fit_its_card_is_refused(model: bytes, network: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        OnnxNetwork(bundle_of(card(**network), model))
    assert "\n" not in str(error.value)


def with_further(classes_at: int, *further: dict[str, Any]) -> ModelCard:
    facts = card(channels=3, **IMAGENET).model_dump(mode="json") | {"classes_at": classes_at, "further": further}
    return ModelCard.model_validate(facts)


VALENCE, AROUSAL = {"column": "valence", "index": 0, "low": -1, "high": 1}, {"column": "arousal", "index": 3, "output": "double"}
FOUR = np.random.default_rng(3).normal(size=(48, 4))


@pytest.mark.parametrize("batch", ["n", 2])
def test_a_card_takes_values_beside_the_classes_from_any_output(batch: Any) -> None:
    """Valence, which is clipped, stands before the classes, and twice the last value, which no card uses, in another output."""
    bundle = bundle_of(
        with_further(1, VALENCE, AROUSAL, {"column": "last", "index": 3}), foreign([batch, 3, 4, 4], FOUR, twice=True)
    )
    raw = wanted(RGB, FOUR, **IMAGENET)
    classifier = Classifier(bundle, "fp32")
    assert classifier.logits(RGB) == pytest.approx(raw[:, 1:3], abs=1e-4)
    found = classifier.label(RGB)
    assert found.probabilities == pytest.approx(classifier(RGB)) and found.further is not None
    assert found.further == pytest.approx(np.stack([raw[:, 0].clip(-1, 1), 2 * raw[:, 3], raw[:, 3]], 1), abs=1e-4)
    assert (
        classifier.label(RGB[:0]).further is not None and Classifier(read_bundle(EMBEDDED), "int8").label(CROPS).further is None
    )


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (
            with_further(1, VALENCE),
            r"shape \(1, 4\), but its card names 2 classes and values up to 2: the shape must be \(n, 3\)",
        ),
        (with_further(0, {"column": "age", "output": "age"}), "has no output 'age': it has y, double"),
        (with_further(2, {"column": "age", "output": "double", "index": 4}), "takes 'age' from place 4 of an output of shape"),
    ],
)
def test_a_card_that_takes_what_its_network_lacks_is_refused(given: ModelCard, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Classifier(bundle_of(given, foreign(["n", 3, 4, 4], FOUR, twice=True)), "fp32")


def test_values_that_no_card_can_have_are_refused() -> None:
    with pytest.raises(ValidationError, match="two further outputs have one name"):
        with_further(0, VALENCE, VALENCE)
    with pytest.raises(ValidationError, match="low is 1, and must be below high, -1"):
        with_further(0, VALENCE | {"low": 1, "high": -1})
    facts = with_further(0, VALENCE).model_dump(mode="json") | {"format": "safetensors"}
    with pytest.raises(ValidationError, match="describe the outputs of a network of format onnx"):
        ModelCard.model_validate(facts)


def test_a_network_that_answers_a_crop_twice_is_refused() -> None:
    model = onnx.load_from_string(foreign(["n", 3, 4, 4], WEIGHT))
    model.graph.node.append(helper.make_node("Concat", ["y", "y"], ["both"], axis=0))
    model.graph.output[0].name = "both"
    with pytest.raises(UserError, match=r"answers 1 crops by an output 'both' of shape \(2, 2\): it must be \(crops, values\)"):
        OnnxNetwork(bundle_of(card(channels=3), model.SerializeToString()))


@pytest.mark.parametrize("values", [{"mean": (0.5, 0.5, 0.5)}, {"channels": 3, "std": (0.2, 0.2)}, {"std": (0.0,)}])
def test_a_card_whose_normalisation_does_not_fit_its_channels_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="mean and std need one value or one for each of the"):
        NetworkConfig(**values)


def test_an_onnx_network_is_neither_trained_on_nor_exported_again(exported: bytes) -> None:
    with pytest.raises(UserError, match="cannot be trained"):
        load_network(as_onnx(exported))
    with pytest.raises(UserError, match="already an ONNX network"):
        to_onnx(as_onnx(exported))
