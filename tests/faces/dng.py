"""A RAW photo as a camera's: a thumbnail first, then what the sensor gave."""

import io

import numpy as np
import tifffile

IDENTITY = (1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1)
"""A matrix of colours as ratios."""
TAGS = [
    (33421, 3, 2, (2, 2), True),  # the pattern of colours repeats every two pixels
    (33422, 1, 4, b"\0\1\1\2", True),  # red, green, green, blue
    (50706, 1, 4, b"\1\4\0\0", True),  # version of DNG
    (50708, 2, None, "Test camera", True),
    (50717, 4, 1, 16383, True),  # white
    (50721, 10, 9, IDENTITY, True),
    (50728, 5, 3, (1, 1, 1, 1, 1, 1), True),  # the colour of white
    (271, 2, None, "Test", True),
    (272, 2, None, "camera", True),
]


def dng(size: tuple[int, int] = (512, 384)) -> bytes:
    """Return a grey photo that grows brighter to the right."""
    sensor, out = np.tile(np.linspace(500, 16000, size[0], dtype=np.uint16), (size[1], 1)), io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        writer.write(np.full((120, 160, 3), 99, np.uint8), photometric="rgb", subfiletype=1, extratags=TAGS[-2:], metadata=None)
        writer.write(sensor, photometric=32803, extratags=TAGS, metadata=None)
    return out.getvalue()
