from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_pipeline.base.errors import UserError
from fer_pipeline.cli.predict import PredictConfig, run
from tests.cli.test_cli import call


def test_what_was_found_and_an_annotated_copy_of_each_image(archive: Path, tmp_path: Path) -> None:
    photo, blank = next(archive.rglob("hopper-640.jpg")), next(archive.rglob("coffee-*.jpg"))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photo.read_bytes()[:300])
    config = PredictConfig(out=str(tmp_path / "out"), detector="mtcnn")
    found = run(str(photo), str(blank), str(broken), config=config).images
    assert [(one["status"], len(one["faces"])) for one in found] == [("ok", 1), ("no_face", 0), ("undecodable", 0)]
    marked, unmarked = (cv2.imread(one["annotated"]) for one in found[:2])
    assert marked is not None and marked.shape == cv2.imread(str(photo)).shape  # type: ignore[union-attr]
    face = found[0]["faces"][0]
    edge = marked[round(face["y"] + face["h"] / 2), round(face["x"])].astype(int)
    assert edge[1] > edge[0] and edge[1] > edge[2]  # the green of a box about a face whose label is sure
    assert np.abs(unmarked.astype(int) - cv2.imread(str(blank))).mean() < 5  # type: ignore[union-attr]
    assert found[2]["annotated"] is None and len(list((tmp_path / "out").iterdir())) == 2


def test_a_place_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        run(str(tmp_path / "none.jpg"))
    with pytest.raises(UserError, match="holds no images"):
        run(str(tmp_path))


def test_images_none_of_which_can_be_labelled_are_a_failure(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no more")
    out = call("predict", str(tmp_path / "broken.jpg"), "--out", str(tmp_path / "out"), "--detector", "none")
    assert out.returncode == 3 and "undecodable" in out.stderr and "None of the 1 images could be labelled" in out.stderr


def test_the_command_takes_several_images_and_needs_no_ray(archive: Path, tmp_path: Path) -> None:
    photos = sorted(str(path) for path in archive.rglob("hopper-*.jpg"))[:2]
    out = call("predict", *photos, "--out", str(tmp_path), "--detector", "none")
    assert out.returncode == 0 and out.stderr.count("1 face") == 2 and "ray" not in out.stderr.lower()
    assert out.stdout.count('"annotated"') == 2
