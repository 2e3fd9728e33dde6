from pathlib import Path

import pytest

from fer_pipeline.core.errors import UserError
from fer_pipeline.models.recipe import load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_loads(name: str) -> None:
    assert load_recipe(name).name == name


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[training]\nepoch = 3", "unknown key 'training.epoch'"),
        ("[training]\nepochs = 'many'", "training.epochs"),
        ("[training\n", "not valid TOML"),
    ],
)
def test_a_faulty_recipe_is_refused_in_one_sentence(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UserError, match=complaint):
        load_recipe(str(tmp_path / "mine.toml"))


def test_an_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(UserError, match="fer2013-small"):
        load_recipe("resnet9000")
