from pathlib import Path

import pytest

from fer_pipeline.base.errors import UserError
from fer_pipeline.models.framing import FER2013_FRAMING, LANDMARKS, load_framing


def test_a_framing_is_named_or_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "wide.toml").write_text('cut = "box"\nbox_scale = 1.6\n')
    assert load_framing("fer2013") == FER2013_FRAMING and len(FER2013_FRAMING.landmarks) == len(LANDMARKS)
    wide = load_framing(str(tmp_path / "wide.toml"))
    assert (wide.cut, wide.box_scale, wide.landmarks) == ("box", 1.6, FER2013_FRAMING.landmarks)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("box_size = 2", "unknown key 'box_size'"),
        ('cut = "circle"', "cut: Input should be"),
        ("landmarks = [[0.3, 0.4]]", "landmarks: "),
        ("box_scale = -1", "box_scale: "),
        ("cut = ", "There is no framing"),
    ],
)
def test_a_faulty_framing_is_refused_in_one_sentence(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "faulty.toml").write_text(text)
    with pytest.raises(UserError, match=complaint):
        load_framing(str(tmp_path / "faulty.toml"))


def test_an_unknown_framing_names_those_there_are() -> None:
    with pytest.raises(UserError, match="There is no framing 'tight': use fer2013, a"):
        load_framing("tight")
