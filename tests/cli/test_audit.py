"""`review --audit` and `score`: a blind random sample, and what the answers about it say of all labels."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import fer_pipeline as fer
from fer_pipeline.base.errors import UserError
from fer_pipeline.cli import models, readable, report, review
from fer_pipeline.cli import table as upkeep
from fer_pipeline.cli.models import CardConfig
from fer_pipeline.cli.report import ReportConfig
from fer_pipeline.cli.review import CorrectConfig, Review, ReviewConfig, ScoreConfig
from fer_pipeline.cli.table import ForgetConfig, PageConfig
from fer_pipeline.jobs import publish
from fer_pipeline.jobs.publish import PublishConfig
from fer_pipeline.labelling import audits
from fer_pipeline.labelling.audits import Audit


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("crops"), np.random.default_rng(0)
    for number in range(80):
        picture = cv2.GaussianBlur(rng.integers(0, 256, (48, 48), np.uint8), (0, 0), 1 + number % 7)
        cv2.imwrite(str(folder / f"{number}.png"), picture)
    return folder


@pytest.fixture(scope="module")
def labelled_crops(source: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> fer.Run:
    return fer.label(source, tmp_path_factory.mktemp("audited") / "run", detector="none")


@pytest.fixture
def run(labelled_crops: fer.Run, tmp_path: Path) -> fer.Run:
    shutil.copytree(labelled_crops.url, tmp_path / "run")
    return fer.Run(str(tmp_path / "run"))


def index_of(page: Path) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="index">(.*?)</script>', page.read_text(), re.DOTALL)
    assert match
    return dict(json.loads(match[1]))


def drawn(labels: str, source: Path, out: Path, count: int) -> Review:
    return review.review(ReviewConfig(labels=labels, out=str(out), source=str(source), audit=count))


def answers_on(page: Path, by: str, say: Any) -> str:
    """Return what the page saves if a person answers `say(place)` about every tile."""
    columns, lines = index_of(page)["columns"], []
    for place in range(len(columns["x"])):
        facts = {name: columns[name][place] for name in ("content_sha256", "time_ms", *"xywh")}
        facts |= {name: columns[name]["texts"][columns[name]["of"][place]] for name in ("uri", "member", "chosen")}
        answer = say(facts)
        if answer:
            lines.append(json.dumps(facts | {"answer": answer, "by": by, "at": "2026-11-30T09:00:00Z"}))
    return "\n".join(lines)


def corrected(labels: str, text: str, file: Path) -> review.Corrected:
    file.write_text(text)
    return review.correct(CorrectConfig(labels=labels, file=(str(file),)))


@pytest.mark.parametrize("of", ["run", "table"])
def test_a_blind_audit_of_all_faces_says_exactly_how_right_they_are(of: str, run: fer.Run, source: Path, tmp_path: Path) -> None:
    labels = run.url
    if of == "table":
        labels = str(tmp_path / "table")
        publish.run(PublishConfig(run=run.url, table=labels))
    found = drawn(labels, source, tmp_path / "r", 80)
    page = (tmp_path / "r" / "index.html").read_text()
    assert (found.faces, found.images, found.without_picture) == (80, 0, 0) and "Enter</kbd>" not in page
    columns = index_of(tmp_path / "r" / "index.html")["columns"]
    for name in ("expression", "model_digest", "folder"):
        assert columns[name]["texts"] == [None]
    assert not any(any(columns[name]) for name in ("confidence", "quality", "uncertain"))
    said = {face["content_sha256"]: face["expression"] for face in run.faces().to_pylist()}
    right = set(sorted(said)[:50])

    def truth(facts: dict[str, Any]) -> str:
        digest = facts["content_sha256"]
        return said[digest] if digest in right else "not_a_face"

    added = corrected(labels, answers_on(tmp_path / "r" / "index.html", "ann", truth), tmp_path / "c.jsonl")
    assert (added.added, added.without_face) == (80, 0)
    score = review.score(ScoreConfig(labels=labels))
    accuracy = score.estimates.accuracy
    assert (accuracy.low, accuracy.value, accuracy.high) == pytest.approx((50 / 80,) * 3)
    assert score.estimates.false_faces.value == pytest.approx(30 / 80) and score.relabelled == 0
    assert (score.faces, score.drawn, score.answered, score.people, score.agreement) == (80, 80, 80, 1, None)
    if of == "run":
        report.run(ReportConfig(run=labels))
        assert "How right the labels are" in Path(run.report).read_text()
    else:
        upkeep.page(PageConfig(table=labels, out=str(tmp_path / "nights.html")))
        assert "How right the labels are" in (tmp_path / "nights.html").read_text()
    models.card(CardConfig(model="embedded", out=str(tmp_path / "card"), labels=labels))
    assert "| right labels | 62.5% [62.5%, 62.5%] |" in (tmp_path / "card" / "MODEL_CARD.md").read_text()
    assert "How right the labels are" in (tmp_path / "card" / "model_card.html").read_text()
    text = readable.readable("score", json.loads(score.model_dump_json()))
    assert "right labels" in text and "62.5% (62.5% to 62.5%)" in text
    second = corrected(
        labels, answers_on(tmp_path / "r" / "index.html", "bob", lambda facts: "cannot_tell"), tmp_path / "d.jsonl"
    )
    assert second.added == 80
    with pytest.raises(
        UserError, match=r"0 of the 80 faces of the audit '\w+' have an answer that counts: intervals need at least 30"
    ):
        review.score(ScoreConfig(labels=labels))


def test_a_card_has_only_audits_of_its_model(run: fer.Run, source: Path, tmp_path: Path) -> None:
    config = CardConfig(model="embedded", out=str(tmp_path / "card"), labels=run.url)
    with pytest.raises(UserError, match="has no audit with a score of labels of this model: answer one"):
        models.card(config)
    drawn(run.url, source, tmp_path / "r", 40)
    corrected(run.url, answers_on(tmp_path / "r" / "index.html", "ann", lambda facts: "happy"), tmp_path / "c.jsonl")
    review.score(ScoreConfig(labels=run.url))
    models.card(config)
    (file,) = (path for path in (tmp_path / "run/audits").iterdir() if len(path.stem) == 8)
    file.write_text(re.sub(r'"model_digest":"[0-9a-f]{64}"', f'"model_digest":"{"0" * 64}"', file.read_text()))
    with pytest.raises(UserError, match="its audits are of labels of other models"):
        models.card(config)


def test_the_order_is_random_and_answers_of_other_pages_do_not_count(run: fer.Run, source: Path, tmp_path: Path) -> None:
    first, second = (drawn(run.url, source, tmp_path / name, 60) for name in ("one", "two"))
    digests = [index_of(tmp_path / name / "index.html")["columns"]["content_sha256"] for name in ("one", "two")]
    assert digests[0] != digests[1] and first.audit != second.audit
    confidence = {face["content_sha256"]: face["confidence"] for face in run.faces().to_pylist()}
    assert abs(np.corrcoef([confidence[digest] for digest in digests[0]], np.arange(60))[0, 1]) < 0.5
    said = {face["content_sha256"]: face["expression"] for face in run.faces().to_pylist()}
    text = answers_on(tmp_path / "one" / "index.html", "ann", lambda facts: said[facts["content_sha256"]])
    corrected(run.url, text, tmp_path / "c.jsonl")
    corrected(run.url, text.replace(f"audit-{first.audit}", "margin").replace('"ann"', '"bob"'), tmp_path / "d.jsonl")
    score = review.score(ScoreConfig(labels=run.url, audit=first.audit))
    assert (score.people, score.answered) == (1, 60) and score.estimates.accuracy.high == pytest.approx(1)
    assert 0.9 < score.estimates.accuracy.low < 1 and score.estimates.answers_to_halve > 0
    with pytest.raises(UserError, match="0 of the 60 faces"):
        review.score(ScoreConfig(labels=run.url, audit=second.audit))
    with pytest.raises(UserError, match="have no audit 'ffffffff': they have"):
        review.score(ScoreConfig(labels=run.url, audit="ffffffff"))


def test_images_without_a_face_are_audited_for_missed_ones(labelled: fer.Run, archive: Path, tmp_path: Path) -> None:
    run = fer.Run(str(shutil.copytree(labelled.url, tmp_path / "run")))
    with pytest.raises(UserError, match="has 28 such faces: an audit needs at least 30"):
        drawn(run.url, archive, tmp_path / "few", 100)
    assert not (tmp_path / "run" / "audits").exists()


def test_what_is_forgotten_leaves_audits(run: fer.Run, source: Path, tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    publish.run(PublishConfig(run=run.url, table=table))
    found = drawn(table, source, tmp_path / "r", 60)
    file = tmp_path / "table" / "_audits" / f"{found.audit}.json"
    item = Audit.model_validate_json(file.read_text()).items[0]
    (file.parent / f"{found.audit}.score.json").write_text("{}")
    upkeep.forget(ForgetConfig(table=table, content=(str(item.content_sha256),)))
    assert str(item.content_sha256) not in file.read_text() and len(Audit.model_validate_json(file.read_text()).items) == 59
    assert not list(file.parent.glob("*.score.json"))
    (file.parent / ".DS_Store").write_text("x")
    (file.parent / "old.score.json").write_text("{}")
    upkeep.page(PageConfig(table=table, out=str(tmp_path / "nights.html")))
    (file.parent / "folder").mkdir()
    (file.parent / "ffffffff.json").write_text('{"audit_id": "ffffffff", "items": 3}')
    upkeep.forget(ForgetConfig(table=table, content=(str(Audit.model_validate_json(file.read_text()).items[0].content_sha256),)))
    assert len(Audit.model_validate_json(file.read_text()).items) == 58 and not (file.parent / "ffffffff.json").exists()


def test_what_is_forgotten_while_an_audit_is_written_is_not_in_it(
    run: fer.Run, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, write = str(tmp_path / "table"), audits.keep
    publish.run(PublishConfig(run=run.url, table=table))

    def keeping(folder: str, audit: Audit) -> None:
        monkeypatch.setattr(audits, "keep", write)
        upkeep.forget(ForgetConfig(table=table, content=(str(audit.items[0].content_sha256),)))
        write(folder, audit)

    monkeypatch.setattr(audits, "keep", keeping)
    found = drawn(table, source, tmp_path / "r", 60)
    kept = Audit.model_validate_json((tmp_path / "table" / "_audits" / f"{found.audit}.json").read_text())
    assert len(kept.items) == 59


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ["happy"]},
        {"images": -1},
        {"items": [{"stratum": 99, "uri": "x", "content_sha256": None, "member": None, "time_ms": None, "box": [0, 0, 1, 1]}]},
        {"strata": []},
        {"further": 1},
    ],
)
def test_an_audit_that_was_edited_says_so(change: dict[str, Any], run: fer.Run, source: Path, tmp_path: Path) -> None:
    found = drawn(run.url, source, tmp_path / "r", 60)
    file = Path(run.url) / "audits" / f"{found.audit}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match="is not a valid audit"):
        review.score(ScoreConfig(labels=run.url))


def test_impossible_audits_say_what_to_do(run: fer.Run, source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="have no audit: draw one by `fer-pipeline review --audit 400`"):
        review.score(ScoreConfig(labels=run.url))
    both = ReviewConfig(labels=run.url, out=str(tmp_path / "r"), source=str(source), audit=60, pick=20)
    with pytest.raises(UserError, match="leave out --pick and --certain"):
        review.review(both)
