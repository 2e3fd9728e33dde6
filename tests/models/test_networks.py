from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision

from fer_pipeline.base.errors import UserError
from fer_pipeline.models.network_config import NetworkConfig
from fer_pipeline.models.networks import NETWORKS, build
from fer_pipeline.models.pretrained import load_pretrained
from fer_pipeline.models.training.trainer import predict
from fer_pipeline.models.weights import keep_outputs, take_over

GREY = torch.randint(0, 256, (3, 1, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
RESNET = NetworkConfig(architecture="resnet18", channels=3, image_px=64)


@pytest.mark.parametrize("architecture", NETWORKS)
def test_our_own_networks_classify_grey_crops(architecture: str) -> None:
    assert predict(build(NetworkConfig(architecture=architecture, width=4), 7), GREY).shape == (3, 7)


def test_flip_averaging_is_the_mean_over_both_views_and_only_in_evaluation() -> None:
    config = NetworkConfig(width=4, dropout=0.0)
    plain, averaging = build(config, 7), build(config.model_copy(update={"flip_averaging": True}), 7)
    averaging.load_state_dict(plain.state_dict())
    both = (predict(plain, GREY) + predict(plain, GREY.flip(3))) / 2
    assert torch.allclose(predict(averaging, GREY), both, atol=1e-6)
    assert torch.allclose(predict(averaging, GREY), predict(averaging, GREY.flip(3)), atol=1e-6)
    assert torch.allclose(plain.train()(GREY), averaging.train()(GREY), atol=1e-6)


@pytest.mark.parametrize("config", [NetworkConfig(width=4), RESNET, RESNET.model_copy(update={"architecture": "squeezenet1_1"})])
def test_outputs_can_be_cut_off_and_grown_again(config: NetworkConfig) -> None:
    images = torch.randint(0, 256, (2, config.channels, config.image_px, config.image_px), dtype=torch.uint8)
    wide, narrow, wider = build(config, 17).eval(), build(config, 7), build(config, 20)
    narrow.load_state_dict(keep_outputs(wide.state_dict(), 7))
    assert torch.allclose(predict(narrow, images), predict(wide, images)[:, :7], atol=1e-5)
    take_over(wider, wide.state_dict())
    assert torch.allclose(predict(wider, images)[:, :17], predict(wide, images), atol=1e-5)


@pytest.mark.parametrize(
    ("small", "large"),
    [
        (NetworkConfig(width=4), NetworkConfig(width=4, blocks=(1, 2, 3))),
        (NetworkConfig(width=4), NetworkConfig(width=10)),
        (NetworkConfig(width=4), NetworkConfig(width=6, blocks=(2, 1, 1))),
        (NetworkConfig(architecture="plain_cnn", width=4), NetworkConfig(architecture="plain_cnn", width=7)),
    ],
)
def test_a_larger_network_begins_as_the_one_whose_weights_it_takes_over(small: NetworkConfig, large: NetworkConfig) -> None:
    taken, grown = build(small, 7).eval(), build(large, 9)
    take_over(grown, taken.state_dict())
    assert torch.allclose(predict(grown, GREY)[:, :7], predict(taken, GREY), atol=1e-6)
    assert sum(value.numel() for value in grown.parameters()) > 1.5 * sum(value.numel() for value in taken.parameters())


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_gives_all_but_the_last_layer(tmp_path: Path, name: str) -> None:
    given = torchvision.models.resnet18(num_classes=1000).state_dict()
    if name.endswith("pth"):
        torch.save({"state_dict": {f"module.{key}": value for key, value in given.items()}}, tmp_path / name)
    else:
        safetensors.torch.save_file(given, tmp_path / name)
    network = build(RESNET, 8)
    head = network.state_dict()["1.fc.weight"].clone()
    load_pretrained(network, "resnet18", str(tmp_path / name))
    assert torch.equal(network.state_dict()["1.layer3.0.conv1.weight"], given["layer3.0.conv1.weight"])
    assert torch.equal(network.state_dict()["1.fc.weight"], head)


def test_torchvisions_own_weights_are_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is in torchvision's download cache, so the test needs no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    given = torchvision.models.resnet18(num_classes=1000).state_dict()
    url = torchvision.models.get_model_weights("resnet18")["IMAGENET1K_V1"].url
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(given, tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1])
    network = build(RESNET, 8)
    load_pretrained(network, "resnet18", "IMAGENET1K_V1")
    assert torch.equal(network.state_dict()["1.conv1.weight"], given["conv1.weight"])


def test_weights_that_cannot_serve_are_the_users_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(torchvision.models.resnet34(num_classes=10).state_dict(), tmp_path / "other.pth")
    (tmp_path / "broken.pth").write_bytes(b"x" * 100)
    torch.save([1, 2], tmp_path / "list.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    faults = {
        "other.pth": "for another network than resnet50",
        "broken.pth": "no weights that can be read safely",
        "list.pth": "no state dict",
        "none.pth": "no weights file",
        "IMAGENET9": "no weights 'IMAGENET9'",
        "DEFAULT": "cannot be downloaded",
    }
    network = build(RESNET.model_copy(update={"architecture": "resnet50"}), 8)
    for weights, complaint in faults.items():
        with pytest.raises(UserError, match=complaint):
            load_pretrained(network, "resnet50", str(tmp_path / weights) if "." in weights else weights)
