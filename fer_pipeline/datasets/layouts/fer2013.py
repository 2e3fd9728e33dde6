"""FER-2013 as published on Kaggle (`emotion,pixels,Usage`), optionally joined with the votes of FER+."""

from dataclasses import dataclass, replace
from itertools import islice

import cv2
import numpy as np

from fer_pipeline.base.errors import UserError
from fer_pipeline.datasets.layouts.layout import (
    DAMAGED,
    DROPPED,
    MISLABELLED,
    SPLIT_NAMES,
    Excluded,
    Label,
    LayoutSpec,
    Part,
    Reading,
    Sample,
    class_of,
)
from fer_pipeline.datasets.layouts.tables import Row, plan_csv, read_csv, whole_number
from fer_pipeline.models.label_space import FER7, FERPLUS8, NUMBERINGS, LabelSpace, canonical

SIDE_PX = 48
TRAINING = "Training"
"""The usage of rows of a table without that column: the file that Kaggle's competition gave out."""
VOTES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
"""The vote columns of FER+ (Barsoum et al., 2016), ten annotators per image; NF means that the image shows no face."""


@dataclass(frozen=True)
class Fer2013Csv:
    """The label comes from the CSV. With votes and `ferplus8`, it is the class with the most FER+ votes."""

    source: str
    space: LabelSpace
    votes: str | None = None
    """FER+'s `fer2013new.csv`; row n belongs to row n of the CSV."""
    part_bytes: int = 16 * 1024**2

    def plan(self) -> list[Part]:
        parts = plan_csv(self.source, "fer2013-csv", ("emotion", "pixels"), self.part_bytes)
        return self._numbered(parts) if self.votes else parts

    def _numbered(self, parts: list[Part]) -> list[Part]:
        """Set the number of each part's first row. Raise UserError if the two tables describe different images."""
        assert self.votes
        (table,) = plan_csv(self.votes, "fer2013-csv with votes", ("Usage", *VOTES), 1 << 62)
        usages = [row["Usage"] for _, row in read_csv(table)]
        numbered, first = [], 0
        for part in parts:
            numbered.append(replace(part, first_row=first))
            for place, row in read_csv(part):
                if first < len(usages) and _usage(row, usages[first]) != usages[first]:
                    says = f"at {place}, the votes say usage {usages[first]}, but the CSV says {_usage(row, '')}"
                    raise UserError(
                        f"'{self.votes}' does not match '{self.source}': {says}. Use both complete and in original order."
                    )
                first += 1
        if first != len(usages):
            raise UserError(
                f"'{self.votes}' has {len(usages)} rows, '{self.source}' has {first}: use both complete and in original order."
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
                yield Excluded(MISLABELLED, vote_place, "a vote count is not a whole number")
            else:
                yield self._sample(row, place, tuple(float(count or 0) for count in counts))

    def _sample(self, row: Row, place: str, votes: tuple[float, ...] | None) -> Sample | Excluded:
        number, usage = whole_number(row.get("emotion", "")), _usage(row, TRAINING)
        if number is None or number >= len(FER7.classes):
            return Excluded(MISLABELLED, place, f"the label '{row.get('emotion', '')[:20]}' is not one of 0 to 6")
        if usage.lower() not in SPLIT_NAMES:
            return Excluded(MISLABELLED, place, f"the usage '{usage[:20]}' is not one of {', '.join(SPLIT_NAMES)}")
        label = class_of(number, self.space, place, NUMBERINGS["fer7"])
        if votes and self.space == FERPLUS8:
            label = _majority(votes, place)
        if isinstance(label, Excluded):
            return label
        values = [whole_number(value) for value in row.get("pixels", "").split()]
        if len(values) != SIDE_PX**2:
            return Excluded(DAMAGED, place, f"{len(values)} pixels instead of {SIDE_PX**2}")
        if any(value is None or value > 255 for value in values):
            return Excluded(DAMAGED, place, "a pixel is not a number from 0 to 255")
        pixels = np.array(values, np.uint8).reshape(SIDE_PX, SIDE_PX)
        return Sample(cv2.imencode(".png", pixels)[1].tobytes(), label, SPLIT_NAMES[usage.lower()], place, votes)


def _usage(row: Row, default: str) -> str:
    """Return the value of the column `Usage`, whatever its case; `default` if there is none."""
    return next((value for name, value in row.items() if name.lower() == "usage"), default)


def _majority(votes: tuple[float, ...], place: str) -> Label | Excluded:
    """Return the label with the most votes, or an `Excluded` for the row at `place`."""
    most = [name for name, count in zip(VOTES, votes, strict=True) if count == max(votes)]
    if len(most) > 1:
        return Excluded(DROPPED, place, "no majority of votes")
    reason = {"unknown": "most votes for unknown", "NF": "most votes for no face"}.get(most[0])
    return Excluded(DROPPED, place, reason) if reason else Label(canonical(most[0]), most[0])


FER2013_CSV = LayoutSpec(
    name="fer2013-csv",
    help="Kaggle's emotion,pixels and perhaps Usage; --votes joins the votes of FER+",
    open=lambda source, space, options: Fer2013Csv(source, space, options.votes),
    options=("votes",),
    vote_classes=tuple(map(canonical, VOTES)),
    terms="FER-2013 (Goodfellow et al., 2013): research data, not for commercial use.",
)
