"""An audit: faces and images that are drawn at random from all labels, and what people say of them, who do not see the labels."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Annotated, Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fer_pipeline.base import storage
from fer_pipeline.base.config import Config, read_record
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.identity import now
from fer_pipeline.labelling.corrections import CANNOT_TELL, IMAGE_ANSWERS, MISSED_FACE, NOT_A_FACE, erasure, is_erased, majority
from fer_pipeline.labelling.estimates import Estimates, Interval, Sample, agreement, estimated, of_images

log = logging.getLogger(__name__)
FLOOR = 10
"""Least faces of a stratum that are drawn, if it has as many."""
IMAGES_SHARE = 0.1
"""Images without a detected face that are drawn, for each face that is drawn; at least `FLOOR`."""
LEAST_ANSWERS = 30
"""With fewer answers there are no intervals."""
SCORE = ".score.json"
CHOSEN = "audit-"
"""How answers say of which audit they are: with its id behind this (`CORRECTIONS.chosen`)."""


class Stratum(Config):
    """Faces of one label, certain or uncertain."""

    expression: str
    uncertain: bool
    population: int = Field(ge=1, le=10**12)
    expected: tuple[float, ...]
    """Mean probabilities of its faces (classes,); even for strata of less than `FLOOR`, so that no face is told by them."""


class Item(Config):
    """A face, or an image without one, that was drawn."""

    stratum: int | None
    """None for an image without a face."""
    content_sha256: str | None
    uri: str
    member: str | None
    time_ms: int | None
    box: tuple[float, float, float, float]
    """x, y, w, h in pixels of the upright image; of an image, all of it."""
    probabilities: tuple[float, ...] = ()
    model_digest: str | None = None


class Audit(Config):
    """`ID.json` in the folder of audits: what was drawn from what. People do not see it."""

    audit_id: Annotated[str, Field(pattern="^[0-9a-f]{8}$")]
    made_at: str
    where: str | None = None
    classes: tuple[str, ...]
    strata: tuple[Stratum, ...]
    images: int = Field(ge=0)
    """Number of images without a detected face."""
    items: tuple[Item, ...]

    @property
    def faces(self) -> int:
        """Number of faces from which it was drawn."""
        return sum(stratum.population for stratum in self.strata)

    @model_validator(mode="after")
    def _require_consistency(self) -> "Audit":
        size, drawn = len(self.classes), Counter(item.stratum for item in self.items)
        if any(stratum.expression not in self.classes or len(stratum.expected) != size for stratum in self.strata):
            raise ValueError("its strata are not those of its classes")
        if any(item.stratum is not None and len(item.probabilities) != size for item in self.items):
            raise ValueError("the probabilities of a face are not those of its classes")
        populations = dict(enumerate(stratum.population for stratum in self.strata)) | {None: self.images}
        if any(count > populations.get(stratum, 0) for stratum, count in drawn.items()):
            raise ValueError("more was drawn from a stratum than it holds")
        return self

    def without(self, erased: Collection[str]) -> "Audit":
        """Return the audit without what was erased (digests, `corrections.erasure`) and, then, without its condition."""
        rest = tuple(item for item in self.items if not is_erased(item.model_dump(include={"content_sha256", "uri"}), erased))
        return self if len(rest) == len(self.items) else self.model_copy(update={"items": rest, "where": None})


class Score(Config):
    """How right labels are, from the answers to an audit. Intervals are of 95 %."""

    audit_id: str
    drawn_at: str
    where: str | None = None
    faces: int
    """Number of faces of which it speaks."""
    drawn: int
    answered: int
    """Drawn faces with an answer that counts."""
    cannot_tell: int
    """Drawn faces of which most people cannot tell what they show; they are left out."""
    in_conflict: int
    """Drawn faces on which as many people say one thing as another; they are left out until one more answers."""
    people: int
    agreement: float | None
    """Cohen's kappa, the mean over pairs of people; 1 is agreement, 0 is chance."""
    answered_by_two: int
    """Faces, over all pairs, about which both of two people answered."""
    estimates: Estimates
    images: int
    """Number of images without a detected face."""
    images_answered: int
    missed: Interval | None
    """Share of these images in which people see a face; None without an answer about one."""
    relabelled: int | None = None
    """Drawn faces that have another label now, or are gone: the figures are of the labels when it was drawn."""
    faces_now: int | None = None
    """Number of faces that the labels hold now."""


