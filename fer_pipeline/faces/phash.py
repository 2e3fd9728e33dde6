"""The perceptual hash of an image: few bits differ between near copies."""

import logging
from collections.abc import Iterator

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fer_pipeline.base.sets import groups_of

log = logging.getLogger(__name__)

SIDE_PX = 32
ENOUGH_PX = 256
"""A larger image is sampled at this size first, which costs a tenth, and changes at most a few bits."""

NEAR_BITS = 12
"""Near copies differ in at most this many of the 256 bits of the perceptual hash. In FER-2013, the pixels of all such pairs
correlate by .984 or more, as those of re-encoded and rescaled copies do."""
COLOUR_PX = 64
MAX_BAND_MATCHES = 2000
"""If more images agree in a band of the hash, they are not compared: such a band does not distinguish images."""


def perceptual_hash(pixels: NDArray[np.uint8]) -> bytes:
    """Return 256 bits for the 16 x 16 lowest frequencies of an image, grey (h, w) or BGR (h, w, 3): 1 above their median.

    Zauner (2010) with four times the bits, because 64 bits confuse aligned faces of different people. Of 143 photos, copies that
    were rescaled and encoded again differ in at most 8 bits, other photos in at least 90.
    """
    if min(pixels.shape[:2]) > ENOUGH_PX:
        pixels = np.asarray(cv2.resize(pixels, (ENOUGH_PX, ENOUGH_PX), interpolation=cv2.INTER_LINEAR), np.uint8)
    small = cv2.resize(pixels, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY) if small.ndim == 3 else small
    lowest = cv2.dct(grey.astype(np.float32))[:16, :16].ravel()
    return np.packbits(lowest > np.median(lowest[1:])).tobytes()


def near_to(hashes: pa.ChunkedArray, others: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Return for each 256-bit hash (n,) whether one of `others` differs in at most `NEAR_BITS` bits; False for null."""
    values = hashes.to_pylist()
    has = np.array([value is not None for value in values], bool)
    ours, theirs = packed_hashes([value for value in values if value is not None]), packed_hashes(others.to_pylist())
    near = np.zeros(len(ours), bool)
    for keys, their_keys in zip(bands_of(ours), bands_of(theirs), strict=True):
        order = np.argsort(their_keys, kind="stable")
        first, last = (np.searchsorted(their_keys[order], keys, side) for side in ("left", "right"))
        for index in np.flatnonzero(~near & (last > first)):
            apart = np.bitwise_count(theirs[order[first[index] : last[index]]] ^ ours[index]).sum(1)
            near[index] = (apart <= NEAR_BITS).any()
    found = np.zeros(len(values), bool)
    found[has] = near
    return found


def packed_hashes(hashes: list[bytes]) -> NDArray[np.uint8]:
    """Return hashes of 256 bits as rows of 32 bytes (n, 32)."""
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32)


def bands_of(packed: NDArray[np.uint8]) -> Iterator[NDArray[np.int64]]:
    """Yield, for each of the `NEAR_BITS + 1` bands of the bits of hashes (n, 32), its value in each hash (n,)."""
    bits = np.unpackbits(packed, axis=1)
    width = 256 // (NEAR_BITS + 1)
    weights = 1 << np.arange(width)
    for band in range(NEAR_BITS + 1):
        yield bits[:, band * width : (band + 1) * width] @ weights


def _compared(packed: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.bool_] | None]]:
    """Yield the positions of hashes (n, 32) that agree in a band, and which of them are near one another (k, k).

    By the pigeonhole principle, near hashes agree in one of `NEAR_BITS + 1` bands; only such hashes are compared. None: more than
    `MAX_BAND_MATCHES` agree, and are not compared.
    """
    for keys in bands_of(packed):
        for group in groups_of(keys):
            is_crowded = len(group) > MAX_BAND_MATCHES
            near = None if is_crowded else np.bitwise_count(packed[group][:, None] ^ packed[group][None]).sum(2) <= NEAR_BITS
            yield group, near


def near_pairs(hashes: pa.ChunkedArray) -> NDArray[np.intp]:
    """Return the pairs of positions (n, 2), in ascending order, whose 256-bit hashes differ in at most `NEAR_BITS` bits."""
    found = [np.zeros((0, 2), np.intp)]
    for group, near in _compared(packed_hashes(hashes.to_pylist())):
        if near is not None:
            one, other = np.nonzero(np.triu(near, 1))
            found.append(np.stack([group[one], group[other]], 1))
    return np.unique(np.concatenate(found), axis=0)


def near_groups(packed: NDArray[np.uint8]) -> Iterator[NDArray[np.intp]]:
    """Yield groups of positions that differ in at most `NEAR_BITS` bits directly or through others, among hashes (n, 32).

    Groups overlap: join them. In time and memory they cost the square of the hashes that agree in a band, at most
    `MAX_BAND_MATCHES`; where more agree, a warning says so.
    """
    crowded = 0
    for group, near in _compared(packed):
        if near is None:
            crowded += len(group)
            continue
        left = near.sum(1) > 1
        while left.any():
            found, edge = np.zeros(len(group), bool), np.zeros(len(group), bool)
            edge[left.argmax()] = True
            while edge.any():
                found |= edge
                edge = near[edge].any(0) & ~found
            left &= ~found
            yield group[found]
    if crowded:
        log.warning(
            "%d times an image looks like more than %d others in a part of it, which is not compared", crowded, MAX_BAND_MATCHES
        )


def hashes_of(phashes: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return hashes in hex as bytes; null for what is none."""
    known = pc.if_else(pc.match_substring_regex(phashes, "^[0-9a-f]{64}$"), phashes, None).to_pylist()
    return pa.chunked_array([[one and bytes.fromhex(one) for one in known]], pa.binary())


def colours_of(pixels: NDArray[np.uint8]) -> bytes:
    """Return how often each of 64 colours, 4 levels of blue, green and red, occurs in a BGR image: 64 bytes, 255 for a half."""
    small = cv2.resize(pixels, (COLOUR_PX, COLOUR_PX), interpolation=cv2.INTER_AREA).astype(np.intp) >> 6
    counts = np.bincount((small @ (16, 4, 1)).ravel(), minlength=64)
    return (counts * 510 // COLOUR_PX**2).clip(0, 255).astype(np.uint8).tobytes()


def mirrored(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return about the hashes (n, 32) of mirrored images: of the frequencies, the odd horizontal ones change their sign."""
    return packed ^ np.packbits(np.tile(np.arange(16) % 2 == 1, 16))
