from pathlib import Path

import pytest

from fer_pipeline.base.errors import UserError
from fer_pipeline.models.label_space import (
    AFFECTNET8,
    FER7,
    FERPLUS8,
    SYNONYMS,
    LabelSpace,
    canonical,
    is_expression,
    load_label_space,
    mapping,
)


def test_spaces_map_by_name_and_contempt_has_no_place_in_fer7() -> None:
    for source in (AFFECTNET8, FERPLUS8):
        found = mapping(source.classes, FER7)
        assert {name for name, index in zip(source.classes, found, strict=True) if index is None} == {"contempt"}
        assert sorted(index for index in found if index is not None) == list(range(7))
    assert None not in mapping(AFFECTNET8.classes, FERPLUS8)
    assert mapping(FER7.classes, FER7) == tuple(range(7))
    assert mapping(("happiness", "NF"), FER7) == (3, None)


def test_synonyms_have_one_name() -> None:
    assert [canonical(name) for name in ("Anger", " Happiness", "surprised", "grumpy")] == [
        "angry",
        "happy",
        "surprise",
        "grumpy",
    ]


@pytest.mark.parametrize("name", ["0_angry", "00_Anger", "3. ANGRY", " 7-anger ", "1 - angry", "angery"])
def test_a_number_in_front_of_a_known_name_means_nothing(name: str) -> None:
    assert canonical(name) == "angry"


def test_a_number_in_front_of_another_name_belongs_to_it() -> None:
    assert [canonical(name) for name in ("1_star", "2_star", "0angry", "3", "1.5")] == ["1_star", "2_star", "0angry", "3", "1.5"]
    assert canonical("1_Star", ("star", "moon")) == "star"
    assert canonical("1_Star", ("star", "1_star")) == "1_star"
    assert mapping(("0_star", "1_moon"), LabelSpace(name="sky", classes=("moon", "star"))) == (1, 0)


def test_a_synonym_is_of_one_class_and_is_none() -> None:
    assert all(is_expression(ours) and not is_expression(other) for other, ours in SYNONYMS.items())


def test_an_unknown_space_is_refused() -> None:
    with pytest.raises(UserError, match="no label space 'fer9'"):
        load_label_space("fer9")


def test_a_label_space_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "valence.toml").write_text('classes = ["Happiness", "neutral", "negative"]')
    space = load_label_space(str(tmp_path / "valence.toml"))
    assert space == type(FER7)(name="valence", classes=("happy", "neutral", "negative"))
    for text, complaint in (
        ('classes = ["happy", "happiness"]', "two classes have the same name"),
        ('classes = ["happy"]', "at least two classes"),
        ("classes = 3", "cannot be used: classes"),
        ("classes = [", "cannot be read"),
    ):
        (tmp_path / "faulty.toml").write_text(text)
        with pytest.raises(UserError, match=complaint):
            load_label_space(str(tmp_path / "faulty.toml"))
