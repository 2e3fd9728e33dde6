"""What decoders of images share: the type of pixels, 8-bit values, and the errors that Pillow raises."""

import struct
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""BGR (h, w, 3)."""
PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, RuntimeError, struct.error)
"""Errors that Pillow's decoders raise on damaged files (NotImplementedError is a RuntimeError)."""
DEPTHS = (8, 10, 12, 14, 16)
"""Bits that cameras and scanners store in 16."""


def in_8_bits(pixels: NDArray[Any]) -> Pixels:
    """Return pixels of 16 or 32 bits, or floats, scaled to 8 bits.

    Integers are taken to have the fewest bits, of `DEPTHS`, that hold their largest value, and floats to end at 1, or at their
    largest value if that is more. So 10 bits in 16 are not black.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if np.issubdtype(pixels.dtype, np.floating):
        finite = np.nan_to_num(pixels.astype(np.float32), nan=0, posinf=0, neginf=0)
        return np.asarray(np.clip(finite * (255 / max(1.0, float(finite.max(initial=0)))), 0, 255), np.uint8)
    top = max(0, int(pixels.max(initial=0)))
    bits = next((bits for bits in DEPTHS if top < 1 << bits), max(16, top.bit_length()))
    return np.asarray(np.clip(pixels, 0, None) >> (bits - 8), np.uint8)


def as_bgr(pixels: NDArray[Any]) -> Pixels:
    """Return grey, RGB or RGBA pixels of any depth, as Pillow gives them, as 8-bit BGR."""
    eight = in_8_bits(pixels)
    if eight.ndim == 2:
        return np.asarray(cv2.cvtColor(eight, cv2.COLOR_GRAY2BGR), np.uint8)
    return np.ascontiguousarray(eight[:, :, 2::-1])
