"""The pictures of the documents, from small real runs (make pictures): python -m tests.report.pictures FOLDER

A run over photos in the public domain, two nights of a table over them, and the card of the embedded model.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fer_pipeline.base.errors import HeldError
from fer_pipeline.cli import models, sample_archive
from fer_pipeline.cli.models import CardConfig
from fer_pipeline.cli.sample_archive import SampleArchiveConfig
from fer_pipeline.jobs import nightly
from fer_pipeline.jobs.nightly import NightlyConfig
from fer_pipeline.models.bundle import EMBEDDED

SIZES = {"report": (1000, 1400), "nights": (1100, 1100), "audit": (1000, 760), "card": (1000, 1500)}
"""Width and height of each picture in pixels."""


def shoot(page: Path, picture: Path, width: int, height: int) -> None:
    """Write a screenshot of a page."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},{height}"]
    subprocess.run(["chromium", *flags, f"--screenshot={picture}", f"file://{page}"], check=True, capture_output=True)


def main(pictures: Path) -> None:
    pictures.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="media-"))
    sample_archive.run(SampleArchiveConfig(dest=str(work / "photos")))
    for date in ("2026-11-19", "2026-11-20"):
        paths = {"source": "photos", "table": "table", "out": "runs/{date}", "page": "nights.html"}
        night = NightlyConfig.model_validate({name: str(work / path) for name, path in paths.items()} | {"date": date})
        try:
            nightly.run(night)
        except HeldError as held:
            print(held)
        for photo in sorted((work / "photos").rglob("*.jpg"))[:4]:
            shutil.copy(photo, photo.with_stem(f"{photo.stem}-again"))
    models.card(CardConfig(model=EMBEDDED, out=str(work / "card")))
    last = work / "runs" / "2026-11-20"
    pages = {
        "report": work / "runs" / "2026-11-19" / "report.html",
        "nights": work / "nights.html",
        "audit": last / "audit.html",
        "card": next((work / "card").glob("*.html")),
    }
    for name, page in pages.items():
        page.write_text(page.read_text().replace(f"{work}/", ""))  # where these runs happened to be
        shoot(page, (pictures / f"{name}.png").resolve(), *SIZES[name])
    shutil.rmtree(work)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