class Draw:
    """Draws an audit from rows of faces and images that come part by part."""

    def __init__(self, classes: Sequence[str], count: int, rng: np.random.Generator) -> None:
        self.classes, self.count, self.rng = tuple(classes), count, rng
        self._kept: dict[tuple[str, bool], pa.Table] = {}
        self._sums: dict[tuple[str, bool], NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(classes)))
        self._populations = Counter[tuple[str, bool]]()
        self._empty: pa.Table | None = None
        self._images = 0

    def add_faces(self, faces: pa.Table) -> None:
        """Take faces, rows of `flat_faces`."""
        faces = faces.append_column("lot", pa.array(self.rng.random(len(faces))))
        for label, uncertain in set(zip(faces["expression"].to_pylist(), faces["uncertain"].to_pylist(), strict=True)):
            mine = faces.filter(pc.and_(pc.equal(faces["expression"], label), pc.equal(faces["uncertain"], uncertain)))
            key = str(label), bool(uncertain)
            self._populations[key] += len(mine)
            self._sums[key] += np.array([pc.sum(mine[f"p_{name}"]).as_py() or 0.0 for name in self.classes])
            self._kept[key] = _first_by_lot(self._kept.get(key), mine, self.count)

    def add_images(self, images: pa.Table) -> None:
        """Take images without a face, with `width` and `height`."""
        self._images += len(images)
        images = images.append_column("lot", pa.array(self.rng.random(len(images))))
        self._empty = _first_by_lot(self._empty, images, self.most_images)

    @property
    def most_images(self) -> int:
        return max(FLOOR, round(IMAGES_SHARE * self.count))

    def drawn(self) -> tuple[list[tuple[str, bool]], pa.Table | None, NDArray[np.int64], pa.Table | None]:
        """Return the strata, the drawn faces in random order with their strata (n,), and the drawn images."""
        keys = sorted(self._populations)
        sizes = allocated(np.array([self._populations[key] for key in keys], np.int64), self.count)
        parts = [self._kept[key][:size] for key, size in zip(keys, sizes.tolist(), strict=True)]
        if not parts:
            return [], None, np.zeros(0, np.int64), self._empty
        order = self.rng.permutation(int(sizes.sum()))
        faces = pa.concat_tables(parts, promote_options="permissive").take(pa.array(order))
        return keys, faces, np.repeat(np.arange(len(keys)), sizes)[order], self._empty

    def _expected(self, key: tuple[str, bool]) -> tuple[float, ...]:
        if self._populations[key] < FLOOR:
            return (1 / len(self.classes),) * len(self.classes)
        return tuple((self._sums[key] / self._populations[key]).tolist())

    def audit(self, where: str | None) -> tuple[Audit, pa.Table | None, pa.Table | None]:
        """Return the audit, the rows of its faces and those of its images, in its order."""
        keys, faces, strata, images = self.drawn()
        items = [] if faces is None else _items(faces, strata.tolist(), self.classes)
        items += [] if images is None else _items(images, [None] * len(images), ())
        described = (
            Stratum(
                expression=key[0],
                uncertain=key[1],
                population=self._populations[key],
                expected=self._expected(key),
            )
            for key in keys
        )
        audit = Audit(
            audit_id=uuid4().hex[:8],
            made_at=now(),
            where=where,
            classes=self.classes,
            strata=tuple(described),
            images=self._images,
            items=tuple(items),
        )
        return audit, faces, images


