import pytest

from fer_pipeline.core.errors import UserError
from fer_pipeline.core.labels import AFFECTNET8, FER7, FERPLUS8, canonical, label_space, mapping


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


def test_an_unknown_space_is_refused() -> None:
    with pytest.raises(UserError, match="no label space 'fer9'"):
        label_space("fer9")
