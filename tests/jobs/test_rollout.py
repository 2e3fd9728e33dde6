"""Rollout and rollback of models on FER-2013's PublicTest: better, worse and equal candidates, made with seeded noise."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fer_pipeline.cli import models
from fer_pipeline.cli.models import AliasConfig, PushConfig
from fer_pipeline.jobs import ingest, promote
from fer_pipeline.jobs.ingest import IngestConfig
from fer_pipeline.jobs.promote import PromoteConfig
from fer_pipeline.models.bundle import EMBEDDED, read_bundle, save_bundle
from fer_pipeline.models.registry import open_registry
from fer_pipeline.models.weights import load_network, pack

pytestmark = [pytest.mark.slow, pytest.mark.long]


def noisy(folder: Path, amount: float, seed: int) -> str:
    """Write the embedded model with noise, `amount` times the spread of each weight, and return its folder."""
    bundle = read_bundle(EMBEDDED)
    network, generator = load_network(bundle), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.parameters():
            if value.dim() > 1:
                value.add_(amount * value.std() * torch.randn(value.shape, generator=generator))
    save_bundle(str(folder), pack(network, bundle.card))
    return str(folder)


@pytest.fixture(scope="module")
def public_test(shared: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> str:
    folder = tmp_path_factory.mktemp("fer2013")
    tool = shared / "tools" / "make_fer2013.py"
    subprocess.run([sys.executable, str(tool), "kaggle-csv", str(folder / "fer2013.csv")], check=True, capture_output=True)
    ingest.run(IngestConfig(source=str(folder / "fer2013.csv"), layout="fer2013-csv", out=str(folder / "data")))
    return str(folder / "data")


def test_a_better_candidate_moves_the_alias_and_a_worse_or_equal_one_does_not(public_test: str, tmp_path: Path) -> None:
    registry = str(tmp_path / "registry")
    for name, amount, seed in (("noisy", 0.3, 0), ("embedded", 0.0, 0), ("equal", 0.02, 1), ("worse", 0.3, 2)):
        aliases = ("production",) if name == "noisy" else ()
        models.push(PushConfig(model=noisy(tmp_path / name, amount, seed), name="faces", alias=aliases, registry=registry))
    verdicts = {}
    for version in ("2", "3", "4"):
        config = PromoteConfig(name="faces", version=version, data=public_test, split="validation", registry=registry)
        verdicts[version] = promote.run(config)
        comparison = verdicts[version].comparison
        print(version, comparison.accuracy, comparison.incumbent_accuracy, comparison.p, comparison.reasons)
    assert {version: verdict.promoted for version, verdict in verdicts.items()} == {"2": True, "3": False, "4": False}
    assert verdicts["2"].comparison.images == 3296  # without those of which Training holds a copy
    assert open_registry(registry).aliases("faces") == {"production": "2"}
    models.alias(AliasConfig(name="faces", alias="production", version="1", registry=registry))
    assert read_bundle(f"{registry}/faces@production").version == "1"