def allocated(populations: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return how many faces of each stratum are drawn: in proportion, but at least `FLOOR` or all of them, `count` in all.

    The largest strata give what the floor takes. More than `count` are drawn where even the floors are more.
    """
    floors = np.minimum(populations, FLOOR)
    share = count * populations / max(1, int(populations.sum()))
    sizes = np.minimum(populations, np.maximum(floors, np.round(share).astype(np.int64)))
    while sizes.sum() > count and (sizes > floors).any():
        sizes[np.argmax(np.where(sizes > floors, sizes, -1))] -= 1
    while sizes.sum() < min(count, populations.sum()):
        sizes[np.argmax(np.where(sizes < populations, populations - sizes, -1))] += 1
    return sizes


def _first_by_lot(kept: pa.Table | None, rows: pa.Table, count: int) -> pa.Table:
    both = rows if kept is None else pa.concat_tables([kept, rows], promote_options="permissive")
    return both.take(pc.sort_indices(both, [("lot", "ascending")])[:count])


def _items(rows: pa.Table, strata: Sequence[int | None], classes: Sequence[str]) -> list[Item]:
    found = []
    for row, stratum in zip(rows.to_pylist(), strata, strict=True):
        box = tuple(row[name] for name in "xywh") if stratum is not None else (0, 0, row["width"], row["height"])
        key = {name: row[name] for name in ("content_sha256", "uri", "member", "time_ms")}
        probabilities = tuple(row[f"p_{name}"] for name in classes)
        found.append(Item(stratum=stratum, box=box, probabilities=probabilities, model_digest=row.get("model_digest"), **key))
    return found


def keep(folder: str, audit: Audit) -> None:
    """Write an audit into the folder of the audits of some labels."""
    storage.write_bytes(storage.join(folder, f"{audit.audit_id}.json"), audit.model_dump_json().encode())


def kept(folder: str, audit_id: str | None) -> Audit:
    """Return an audit, by default the latest. Raise UserError if there is none."""
    names = _names(folder)
    if not names:
        raise UserError("These labels have no audit: draw one by `fer-pipeline review --audit 400`.")
    if audit_id is None:
        return max((read_record(storage.join(folder, name), Audit, "audit") for name in names), key=lambda one: one.made_at)
    if f"{audit_id}.json" not in names:
        known = ", ".join(name.removesuffix(".json") for name in names)
        raise UserError(f"These labels have no audit '{audit_id[:40]}': they have {known}.")
    return read_record(storage.join(folder, f"{audit_id}.json"), Audit, "audit")


def keep_score(folder: str, score: Score) -> None:
    """Write what an audit says beside it, for pages."""
    storage.write_bytes(storage.join(folder, f"{score.audit_id}{SCORE}"), score.model_dump_json(indent=1).encode())


def last_score(folder: str) -> Score | None:
    """Return what the latest audit with a score says; None if there is none."""
    return next(iter(scores(folder)), None)


def scores(folder: str) -> list[Score]:
    """Return what all audits with a score say, the latest first."""
    found = []
    for name in storage.list_names(folder):
        if name.endswith(SCORE):
            try:
                found.append(read_record(storage.join(folder, name), Score, "score of an audit"))
            except UserError as error:
                log.warning("%s Without it no page says how right the labels are.", error)
    return sorted(found, key=lambda one: one.drawn_at, reverse=True)


def _names(folder: str) -> list[str]:
    """Return the names of the files of audits."""
    return [name for name in storage.list_names(folder) if re.fullmatch(r"[0-9a-f]{8}\.json", name)]


def erase(folder: str, uris: Collection[str], contents: Collection[str]) -> set[str]:
    """Delete what audits hold of these files and contents (or erasures), and return the erasure of each.

    An audit that cannot be read is deleted: it may hold them.
    """
    found = set[str]()
    for name in _names(folder):
        place = storage.join(folder, name)
        try:
            audit = read_record(place, Audit, "audit")
        except UserError as error:
            log.warning("The audit is deleted, because it may hold what is erased: %s", error)
            storage.remove(place)
            continue
        keys = [item.model_dump(include={"content_sha256", "uri"}) for item in audit.items]
        gone = {erasure(key) for key in keys if key["uri"] in uris or erasure(key) in contents}
        if gone:
            keep(folder, audit.without(gone))
            storage.remove(storage.join(folder, f"{audit.audit_id}{SCORE}"))  # its condition may name them
            found |= gone
    return found


def scored(audit: Audit, corrections: pa.Table) -> Score:
    """Return what the answers to an audit, among rows of `CORRECTIONS`, say. Raise UserError if they are too few."""
    by_person, labels = _answers(audit, corrections), list(audit.classes)
    of_item: dict[int, Counter[str]] = defaultdict(Counter)
    for given in by_person.values():
        for item, answer in given.items():
            of_item[item][answer] += 1
    said = {item: majority(counts) for item, counts in of_item.items()}
    faces = {item: answer for item, answer in said.items() if audit.items[item].stratum is not None}
    usable = {item: answer for item, answer in faces.items() if answer in labels or answer == NOT_A_FACE}
    drawn = sum(item.stratum is not None for item in audit.items)
    if len(usable) < LEAST_ANSWERS:
        raise UserError(
            f"{len(usable)} of the {drawn} faces of the audit '{audit.audit_id}' have an answer that counts: intervals need at "
            f"least {LEAST_ANSWERS}. Answer more on its page, and add the file by `fer-pipeline correct`."
        )
    chosen = sorted(usable)
    places = {name: index for index, name in enumerate(labels)}
    sample = Sample(
        populations=np.array([one.population for one in audit.strata], np.int64),
        labels=np.array([labels.index(one.expression) for one in audit.strata], np.int64),
        expected=np.array([one.expected for one in audit.strata], np.float64),
        strata=np.array([audit.items[item].stratum for item in chosen], np.int64),
        truths=np.array([places.get(str(usable[item]), len(labels)) for item in chosen], np.int64),
        probabilities=np.array([audit.items[item].probabilities for item in chosen], np.float64),
    )
    of_images_said = [answer for item, answer in said.items() if audit.items[item].stratum is None and answer in IMAGE_ANSWERS]
    missed = of_images_said.count(MISSED_FACE)
    pairs = [agreement(*two) for two in combinations((_of_faces(audit, given) for given in by_person.values()), 2)]
    kappas = [kappa for _, kappa in pairs if kappa is not None]
    return Score(
        audit_id=audit.audit_id,
        drawn_at=audit.made_at,
        where=audit.where,
        faces=audit.faces,
        drawn=drawn,
        answered=len(usable),
        cannot_tell=sum(answer == CANNOT_TELL for answer in faces.values()),
        in_conflict=sum(answer is None for answer in faces.values()),
        people=len(by_person),
        agreement=float(np.mean(kappas)) if kappas else None,
        answered_by_two=sum(count for count, _ in pairs),
        estimates=estimated(sample, labels),
        images=audit.images,
        images_answered=len(of_images_said),
        missed=of_images(audit.images, len(of_images_said), missed) if of_images_said else None,
    )


def _answers(audit: Audit, corrections: pa.Table) -> dict[str, dict[int, str]]:
    """Return the last answer of each person about each item of an audit. Answers on other pages are not blind: none counts."""
    mine = corrections.filter(pc.equal(corrections["chosen"], f"{CHOSEN}{audit.audit_id}")).sort_by("at")
    places: dict[Any, list[int]] = defaultdict(list)
    for number, item in enumerate(audit.items):
        places[place_of(item)].append(number)
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for row in mine.to_pylist():
        for number in places.get(place_of_row(row), ()):
            if (audit.items[number].stratum is None) == (row["answer"] in IMAGE_ANSWERS):
                found[row["by"]][number] = row["answer"]
    return found


def place_of(item: Item) -> tuple[Any, ...]:
    """Return what tells an item from all others: its content, or its file and moment, and its box."""
    return _place(item.content_sha256, item.uri, item.member, item.time_ms, item.box)


def place_of_row(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the same of a face or a correction."""
    box = tuple(row[name] for name in "xywh")
    return _place(row["content_sha256"], row["uri"], row["member"], row["time_ms"], box)


def _place(digest: str | None, uri: str, member: str | None, time_ms: int | None, box: Sequence[float]) -> tuple[Any, ...]:
    corners = tuple(round(float(np.float32(value)), 2) for value in box)
    return (digest, corners) if digest else (uri, member, time_ms, corners)


def _of_faces(audit: Audit, given: Mapping[int, str]) -> dict[int, str]:
    return {item: answer for item, answer in given.items() if audit.items[item].stratum is not None}
