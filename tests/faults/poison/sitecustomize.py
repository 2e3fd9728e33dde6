"""A decoder stand-in for every process that has this folder on its PYTHONPATH: some files crash it, some hang it for good."""

import os
import threading

import av
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

_open = av.open


def _poisoned_open(place, *rest, **options):  # type: ignore[no-untyped-def]
    name = os.path.basename(str(place))
    if hasattr(place, "read"):  # a member of a container
        name = place.read(16).decode(errors="replace")
        place.seek(0)
    if name.startswith("crash"):
        os.abort()
    if name.startswith("hang"):
        threading.Event().wait()
    return _open(place, *rest, **options)


av.open = _poisoned_open  # type: ignore[assignment]
