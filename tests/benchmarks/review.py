"""How quick the review page is: seconds to the first picture and per screen, memory of the tab, size of the folder. Prints JSON.

    python -m tests.benchmarks.review [--faces 100000]

The faces are made: their rows are random, and the sheets show noise. Needs Chromium.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import pyarrow as pa

from fer_pipeline.models.label_space import FER7
from fer_pipeline.report.review import REVIEW, review_page
from tests.report.browser import browser


def rows(count: int) -> pa.Table:
    rng = np.random.default_rng(0)
    confidence = np.sort(rng.uniform(0.2, 1, count))
    return pa.table(
        {
            "content_sha256": [rng.bytes(32).hex() for _ in range(count)],
            "uri": [f"s3://bucket/photos/2026/{number // 1000:04d}/IMG_{number:08d}.jpg" for number in range(count)],
            "member": pa.nulls(count, pa.string()), "time_ms": pa.nulls(count, pa.int64()),
            **{name: rng.uniform(20, 4000, count).astype(np.float32) for name in "xywh"},
            "expression": rng.choice(FER7.classes, count).tolist(), "confidence": confidence,
            "quality": rng.uniform(0.4, 1, count),
            "uncertain": (confidence < 0.66).tolist(),
            "folder": [f"2026/{number // 1000:04d}" for number in range(count)],
            "model_digest": ["0" * 64] * count,
        }
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
        sheet = cv2.imencode(".jpg", cv2.GaussianBlur(cv2.resize(noise, (768, 768)), (0, 0), 3), [cv2.IMWRITE_JPEG_QUALITY, 85])[
            1
        ]
        (folder / "sheets").mkdir()
        for number in range(-(-options.faces // REVIEW.tiles)):
            (folder / "sheets" / f"{number:05d}.jpg").write_bytes(sheet.tobytes())
        began = time.perf_counter()
        (folder / "index.html").write_text(review_page("/runs/x", rows(options.faces), FER7.classes))
        page_s = time.perf_counter() - began
        with browser(folder) as tab:
            first_s = tab.open(folder / "index.html")
            timed = "(async (go) => { const t = performance.now(); go(); await new Promise(requestAnimationFrame);"
            timed += " await new Promise(requestAnimationFrame); return performance.now() - t; })"
            places = np.linspace(0, 1, 30)
            scroll = "(() => { list.scrollTop = %f * list.scrollHeight; })"
            screens = [float(tab.run(timed + scroll % place)) for place in places]
            by_quality = float(tab.run(f"{timed}(() => {{ $('order').value = 'quality'; arrange(); }})"))
            tab.run("list.focus()")
            answer = float(tab.run(f"{timed}(() => {{ go(5, false); answer('sad'); }})"))
            many = float(tab.run(f"{timed}(() => {{ anchor = 0; go(shown.length - 1, true); answer('sad'); }})"))
            heap = tab.run("performance.memory.usedJSHeapSize")
            children = psutil.Process().children(recursive=True)
            tabs = [one.memory_info().rss for one in children if "--type=renderer" in one.cmdline()]
        size = sum(file.stat().st_size for file in [folder / "index.html", *(folder / "sheets").iterdir()])
        facts = {
            "faces": options.faces, "write_page_s": round(page_s, 1),
            "page_mb": round((folder / "index.html").stat().st_size / 1e6, 1),
            "folder_mb": round(size / 1e6), "first_picture_s": round(first_s, 2), "screen_ms": round(float(np.median(screens))),
            "slowest_screen_ms": round(max(screens)), "order_ms": round(by_quality), "answer_ms": round(answer),
            "answer_all_ms": round(many), "heap_mb": round(heap / 1e6), "renderer_mb": round(max(tabs, default=0) / 1e6),
        }  # fmt: skip
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
