"""Every page that the project writes, opened in a browser: headless Chromium (`make test-pages` installs it)."""

import json
import re
import subprocess
from html import unescape
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fer_pipeline.base.errors import HeldError, RecordError
from fer_pipeline.base.identity import Identity
from fer_pipeline.cli import models, report
from fer_pipeline.cli import table as upkeep
from fer_pipeline.cli.models import CardConfig
from fer_pipeline.cli.report import ReportConfig
from fer_pipeline.faces.pixels import Pixels
from fer_pipeline.jobs import publish
from fer_pipeline.jobs.label import job as label
from fer_pipeline.jobs.label.config import LabelConfig
from fer_pipeline.jobs.publish import PublishConfig
from fer_pipeline.labelling.copies import copies_among
from fer_pipeline.models.bundle import EMBEDDED, read_bundle
from fer_pipeline.models.evaluation import Predictions, evaluate
from fer_pipeline.models.figures import EvaluatedData, EvaluatedModel, Evaluation
from fer_pipeline.models.label_space import FER7
from fer_pipeline.report.copies import copies_page, to_show
from fer_pipeline.report.evaluation import evaluation_page
from fer_pipeline.report.page import jpeg_url
from tests.labelling.test_copies import images, row
from tests.report.browser import CHROMIUM, FLAGS, QUIET
from tests.table.runs import finished_run, record_of

WIDTHS = (1100, 420)
POLICY = "default-src 'none'"
"""Start of every page's Content-Security-Policy."""
LOOK = """<script>
addEventListener("load", async () => {
  const images = [...document.images], root = document.documentElement, found = document.createElement("pre");
  found.id = "found";
  const facts = {
    images: images.length,
    broken: images.filter(image => !image.complete || !image.naturalWidth).length,
    overflow: root.scrollWidth - root.clientWidth,
    text: document.body.innerText,
  };
  const {violations} = await axe.run(document);
  facts.violations = violations.map(one => `${one.id}: ${one.help}: ${one.nodes.map(node => node.html).slice(0, 3).join(" ")}`);
  found.textContent = JSON.stringify(facts);
  document.body.append(found);
});
</script>"""
AXE = files("axe_core_python") / "axe.min.js"
"""Checks the accessibility of a page (https://github.com/dequelabs/axe-core)."""
SCHEMES = {"light": "--blink-settings=preferredColorScheme=1", "dark": "--blink-settings=preferredColorScheme=0"}

pytestmark = [
    pytest.mark.pages,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: make test-pages installs it"),
]


def opened(page: Path, width: int, scheme: str, fragment: str = "") -> dict[str, Any]:
    """Return text, images, overflow (in px) and axe violations of a page in a browser window of that width."""
    looked = page.with_name(f"looked-{page.name}")
    assert POLICY in page.read_text(), "the page may run scripts"
    text = page.read_text().replace(POLICY, f"{POLICY}; script-src 'unsafe-inline'")  # only for the scripts of this test
    looked.write_text(f"{text}<script>{AXE.read_text()}</script>{LOOK}")
    profile, picture = page.parent / f"profile-{width}-{scheme}", page.parent / f"page-{width}-{scheme}.png"
    command = [str(CHROMIUM), *FLAGS.split(), *QUIET.split(), f"--user-data-dir={profile}", f"--window-size={width},1400"]
    command += [SCHEMES[scheme], "--virtual-time-budget=10000"]
    url = f"file://{looked}{fragment}"
    done = subprocess.run([*command, "--dump-dom", url], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    match = re.search(r'<pre id="found">(.*)</pre>', done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    shot = [f"--screenshot={picture}", f"file://{page}{fragment}"]
    subprocess.run([*command, *shot], capture_output=True, timeout=120, check=True)
    pixels = cv2.imread(str(picture))
    assert pixels is not None and pixels.std() > 5, "the page is blank"
    assert (np.median(pixels) < 100) == (scheme == "dark"), f"the page is not {scheme}"
    found: dict[str, Any] = json.loads(unescape(match[1]))
    assert found["violations"] == []
    return found


def require_sound(page: Path, images: int, *words: str) -> None:
    for width, scheme in product(WIDTHS, SCHEMES):
        found = opened(page, width, scheme)
        assert (found["images"], found["broken"]) == (images, 0)
        assert found["overflow"] <= 0, f"{found['overflow']} px too wide for {width}"
        text = " ".join(found["text"].split())
        assert all(word in text for word in words), text
        assert "None" not in text.replace("None:", "") and "nan" not in text.split() and "{{" not in text


def test_the_page_of_an_evaluation(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 400)
    logits = (np.eye(7)[labels] * 2 + rng.normal(0, 1.5, (400, 7))).astype(np.float32)
    votes = np.eye(10, dtype=np.float32)[rng.integers(0, 10, 400)]
    names = ("neutral", "happy", "surprise", "sad", "angry", "disgust", "fear", "contempt", "unknown", "NF")
    seen = rng.random(400) < 0.1
    card, ids = read_bundle(EMBEDDED).card, np.array([str(number) for number in range(400)], object)
    predictions = Predictions(ids, logits, labels, votes)
    figures = evaluate(predictions, FER7, card.calibration, names)
    evaluation = Evaluation(
        model=EvaluatedModel(name=card.name, digest="0" * 64, format=card.format),
        data=EvaluatedData(
            layout="image-folder",
            digest="1" * 64,
            split="validation",
            left_out_by_class={"contempt": 1234},
            framed_as_the_model=False,
            training_split="train",
            exact_copies_of_training_images=int(seen.sum()),
            near_copies_of_training_images=0,
        ),
        selected_on_this_split=True,
        views=1,
        precision="fp32",
        version="0",
        evaluated_at="2026-01-01T00:00:00+00:00",
        all=figures,
        without_training_images=evaluate(predictions[~seen], FER7, card.calibration, names),
    )
    (tmp_path / "evaluation.html").write_text(evaluation_page(evaluation, card))
    accuracy = f"{figures.accuracy:.1%}"
    words = (
        "on these images, so the figures are optimistic",
        "1,234 contempt",
        "framed differently",
        "annotators",
        accuracy,
        "AI Act",
    )
    require_sound(tmp_path / "evaluation.html", 3, accuracy, *words)


def test_the_card_of_the_embedded_model(tmp_path: Path) -> None:
    models.card(CardConfig(model=EMBEDDED, out=str(tmp_path)))
    require_sound(tmp_path / "model_card.html", 4, "not be used for", "work or in education", "research data", "fer2013-small")


def test_the_page_of_a_labelling_run(tmp_path: Path, local_ray: None) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        path = tmp_path / "archive" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), cv2.GaussianBlur(rng.integers(0, 256, (96, 96, 3), np.uint8), (15, 15), 0))
    run = tmp_path / "run"
    label.run(LabelConfig(source=str(tmp_path / "archive"), out=str(run), detector="none", precision="fp32"))
    require_sound(run / "report.html", 3, "Apparent expressions", "3 images", "AI Act")
    assert "Open the file" not in opened(run / "report.html", 1100, "light")["text"]
    enlarged = opened(run / "report.html", 1100, "light", "#face-2")["text"]
    assert "Open the file" in enlarged and ".png" in enlarged, "the enlarged face does not show its file"
    report.run(ReportConfig(run=str(run), prior="em", source=str(tmp_path / "archive")))
    require_sound(run / "report.html", 3, "own class prior", "Saerens", "disgust")


