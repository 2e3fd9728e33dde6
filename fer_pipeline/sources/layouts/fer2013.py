"""FER-2013 as Kaggle gave it out (`emotion,pixels,Usage`), with the votes of FER+ joined to it where its table is given."""

from dataclasses import dataclass, replace
from itertools import islice

import cv2
import numpy as np

from fer_pipeline.core.errors import UserError
from fer_pipeline.core.labels import FER7, FERPLUS8, LabelSpace, canonical
from fer_pipeline.sources.layouts.layout import (
    DAMAGED,
    DROPPED,
    MISLABELLED,
    SPLIT_NAMES,
    Excluded,
    LayoutSpec,
    Part,
    Reading,
    Sample,
    class_of,
)
from fer_pipeline.sources.layouts.tables import Row, plan_csv, read_csv, whole_number

SIDE = 48
FER2013_COLUMNS = ("emotion", "pixels", "Usage")
USAGES = ("Training", "PublicTest", "PrivateTest")
VOTES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
"""The vote columns of FER+ (Barsoum et al., 2016): ten annotators an image; NF says that it shows no face."""
VOTE_CLASSES = tuple(map(canonical, VOTES))


@dataclass(frozen=True)
class Fer2013Csv:
    """Labels are those of the CSV, or, in the label space `ferplus8` with votes, what most annotators of FER+ said."""

    source: str
    space: LabelSpace
    votes: str | None = None
    """FER+'s `fer2013new.csv`; its rows belong to the CSV's, in order."""
    part_bytes: int = 16 * 1024**2

    def plan(self) -> list[Part]:
        parts = plan_csv(self.source, "fer2013-csv", FER2013_COLUMNS, self.part_bytes)
        return self._with_rows(parts) if self.votes else parts

    def _with_rows(self, parts: list[Part]) -> list[Part]:
        """Give each stretch the number of its first row, and check that both tables are of the same images."""
        assert self.votes
        (table,) = plan_csv(self.votes, "fer2013-csv with votes", ("Usage", *VOTES), 1 << 62)
        usages = [row["Usage"] for _, row in read_csv(table)]
        numbered, first = [], 0
        for part in parts:
            numbered.append(replace(part, first_row=first))
            for place, row in read_csv(part):
                if first < len(usages) and row.get("Usage", usages[first]) != usages[first]:
                    raise UserError(
                        f"'{self.votes}' does not belong to '{self.source}': at {place} the one says {usages[first]}, the other "
                        f"{row['Usage']}; give both tables whole and in their first order."
                    )
                first += 1
        if first != len(usages):
            raise UserError(
                f"'{self.votes}' has {len(usages)} rows, '{self.source}' {first}: give both whole and in their first order."
            )
        return numbered

    def read(self, part: Part) -> Reading:
        if not self.votes:
            yield from (self._sample(row, place, None) for place, row in read_csv(part))
            return
        (table,) = plan_csv(self.votes, "fer2013-csv with votes", ("Usage", *VOTES), 1 << 62)
        votes = islice(read_csv(table), part.first_row, None)
        for (place, row), (vote_place, cast) in zip(read_csv(part), votes, strict=False):
            counts = [whole_number(cast.get(name, "")) for name in VOTES]
            if None in counts:
                yield Excluded(MISLABELLED, vote_place, "a number of votes is not a whole number")
            else:
                yield self._sample(row, place, tuple(float(count or 0) for count in counts))

    def _sample(self, row: Row, place: str, votes: tuple[float, ...] | None) -> Sample | Excluded:
        label, usage = whole_number(row.get("emotion", "")), row.get("Usage", "")
        if label is None or label >= len(FER7.classes):
            return Excluded(MISLABELLED, place, f"the label '{row.get('emotion', '')[:20]}' is not one of 0 to 6")
        if usage not in USAGES:
            return Excluded(MISLABELLED, place, f"the usage '{usage[:20]}' is none of {', '.join(USAGES)}")
        name = _majority(votes, place) if votes and self.space == FERPLUS8 else class_of(FER7.classes[label], self.space, place)
        if isinstance(name, Excluded):
            return name
        values = [whole_number(value) for value in row.get("pixels", "").split()]
        if len(values) != SIDE**2:
            return Excluded(DAMAGED, place, f"{len(values)} pixels instead of {SIDE**2}")
        if any(value is None or value > 255 for value in values):
            return Excluded(DAMAGED, place, "a pixel is not a number from 0 to 255")
        pixels = np.array(values, np.uint8).reshape(SIDE, SIDE)
        return Sample(cv2.imencode(".png", pixels)[1].tobytes(), name, SPLIT_NAMES[usage.lower()], place, votes)


def _majority(votes: tuple[float, ...], place: str) -> str | Excluded:
    """Return the class with most votes; or why the row at `place` has none."""
    most = [name for name, count in zip(VOTES, votes, strict=True) if count == max(votes)]
    if len(most) > 1:
        return Excluded(DROPPED, place, "no majority of votes")
    none = {"unknown": "most votes for unknown", "NF": "most votes for no face"}.get(most[0])
    return Excluded(DROPPED, place, none) if none else canonical(most[0])


FER2013_CSV = LayoutSpec(
    name="fer2013-csv",
    help="Kaggle's emotion,pixels,Usage; --votes joins the votes of FER+",
    open=lambda source, space, options: Fer2013Csv(source, space, options.votes),
    options=("votes",),
    vote_classes=VOTE_CLASSES,
    terms="FER-2013 (Goodfellow et al., 2013): research data, not for commercial use.",
)
