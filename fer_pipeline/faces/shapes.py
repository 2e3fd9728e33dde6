"""Extreme shapes: panoramas and long screenshots, in which faces are looked for in tiles."""

EXTREME_RATIO = 2.5
"""A photo whose sides differ by more than this is a panorama or a long screenshot: shrunk whole, its faces would be too small."""
EXTREME_SIZES = 4
"""A photo is tiled if its long side is more than this many times the size for detection."""
SMALLEST_PX = 32
"""A strip of fewer pixels has no face, and could have a hundred thousand tiles."""
MOST_SHRUNK = 6
"""Most times that a tile is shrunk, so that a face of 100 px keeps some 16 px."""


def is_extreme(width: int, height: int, size_px: int) -> bool:
    """Return whether a photo of this size in pixels is detected in tiles: see `EXTREME_RATIO` and `EXTREME_SIZES`."""
    long, short = max(width, height), min(width, height)
    return short >= SMALLEST_PX and long > max(EXTREME_RATIO * short, EXTREME_SIZES * size_px)


def seen_px(width: int, height: int, size_px: int) -> int:
    """Return the length in a photo that becomes `size_px` for detection: its long side, or the side of a tile."""
    if not is_extreme(width, height, size_px):
        return max(width, height)
    return min(max(min(width, height), size_px), MOST_SHRUNK * size_px)
