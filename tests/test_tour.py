"""The commands of docs/tour.md print what it says."""

from pathlib import Path

import pytest

from tests import tour

pytestmark = [pytest.mark.examples, pytest.mark.timeout(900)]


def test_the_commands_of_the_tour_print_what_it_says(tmp_path: Path) -> None:
    said = [tour.without_varying(block) for block in tour.BLOCK.findall(tour.PAGE.read_text())]
    assert [tour.without_varying(block) for block in tour.outputs(tour.PAGE, tmp_path)] == said, "run python -m tests.tour"
