"""Names that could break a page, a Markdown card or a figure are shown as plain text."""

import numpy as np
import pytest

from fer_pipeline.models.bundle import EMBEDDED, read_bundle
from fer_pipeline.models.card import ModelCard, ModelMetrics
from fer_pipeline.models.evaluation import Predictions, evaluate
from fer_pipeline.models.figures import SplitFigures
from fer_pipeline.models.label_space import LabelSpace
from fer_pipeline.report.card import card_markdown, card_page

NAMES = ("<img src=x onerror=alert(1)>", "[x](javascript:alert(2))", "$\\frac{$", "a|b", "`code`", "**bold**", "neutral")


def hostile() -> ModelCard:
    card, space = read_bundle(EMBEDDED).card, LabelSpace(name="<b>", classes=NAMES)
    rng = np.random.default_rng(0)
    ids, logits = np.array([str(n) for n in range(200)], object), rng.normal(size=(200, 7)).astype(np.float32)
    predictions = Predictions(ids, logits, rng.integers(0, 7, 200), np.zeros((200, 0), np.float32))
    figures = SplitFigures(
        **dict(evaluate(predictions, space, card.calibration)),
        split="<u>",
        selected_on_this_split=True,
        views=1,
        precision="fp32",
    )
    facts = {"name": "<script>alert(3)</script>\n# title", "label_space": space, "metrics": ModelMetrics(validation=figures)}
    return card.model_copy(update=facts | {"intended_use": "<script>alert(5)</script>", "limits": ("<svg onload=alert(7)>",)})


def test_a_page_escapes_what_it_quotes_and_forbids_scripts() -> None:
    page = card_page(hostile(), "0" * 64)
    assert "<script" not in page and "<img src=x" not in page and "<svg onload" not in page
    assert "&lt;script&gt;alert(3)" in page and "Content-Security-Policy" in page


def test_a_markdown_card_escapes_what_it_quotes() -> None:
    text = card_markdown(hostile(), "0" * 64)
    assert "<script" not in text.replace("\\<script", "") and "\\<img src=x" in text
    assert "[x](javascript" not in text.replace("\\[x\\](javascript", "")
    assert "\n# title" not in text and "a\\|b" in text


def test_lists_and_tables_of_a_recipe_are_text_too_and_an_odd_history_costs_its_curves_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = {"training": {"augmentation": ["<img src=x>", "[x](javascript:alert(1))"], "loss": {"<b>": "<i>"}}, "seed": 7}
    card = hostile().model_copy(update={"recipe": recipe})
    text = card_markdown(card, "0" * 64)
    assert not any(tag in text.replace(f"\\{tag}", "") for tag in ("<img", "<b>", "<i>", "[x]"))
    selected = card.model_copy(update={"metrics": card.metrics.model_copy(update={"selected_epoch": 3})})
    for history in (b"[", b"7", b'{"a": 1}', b'[{"epoch": "<b>"}]', b"[" * 100_000):
        assert "training curves" not in card_page(selected, "0" * 64, history)
    assert caplog.text.count("cannot be drawn") == 5