def test_the_page_of_a_run_with_videos(tmp_path: Path, local_ray: None, hopper: Pixels) -> None:
    (tmp_path / "clips").mkdir()
    writer = cv2.VideoWriter(str(tmp_path / "clips" / "a.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 2, hopper.shape[1::-1])
    for number in range(8):
        writer.write(hopper if number > 3 else np.zeros_like(hopper))
    writer.release()
    label.run(LabelConfig(source=str(tmp_path / "clips"), out=str(tmp_path / "run"), detector="mtcnn", fps=2))
    require_sound(tmp_path / "run" / "report.html", 4, "stay in view longest", "0:00:02.0 0:00:04.0", "in view")


def test_the_page_of_copies(tmp_path: Path, hopper: Pixels) -> None:
    rows = [
        row("a.jpg", hopper),
        *(row(f"b{number}.jpg", hopper, "a.jpg") for number in range(20)),
        row("c.jpg", hopper[:, ::-1]),
    ]
    found = copies_among(images(rows))
    shown = to_show(found)
    pictures = [jpeg_url(hopper) if number % 3 else RecordError("gone", "it is gone") for number in range(len(shown))]
    (tmp_path / "copies.html").write_text(copies_page("/runs/x", found, shown, pictures))
    require_sound(tmp_path / "copies.html", 8, "22 images, like a.jpg", "and 10 more", "mirrored", "exact")


def test_the_pages_of_a_night(tmp_path: Path, local_ray: None) -> None:
    table, mix = str(tmp_path / "table"), {"happy": 4_000, "sad": 1_000}
    for number in range(4):
        other = Identity(name="other", digest="m2", version="2", alias="production")
        options = {"model": other} if number == 3 else {}
        finished_run(str(tmp_path / f"run-{number}"), [record_of(f"/source/{number}.jpg")], expressions=mix, **options)  # type: ignore[arg-type]
        publish.run(PublishConfig(run=str(tmp_path / f"run-{number}"), table=table))
    finished_run(str(tmp_path / "run"), [record_of("/source/5.jpg")], expressions={"happy": 1_000, "sad": 4_000}, model=other)
    with pytest.raises(HeldError):
        publish.run(PublishConfig(run=str(tmp_path / "run"), table=table))
    require_sound(tmp_path / "run" / "audit.html", 0, "Held", "divergence of the mix", "--accept expressions")
    upkeep.page(upkeep.PageConfig(table=table, out=str(tmp_path / "nights.html")))
    require_sound(tmp_path / "nights.html", 3, "Last night is held", "other@2", "new", "4 rows in the table", "AI Act")
