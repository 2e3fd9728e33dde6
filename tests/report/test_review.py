"""The review page, used by keyboard and mouse in a real browser, and what `correct` makes of its answers."""

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
from fer_pipeline.cli import review
from fer_pipeline.cli.review import CorrectConfig, ReviewConfig
from tests.conftest import until
from tests.report.browser import CHROMIUM, CONTROL, SHIFT, Browser, browser
from tests.report.test_pages import AXE


def in_browser(test: Any) -> Any:
    """Mark a test that needs Chromium."""
    without = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: make test-pages installs it")
    return pytest.mark.pages(without(test))


@pytest.fixture(scope="module")
def run(archive: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> fer.Run:
    return fer.label(archive, tmp_path_factory.mktemp("reviewed") / "run", detector="mtcnn")


def index_of(page: Path) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="index">(.*?)</script>', page.read_text(), re.DOTALL)
    assert match
    return dict(json.loads(match[1]))


def test_a_review_holds_the_faces_that_were_asked_for_least_confident_first(run: fer.Run, archive: Path, tmp_path: Path) -> None:
    found = review.review(ReviewConfig(labels=run.url, out=str(tmp_path / "r"), source=str(archive)))
    index, faces = index_of(tmp_path / "r" / "index.html"), run.faces()
    assert found.faces == len(faces) == len(index["columns"]["x"]) and found.without_picture == 0
    assert index["columns"]["confidence"] == sorted(index["columns"]["confidence"])
    sheets = sorted((tmp_path / "r" / "sheets").iterdir())
    assert len(sheets) == -(-len(faces) // 64)
    first = cv2.imread(str(sheets[0]))
    assert first is not None and first.shape == (-(-min(64, len(faces)) // 8) * 96, 768, 3) and first[:96, :96].std() > 5
    some = review.review(
        ReviewConfig(labels=run.url, out=str(tmp_path / "s"), source=str(archive), where="confidence > .5", top=3)
    )
    assert some.faces == 3 and min(index_of(tmp_path / "s" / "index.html")["columns"]["confidence"]) > 0.5
    with pytest.raises(UserError, match="not a new or empty folder"):
        review.review(ReviewConfig(labels=run.url, out=str(tmp_path / "r"), source=str(archive)))
    with pytest.raises(UserError, match="There is no such face in"):
        review.review(ReviewConfig(labels=run.url, out=str(tmp_path / "t"), source=str(archive), where="confidence > 2"))


def test_picks_leave_out_faces_with_an_answer_and_say_how_they_were_chosen(run: fer.Run, archive: Path, tmp_path: Path) -> None:
    shutil.copytree(run.url, tmp_path / "run")
    mine = fer.Run(str(tmp_path / "run"))

    def picks(name: str) -> list[dict[str, Any]]:
        config = ReviewConfig(labels=mine.url, out=str(tmp_path / name), source=str(archive), pick=10)
        assert review.review(config).faces <= 10
        columns = index_of(tmp_path / name / "index.html")["columns"]
        texts = {
            key: [columns[key]["texts"][one] for one in columns[key]["of"]] for key in ("uri", "member", "expression", "chosen")
        }
        plain = {key: columns[key] for key in ("content_sha256", "time_ms", "x", "y", "w", "h")}
        return [dict(zip([*texts, *plain], row, strict=True)) for row in zip(*texts.values(), *plain.values(), strict=True)]

    first = picks("one")
    assert [one["chosen"] for one in first].count("random") == 1
    lines = [one | {"answer": one.pop("expression"), "by": "ann", "at": "2026-11-30T09:00:00Z"} for one in first]
    (tmp_path / "c.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    assert review.correct(CorrectConfig(labels=mine.url, file=(str(tmp_path / "c.jsonl"),))).added == len(first)
    assert mine.corrections()["chosen"].to_pylist().count("random") == 1
    before = {(one["content_sha256"], one["x"]) for one in first}
    assert not before & {(one["content_sha256"], one["x"]) for one in picks("two")}


def test_faces_that_cannot_be_cut_are_grey_and_counted(run: fer.Run, tmp_path: Path) -> None:
    found = review.review(ReviewConfig(labels=run.url, out=str(tmp_path / "r"), source=str(tmp_path)))
    assert found.without_picture == found.faces > 0
    sheet = cv2.imread(str(tmp_path / "r" / "sheets" / "00000.jpg"))
    assert sheet is not None and np.ptp(sheet) < 3


def answered(tab: Browser) -> int:
    return int(tab.run("count - open"))


def saved(tab: Browser, folder: Path, name: str) -> Path:
    file = folder / f"corrections-{name}.jsonl"
    file.unlink(missing_ok=True)
    tab.click("#save")
    until(file.exists, "the download")
    return file


@in_browser
def test_two_people_answer_by_keyboard_and_mouse_and_go_on_after_a_reload(run: fer.Run, archive: Path, tmp_path: Path) -> None:
    review.review(ReviewConfig(labels=run.url, out=str(tmp_path / "r"), source=str(archive)))
    page = tmp_path / "r" / "index.html"
    classes, files = list(run.classes), []
    with browser(tmp_path) as tab:
        tab.open(page)
        tab.click("#save")
        assert "Enter a pseudonym" in tab.run("said.textContent")
        tab.click("#by")
        tab.type("ann")
        tab.click("#face-0")
        tab.press("Enter")  # the label is right
        tab.press(str(classes.index("disgust") + 1))
        tab.press("x")
        assert answered(tab) == 3 and tab.run("current") == 3
        tab.press("c")
        tab.press("u")
        assert answered(tab) == 3 and tab.run("current") == 3
        tab.press("ArrowRight", SHIFT)
        tab.press("ArrowRight", SHIFT)
        assert tab.run("[...selected]") == [3, 4, 5]
        tab.click("[data-answer='sad']")
        tab.click("#face-7", CONTROL)
        tab.click("#face-9", CONTROL)
        assert tab.run("[...selected].sort()") == [5, 7, 9]  # the face where it was, and those that were added
        tab.press("Escape")
        assert answered(tab) == 6
        tab.open(page)  # again
        assert answered(tab) == 6 and tab.run("by.value") == "ann" and "Going on" in tab.run("said.textContent")
        assert "answered not a face" in tab.run("document.getElementById('face-2').getAttribute('aria-label')")
        files.append(saved(tab, tmp_path, "ann"))
        assert tab.errors == []
    with browser(tmp_path / "bob") as tab:
        tab.open(page, width=420, scheme="dark")
        assert answered(tab) == 0
        tab.click("#by")
        tab.type("bob")
        tab.click("#face-1")
        tab.press(str(classes.index("happy") + 1))
        files.append(saved(tab, tmp_path / "bob", "bob"))
        assert tab.errors == []
    lines = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert [one["answer"] for one in lines] == [lines[0]["seen"], "disgust", "not_a_face", "sad", "sad", "sad"]
    found = review.correct(CorrectConfig(labels=run.url, file=tuple(map(str, files))))
    assert (found.added, found.refused, found.without_face, found.in_conflict) == (7, 0, 0, 1)
    reviewed = run.faces(where="reviewers > 0")
    assert found.reviewed == len(reviewed) >= 6 and "not_a_face" in reviewed["expression_reviewed"].to_pylist()
    assert set(run.corrections()["model_digest"].to_pylist()) == {run.record.model.digest}


@in_browser
@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (420, "dark")])
def test_the_page_can_be_read_and_used_by_everybody(width: int, scheme: str, run: fer.Run, archive: Path, tmp_path: Path) -> None:
    review.review(ReviewConfig(labels=run.url, out=str(tmp_path / "r"), source=str(archive)))
    with browser(tmp_path) as tab:
        tab.open(tmp_path / "r" / "index.html", width=width, scheme=scheme)
        tab.click("#face-1")
        tab.press("c")
        tab.press("ArrowRight", SHIFT)
        tab.run(AXE.read_text())
        found = tab.run(
            "axe.run(document).then(({violations}) => violations.map((one) => [one.id, one.nodes.length, one.nodes[0].html]))"
        )
        assert found == [] and tab.run("document.documentElement.scrollWidth - innerWidth") <= 0
        tab.run("list.focus()")
        tab.press("End")
        last = tab.run("shown.length - 1")
        active = tab.run("document.getElementById(list.getAttribute('aria-activedescendant')).getAttribute('aria-posinset')")
        assert tab.run("current") == last and int(active) == last + 1
        for order in ("confidence", "quality", "expression", "folder"):
            tab.run(f"$('order').value = '{order}'; $('order').dispatchEvent(new Event('change'))")
            assert tab.run("new Set(shown).size") == last + 1
        tab.run("$('label').value = text('expression', 0); $('label').dispatchEvent(new Event('change'))")
        assert 0 < tab.run("shown.length") <= last + 1
        tab.picture(tmp_path / "page.png")
        pixels = cv2.imread(str(tmp_path / "page.png"))
        assert pixels is not None and pixels.std() > 5 and tab.errors == []


@in_browser
def test_answers_go_on_from_a_file_in_another_browser(run: fer.Run, archive: Path, tmp_path: Path) -> None:
    """Of a file of several people, those of another one, and broken lines, are left out."""
    review.review(ReviewConfig(labels=run.url, out=str(tmp_path / "r"), source=str(archive)))
    page = tmp_path / "r" / "index.html"
    with browser(tmp_path / "one") as tab:
        tab.open(page)
        tab.click("#by")
        tab.type("ann")
        tab.click("#face-4")
        for _ in range(3):
            tab.press("c")
        text = saved(tab, tmp_path / "one", "ann").read_text()
    mixed = text + text.replace('"ann"', '"bob"') + "{\n"
    with browser(tmp_path / "two") as tab:
        tab.open(page)
        tab.run(f"load(new Blob([{json.dumps(mixed)}]))")
        assert answered(tab) == 3 and "4 lines left out" in tab.run("said.textContent")
        assert saved(tab, tmp_path / "two", "ann").read_text() == text


@in_browser
def test_no_answer_is_lost_or_given_unseen(run: fer.Run, archive: Path, tmp_path: Path) -> None:
    """Two people at one browser, two tabs, a browser that keeps nothing, faces out of sight, and faces that are no neighbours."""
    review.review(ReviewConfig(labels=run.url, out=str(tmp_path / "r"), source=str(archive)))
    page = tmp_path / "r" / "index.html"

    def become(tab: Browser, name: str) -> None:
        tab.run(f"by.value = '{name}'; by.dispatchEvent(new Event('change'))")

    with browser(tmp_path) as tab:
        tab.open(page)
        tab.click("#face-0")
        tab.press("c")
        become(tab, "ann")  # who goes on with what was answered before
        tab.click("#face-1")
        tab.press("c")
        assert answered(tab) == 2
        become(tab, "bob")
        assert answered(tab) == 0
        tab.click("#face-5")
        tab.press("c")
        become(tab, "ann")
        assert answered(tab) == 2
        with tab.another(page) as other:
            assert answered(other) == 2
            other.click("#face-3")
            other.press("c")
            until(lambda: answered(tab) == 3, "news of the other tab")
        tab.click("#face-4")
        tab.press("c")
        tab.press("u")  # what is undone stays undone
        tab.open(page)
        assert answered(tab) == 3 and tab.run("by.value") == "ann"
        tab.click("#face-2")
        tab.press(" ")
        tab.press("ArrowRight")
        tab.press("ArrowRight")
        tab.press(" ")
        assert tab.run("[...selected].sort()") == [2, 4]
        tab.press("Escape")
        tab.call("Emulation.setDeviceMetricsOverride", width=420, height=500, deviceScaleFactor=1, mobile=False)
        until(lambda: tab.run("columnCount") < 5, "another layout")
        seen = "(() => { const r = document.getElementById('face-' + current).getBoundingClientRect();"
        seen += " const l = list.getBoundingClientRect(); return r.bottom > l.top && r.top < l.bottom; })()"
        until(lambda: tab.run(seen), "the current face")
        tab.run("list.scrollTop = 1e6")
        until(lambda: tab.run("current > 0") and tab.run(seen), "the current face")
        tab.run("$('order').value = 'folder'; $('order').dispatchEvent(new Event('change'))")
        assert tab.run(seen)
        tab.run("Storage.prototype.setItem = () => { throw new Error('full'); }; list.focus()")
        tab.press("c")
        assert "cannot keep more answers" in tab.run("said.textContent") and tab.errors == []


@in_browser
def test_an_audit_is_answered_on_two_pages_that_do_not_tell_the_labels(run: fer.Run, archive: Path, tmp_path: Path) -> None:
    shutil.copytree(archive, tmp_path / "photos" / "one")
    shutil.copytree(archive, tmp_path / "photos" / "two")
    twice = fer.label(tmp_path / "photos", tmp_path / "run", detector="mtcnn", reuse_faces=run.url)
    found = review.review(ReviewConfig(labels=twice.url, out=str(tmp_path / "r"), source=str(tmp_path / "photos"), audit=40))
    assert found.faces == 40 and found.images == 10
    files = []
    with browser(tmp_path) as tab:
        tab.open(tmp_path / "r" / "index.html")
        assert not any(name in tab.run("list.innerText") for name in twice.classes)
        tab.run("by.value = 'ann'; by.dispatchEvent(new Event('change'))")
        tab.click("#face-0")
        tab.press("Enter")
        assert answered(tab) == 0, "there is no label to confirm"
        for _ in range(40):
            tab.press("4")
        files.append(saved(tab, tmp_path, "ann"))
        tab.run("document.querySelector('a[href=\"images.html\"]').click()")
        until(lambda: tab.run("document.readyState === 'complete' && Boolean(document.querySelector('[data-answer=no_face]'))"))
        tab.open(tmp_path / "r" / "images.html")
        tab.run("by.value = 'ann'; by.dispatchEvent(new Event('change'))")
        tab.click("#face-0")
        for key in "mnnnnnnnnn":
            tab.press(key)
        files.append(saved(tab, tmp_path, "of-images-ann"))
        assert tab.errors == []
        for page in ("index.html", "images.html"):
            tab.open(tmp_path / "r" / page, width=420, scheme="dark")
            tab.run(AXE.read_text())
            assert tab.run("axe.run().then((found) => found.violations.map((one) => one.id))") == []
    added = review.correct(CorrectConfig(labels=twice.url, file=tuple(map(str, files))))
    assert (added.added, added.without_face, added.refused) == (50, 0, 0)
    score = review.score(review.ScoreConfig(labels=twice.url))
    assert score.missed and score.missed.low < 0.1 < score.missed.high and score.images_answered == 10 <= score.images
    assert score.answered == 40 and score.estimates.shares["happy"].value > 0.9
