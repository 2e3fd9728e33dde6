"""`predict`: images of any kind in, flat faces out, nothing written."""

from pathlib import Path

import cv2
import numpy as np
import pytest

import fer_pipeline as fer
from fer_pipeline.base.errors import UserError
from fer_pipeline.faces.pixels import Pixels


def test_an_image_has_the_same_faces_whatever_it_is_given_as(archive: Path, hopper: Pixels) -> None:
    path = next(archive.rglob("hopper-640.jpg"))
    given = [str(path), path, path.read_bytes(), hopper, hopper]
    faces = fer.predict(given, channels="bgr", detector="mtcnn")
    rows = faces.drop_columns(["input", "path", "uri", "content_sha256"]).to_pylist()
    assert faces["input"].to_pylist() == [0, 1, 2, 3, 4] and all(row == rows[0] for row in rows)
    turned = fer.predict(hopper[:, :, ::-1], channels="rgb", detector="mtcnn")
    assert turned["p_happy"].to_pylist() == faces["p_happy"].to_pylist()[:1]
    grey = fer.predict(cv2.cvtColor(hopper, cv2.COLOR_BGR2GRAY), detector="mtcnn")
    assert grey.num_rows == 1 and grey["width"].to_pylist() == [hopper.shape[1]]


def test_folders_containers_and_broken_files_are_told_apart_by_input(archive: Path) -> None:
    tar, broken = str(next(archive.rglob("groups.tar"))), str(archive / "broken" / "empty.jpg")
    with pytest.warns(UserWarning, match=r"empty.jpg' has no label: undecodable, the file is empty"):
        faces = fer.predict([broken, tar], detector="mtcnn")
    assert set(faces["input"].to_pylist()) == {1} and faces.num_rows > 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros((4, 4, 3), np.float32), r"Image 0 has the type float32 and the shape \(4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), "the shape"),
        (np.zeros((4, 4, 3), np.uint8), 'give channels="rgb"'),
        (7, "Image 0 is int '7': give a path"),
        ("", "Image 0 is str '': give a path"),
        ("/nowhere.jpg", "does not exist"),
        ("https://host/a.jpg", "neither a local path nor"),
    ],
)
def test_what_is_no_image_is_one_sentence(given: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        fer.predict(given, detector="mtcnn")


def test_an_image_without_a_face_has_no_row() -> None:
    faces = fer.predict(np.full((200, 300, 3), 90, np.uint8), channels="rgb", detector="mtcnn")
    assert faces.num_rows == 0 and "p_happy" in faces.column_names
