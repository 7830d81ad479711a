"""All mask arithmetic, once.

A mask inside the program is a boolean array of shape (height, width); in a table it is COCO's
compressed run-length code (bytes) in the frame of the original image. The code itself comes from
`faster-coco-eval`, whose codec is the one COCO files are written with.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Mask = NDArray[np.bool_]

_RUN_BITS = 32  # the codec counts the pixels of a run in as many


def encode(mask: ArrayLike) -> bytes:
    """A boolean mask (H, W) as COCO's compressed run-length code."""
    from faster_coco_eval.core import mask as codec

    # The codec starts a new run at every change of value, so numbers become yes or no first.
    array = np.asfortranarray(np.asarray(mask, dtype=bool).view(np.uint8))
    if array.ndim != 2:
        raise ValueError(f"a mask has shape (height, width); got {array.shape}")
    counts = codec.encode(array)["counts"]
    return counts if isinstance(counts, bytes) else counts.encode("ascii")


def decode(code: bytes, size_hw: tuple[int, int]) -> Mask:
    """COCO's compressed run-length code as a boolean mask of shape `size_hw`.

    Raises:
        ValueError: the runs do not add up to height × width.
    """
    from faster_coco_eval.core import mask as codec

    if int(to_runs(code).sum()) != size_hw[0] * size_hw[1]:
        raise ValueError(f"the run-length code does not describe {size_hw[0]} × {size_hw[1]} pixels")
    decoded = codec.decode({"size": list(size_hw), "counts": code})
    return np.asarray(decoded, dtype=bool).reshape(size_hw)


def area(code: bytes) -> int:
    """Number of pixels of an encoded mask."""
    return int(to_runs(code)[1::2].sum())


