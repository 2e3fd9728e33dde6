"""Label spaces: which apparent expressions a dataset or a model distinguishes, in which order."""

from fer_pipeline.core.config import Config
from fer_pipeline.core.errors import UserError


class LabelSpace(Config):
    """A named, ordered set of apparent expressions; a label is an index into `classes`."""

    name: str
    classes: tuple[str, ...]


FER7 = LabelSpace(name="fer7", classes=("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"))
"""The seven classes of FER-2013 in the order of its `emotion` column (Goodfellow et al., 2013)."""

AFFECTNET8 = LabelSpace(
    name="affectnet8",
    classes=("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry", "contempt"),
)
"""The eight classes of AffectNet in the order of its `expression` column (Mollahosseini et al., 2017)."""

LABEL_SPACES = {space.name: space for space in (FER7, AFFECTNET8)}


def label_space(name: str) -> LabelSpace:
    """Return the label space called `name`; raise UserError where there is none."""
    if name not in LABEL_SPACES:
        raise UserError(f"There is no label space '{name}'; choose one of {', '.join(LABEL_SPACES)}.")
    return LABEL_SPACES[name]
