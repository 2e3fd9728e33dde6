"""A decoder stand-in for every process that has this folder on its PYTHONPATH: some files crash it, some hang it for good."""

import os
import threading

import cv2

CRASH, HANG = b"crash the decoder", b"hang the decoder"
_decode = cv2.imdecode


def _poisoned(data, flags):  # type: ignore[no-untyped-def]
    content = data.tobytes()
    if content.endswith(CRASH):
        os.abort()
    if content.endswith(HANG):
        threading.Event().wait()
    return _decode(data, flags)


cv2.imdecode = _poisoned

_open = cv2.VideoCapture


def _poisoned_capture(place, *rest):  # type: ignore[no-untyped-def]
    """A function in the place of the class: a subclass of OpenCV's corrupts memory by itself."""
    name = os.path.basename(str(place))
    if name.startswith("crash"):
        os.abort()
    if name.startswith("hang"):
        threading.Event().wait()
    return _open(place, *rest)


cv2.VideoCapture = _poisoned_capture  # type: ignore[misc, assignment]
