from pathlib import Path

import pytest

from fer_pipeline.base.errors import UserError
from fer_pipeline.models.recipe import load_recipe, recipe_names, recipe_toml


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_loads(name: str) -> None:
    assert load_recipe(name).name == name


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[training]\nepoch = 3", "unknown key 'training.epoch'"),
        ("[training]\nepochs = 'many'", "training.epochs"),
        ("[training\n", "not valid TOML"),
        ('[training]\nvotes = "target"\nvotes_weight = 3', "votes_weight is 3, but"),
        ("[training]\nfirst_px = 64", "first_px is 64, above the network's image_px of 48"),
        ('[training]\nfirst_px = 32\n[network]\narchitecture = "plain_cnn"', "'plain_cnn' takes images of one size only"),
    ],
)
def test_a_faulty_recipe_is_refused_in_one_sentence(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UserError, match=complaint):
        load_recipe(str(tmp_path / "mine.toml"))


def test_an_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(UserError, match="fer2013-small"):
        load_recipe("resnet9000")


def test_a_recipe_takes_over_what_it_extends_and_changes_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('extends = "fer2013-small"\nname = "base"\n[training]\nepochs = 3\n')
    (tmp_path / "mine.toml").write_text('extends = "base.toml"\n[network]\ndropout = 0.5\n')
    mine, base = load_recipe(str(tmp_path / "mine.toml")), load_recipe("fer2013-small")
    assert (mine.name, mine.training.epochs, mine.network.dropout) == ("mine", 3, 0.5)
    assert mine.network.width == base.network.width and mine.augmentation == base.augmentation


@pytest.mark.parametrize(("one", "other"), [("one.toml", "one.toml"), ("other.toml", "one.toml"), ("no-such-recipe", "one.toml")])
def test_a_recipe_that_extends_itself_or_nothing_is_refused(one: str, other: str, tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(f'extends = "{one}"\n')
    (tmp_path / "other.toml").write_text(f'extends = "{other}"\n')
    with pytest.raises(UserError, match=r"cannot extend|no recipe 'no-such-recipe'"):
        load_recipe(str(tmp_path / "one.toml"))


def test_a_recipe_written_as_toml_is_read_back(tmp_path: Path) -> None:
    recipe = load_recipe("fer2013-small-votes")
    (tmp_path / "copy.toml").write_text(recipe_toml(recipe))
    assert load_recipe(str(tmp_path / "copy.toml")) == recipe.model_copy(update={"name": "copy"})