def bounds(code: bytes, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """The mask's box as pixel edges, shape (4,); four zeros for an empty mask."""
    height, runs = size_hw[0], to_runs(code)
    if int(runs.sum()) != size_hw[0] * size_hw[1]:
        raise ValueError(f"the run-length code does not describe {size_hw[0]} × {size_hw[1]} pixels")
    ends = np.cumsum(runs)[1::2]
    starts, lasts = (ends - runs[1::2])[runs[1::2] > 0], ends[runs[1::2] > 0] - 1
    if len(starts) == 0:
        return np.zeros(4, np.float32)
    # A run that goes on in the next column touches the first and the last row.
    over = bool((starts // height != lasts // height).any())
    y_min, y_max = (0, height) if over else (int((starts % height).min()), int((lasts % height).max()) + 1)
    return np.array([starts[0] // height, y_min, lasts[-1] // height + 1, y_max], np.float32)


def crop(code: bytes, size_hw: tuple[int, int]) -> tuple[Mask, int, int]:
    """The part of a mask inside its bounds (h, w), and its left and top in px; the whole is never held.

    An empty mask has the part (0, 0) at 0, 0.

    Raises:
        ValueError: the runs do not add up to height × width.
    """
    x_min, y_min, x_max, y_max = bounds(code, size_hw).astype(int).tolist()
    runs, height = to_runs(code), size_hw[0]
    ends = np.cumsum(runs)[1::2]
    # Runs lie column by column, so the columns of the part hold all of them.
    steps = np.zeros((x_max - x_min) * height + 1, np.int8)
    filled = runs[1::2] > 0
    steps[(ends - runs[1::2])[filled] - x_min * height] += 1
    steps[ends[filled] - x_min * height] -= 1
    columns = np.cumsum(steps[:-1], dtype=np.int8).reshape(x_max - x_min, height)
    return np.ascontiguousarray(columns[:, y_min:y_max].T.astype(bool)), x_min, y_min


def perimeter(mask: Mask) -> float:
    """The length in px of all outlines of a mask (H, W), those of holes with them.

    By Cauchy's and Crofton's formula in four directions: lines along rows, columns and both diagonals cross an outline
    the oftener, the longer it is. It is near 2πr for a disc, and 5 to 7 % low for a square that lies along the grid.
    """
    padded = np.pad(np.asarray(mask, bool), 1)
    straight = (padded[1:] != padded[:-1]).sum() + (padded[:, 1:] != padded[:, :-1]).sum()
    diagonal = (padded[1:, 1:] != padded[:-1, :-1]).sum() + (padded[1:, :-1] != padded[:-1, 1:]).sum()
    return float(np.pi / 8 * (straight + diagonal / np.sqrt(2)))


def eccentricity(mask: Mask) -> float:
    """Of the ellipse that has a mask's second moments, 0 (round) … 1 (a line); 0 for an empty mask.

    Pixels are squares and not points, so a rectangle of a × b px has √(1 − b²/a²).
    """
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return 0.0
    spread = np.cov(np.stack([columns, rows]).astype(np.float64), bias=True) + np.eye(2) / 12
    small, large = np.linalg.eigvalsh(spread)
    return float(np.sqrt(max(0.0, 1 - small / large)))


def solidity(mask: Mask) -> float:
    """The share that a mask has of its convex hull, up to 1; 0 for an empty mask.

    The hull is that of the pixels' centres and its area the number of centres in it, on it included (Pick's theorem),
    so every mask without a dent that pixels can show has 1.
    """
    import cv2

    rows, columns = np.nonzero(mask)
    if not len(rows):
        return 0.0
    points = np.stack([columns, rows], axis=1).astype(np.int32)
    hull = np.asarray(cv2.convexHull(points), np.int64).reshape(-1, 2)
    after = np.roll(hull, -1, axis=0)
    twice_area = abs(int((hull[:, 0] * after[:, 1] - after[:, 0] * hull[:, 1]).sum()))
    on_border = int(np.gcd(*np.abs(after - hull).T).sum())
    return len(rows) / ((twice_area + on_border) // 2 + 1)


def iou(a: Sequence[bytes], b: Sequence[bytes], size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """Intersection over union of every mask of `a` with every mask of `b`, shape (N, M).

    Raises:
        ValueError: the runs of a mask do not add up to height × width.
    """
    from faster_coco_eval.core import mask as codec

    # The codec goes through two masks side by side, and never comes to the end where one has more pixels.
    for code in (*a, *b):
        if _pixels(code) != size_hw[0] * size_hw[1]:
            raise ValueError(f"the run-length code does not describe {size_hw[0]} × {size_hw[1]} pixels")
    if not len(a) or not len(b):
        return np.zeros((len(a), len(b)))
    size = list(size_hw)
    left = [{"size": size, "counts": code} for code in a]
    right = [{"size": size, "counts": code} for code in b]
    return np.asarray(codec.iou(left, right, [0] * len(b)), dtype=np.float64)


@lru_cache(maxsize=8192)
def _pixels(code: bytes) -> int:
    """Number of pixels of the image that a code describes; the same masks are compared many times over."""
    return int(to_runs(code).sum())


def from_polygons(polygons: Sequence[ArrayLike], size_hw: tuple[int, int]) -> bytes:
    """COCO's polygons (each a flat list x0, y0, x1, y1 …) as one run-length code; none give an empty mask.

    Raises:
        ValueError: a polygon has fewer than three points, an odd count of numbers, or one that is not finite.
    """
    from faster_coco_eval.core import mask as codec

    flat = [np.asarray(polygon, dtype=np.float64).ravel().tolist() for polygon in polygons]
    if not flat:
        return encode(np.zeros(size_hw, bool))
    if any(len(polygon) < 6 or len(polygon) % 2 or not np.isfinite(polygon).all() for polygon in flat):
        raise ValueError("a polygon needs at least three points, each with x and y, all of them numbers")
    codes = codec.frPyObjects(flat, size_hw[0], size_hw[1])
    counts = codec.merge(codes if isinstance(codes, list) else [codes])["counts"]
    return counts if isinstance(counts, bytes) else counts.encode("ascii")


def from_runs(runs: ArrayLike, size_hw: tuple[int, int]) -> bytes:
    """COCO's uncompressed runs (column by column, first run is background) as compressed code.

    Raises:
        ValueError: a run is negative, or the runs do not add up to height × width.
    """
    lengths = np.asarray(runs, dtype=np.int64)
    if (lengths < 0).any() or int(lengths.sum()) != size_hw[0] * size_hw[1]:
        raise ValueError(f"the runs do not describe {size_hw[0]} × {size_hw[1]} pixels")
    from faster_coco_eval.core import mask as codec

    # Runs of no pixels join their neighbours, so that a mask has one code only.
    filled = np.flatnonzero(lengths)
    first = np.flatnonzero(np.diff(filled % 2, prepend=-1)) if len(filled) else filled
    joined = np.add.reduceat(lengths[filled], first) if len(filled) else np.zeros(1, np.int64)
    if len(filled) and filled[0] % 2:
        joined = np.concatenate([[0], joined])
    codes = codec.frPyObjects([{"counts": joined.tolist(), "size": list(size_hw)}], *size_hw)
    counts = codec.merge(codes if isinstance(codes, list) else [codes])["counts"]
    return counts if isinstance(counts, bytes) else counts.encode("ascii")


def to_runs(code: bytes) -> NDArray[np.int64]:
    """The uncompressed runs of a code: column by column, the first run is background.

    The code holds groups of 5 bits; from the fourth run on a number is the difference to the run before last.

    Raises:
        ValueError: the code ends inside a number, or holds a byte outside the alphabet.
    """
    runs: list[int] = []
    at = 0
    while at < len(code):
        value = shift = 0
        more = True
        while more:
            if at >= len(code):
                raise ValueError("the run-length code is cut short")
            group = code[at] - 48
            if not 0 <= group < 64:
                raise ValueError(f"the run-length code holds the byte {code[at]}")
            if shift > _RUN_BITS:
                raise ValueError("the run-length code holds a run longer than any image")
            at += 1
            value |= (group & 31) << shift
            shift += 5
            more = bool(group & 32)
            if not more and group & 16:
                value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if not 0 <= value < 1 << _RUN_BITS:
            raise ValueError(f"the run-length code holds a run of {value} pixels")
        runs.append(value)
    return np.asarray(runs, dtype=np.int64)
