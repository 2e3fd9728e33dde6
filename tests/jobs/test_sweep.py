import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_pipeline.base.errors import UserError
from fer_pipeline.jobs import sweep
from fer_pipeline.jobs.sweep import SweepConfig
from fer_pipeline.models.recipe import load_recipe
from tests.conftest import RECIPE

SPACE = """
[training]
learning_rate = [0.02, 0.0000001]
[network]
dropout = { low = 0.01, high = 0.3, log = true }
"""


@pytest.mark.slow
@pytest.mark.long
def test_a_sweep_writes_a_table_a_picture_and_the_best_recipe(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "stripes.toml").write_text(RECIPE.replace("epochs = 8", "epochs = 5"))
    (tmp_path / "space.toml").write_text(SPACE)
    config = SweepConfig(
        recipe=str(tmp_path / "stripes.toml"),
        space=str(tmp_path / "space.toml"),
        data=str(dataset),
        out=str(tmp_path / "sweep"),
        trials=6,
        grace_epochs=2,
        keep_one_in=2,
        allow_missing_classes=True,
    )
    result = sweep.run(config)
    rows = list(csv.DictReader((tmp_path / "sweep" / "trials.csv").open()))
    assert len(rows) == result.trials == 6
    assert result.ended_early == sum(int(row["epochs"]) < 5 for row in rows) > 0
    assert float(rows[0]["best_validation_accuracy"]) == pytest.approx(result.best_accuracy, abs=1e-4)
    assert {float(row["training.learning_rate"]) for row in rows} == {0.02, 0.0000001}
    assert len({row["network.dropout"] for row in rows}) == 6
    assert all(0.01 <= float(row["network.dropout"]) <= 0.3 for row in rows)
    best = load_recipe(str(tmp_path / "sweep" / "best.toml"))
    assert best.training.learning_rate == 0.02
    assert best.network.dropout == result.best["network.dropout"] == float(rows[0]["network.dropout"])
    assert (best.training.epochs, best.network.width) == (5, 4)
    picture = cv2.imdecode(np.frombuffer((tmp_path / "sweep" / "trials.png").read_bytes(), np.uint8), 1)
    assert picture is not None and picture.std() > 5
    assert sweep.run(config) == result  # nothing is tried twice
    with pytest.raises(UserError, match="begun with another trials and seed"):
        sweep.run(config.model_copy(update={"trials": 7, "seed": 1}))


@pytest.mark.parametrize(
    ("space", "complaint"),
    [
        ("", "is empty"),
        ("[training]\nlearning_rat = [1.0]", "unknown key 'training.learning_rat'"),
        ("[training]\nlearning_rate = [-1.0]", "learning_rate"),
        ("[training]\nlearning_rate = 0.1", "must be a list of values"),
        ("seed = [1]", "in sections"),
        ("[name]\nx = [1]", "in sections of the recipe"),
        ("[training]\nweight_decay = { low = 0.0, high = 0.01, log = true }", "above 0 with log"),
        ('[training]\nweight_decay = { low = "a", high = "b" }', "must be a list of values"),
        ("][", "cannot be read"),
    ],
)
def test_a_space_that_does_not_fit_is_refused(tmp_path: Path, space: str, complaint: str) -> None:
    (tmp_path / "space.toml").write_text(space)
    with pytest.raises(UserError, match=complaint):
        sweep.load_space(str(tmp_path / "space.toml"), load_recipe("fer2013-small"))
