"""Perceptual hashes: pictures that look alike get hashes that differ in few bits, however they are turned or flipped.

Source: a discrete cosine transform of a small grey picture, of whose low frequencies each bit says whether it lies
above their median (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010). A flip changes
the sign of the odd frequencies and a transposition exchanges rows and columns, so one transform gives the hashes of all
eight symmetries.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

SIDE = 32  # px of the grey picture that is transformed
_KEPT = 8  # frequencies of each direction
# How a picture is turned to its partner: transposed first, then flipped upside down, then left to right.
SYMMETRIES = tuple((t, y, x) for t in (False, True) for y in (False, True) for x in (False, True))


def small(grey: NDArray[np.uint8], side: int = SIDE) -> NDArray[np.uint8]:
    """A grey picture (H, W) squeezed to (side, side), uint8."""
    import cv2

    return np.asarray(cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def symmetry(picture: NDArray, which: int) -> NDArray:
    """A picture (H, W, …) under one of `SYMMETRIES`."""
    transposed, flip_y, flip_x = SYMMETRIES[which]
    turned = picture.swapaxes(0, 1) if transposed else picture
    return turned[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def hashes(pictures: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The hashes of pictures (N, SIDE, SIDE) under the eight symmetries, shape (N, 8); column 0 is their own."""
    basis = _cosines()
    low = basis @ pictures.astype(np.float32) @ basis.T  # (N, 8, 8)
    low[:, 0, 0] = 0  # the mean says nothing about the picture
    odd = np.where(np.arange(_KEPT) % 2, -1.0, 1.0).astype(np.float32)
    columns = []
    for transposed, flip_y, flip_x in SYMMETRIES:
        turned = low.swapaxes(1, 2) if transposed else low
        turned = turned * (odd[:, None] if flip_y else 1) * (odd[None, :] if flip_x else 1)
        flat = turned.reshape(len(low), _KEPT**2)
        bits = flat > np.median(flat, axis=1, keepdims=True)
        columns.append(np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64))
    return np.stack(columns, axis=1)


@cache
def _cosines() -> NDArray[np.float32]:
    """The lowest rows of the orthonormal DCT-II, shape (8, SIDE)."""
    frequency, place = np.arange(_KEPT)[:, None], np.arange(SIDE)[None, :]
    rows = np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE)) * np.sqrt(2 / SIDE)
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)
