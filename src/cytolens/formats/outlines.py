"""Outlines as other people write them (polygons, run-length codes), made into masks with care.

The numbers come from files, and the codec behind `cytolens.masks` trusts its arguments, so a
coordinate far outside the image or a run longer than it is refused here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolens import masks
from cytolens.images import MAX_PIXELS

# A polygon may leave its image by this many image sides, and be so long; what is further out or longer
# (from one end of the image to the other, many times) is a mistake, and would cost the rasteriser memory
# in proportion.
_REACH = 4.0
_LONGEST_PX = 2_000_000


def from_polygons(polygons: Sequence[Sequence[float]], size_wh: tuple[int, int]) -> bytes:
    """Polygons (each x0, y0, x1, y1 … in px) as one run-length code.

    Raises:
        ValueError: a polygon has fewer than three points, or a coordinate is no number or far outside.
    """
    width, height = _checked(size_wh)
    arrays = [np.asarray(polygon, np.float64) for polygon in polygons]
    for array in arrays:
        if array.ndim != 1 or len(array) < 6 or len(array) % 2:
            raise ValueError("a polygon needs at least three points, each with x and y")
    refuse_stray([array.reshape(-1, 2) for array in arrays], size_wh)
    return masks.from_polygons(arrays, (height, width))


def refuse_stray(rings: Sequence[NDArray[np.float64]], size_wh: tuple[int, int]) -> None:
    """Refuse rings, each (n, 2) of x, y in px, that no program can have meant.

    Raises:
        ValueError: a coordinate is no number or far outside the image, or the rings are longer than any outline.
    """
    length = 0.0
    for ring in rings:
        if not np.isfinite(ring).all() or (np.abs(ring) > _REACH * max(size_wh)).any():
            raise ValueError("a polygon's coordinates are no numbers or far outside the image")
        length += float(np.abs(ring - np.roll(ring, -1, axis=0)).max(axis=1).sum())
    if length > _LONGEST_PX:
        raise ValueError(f"an outline of {length:.0f} px is longer than the {_LONGEST_PX} px allowed")


def from_segmentation(segmentation: Any, size_wh: tuple[int, int]) -> bytes | None:
    """COCO's `segmentation` (polygons, or a run-length code, compressed or not) as a run-length code.

    Returns:
        The code; None for an empty list of polygons.

    Raises:
        ValueError: it is none of these, or does not describe an image of that size.
    """
    width, height = _checked(size_wh)
    if isinstance(segmentation, list):
        try:
            return from_polygons(segmentation, size_wh) if segmentation else None
        except (TypeError, OverflowError) as error:
            raise ValueError("a polygon is not a list of numbers") from error
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise ValueError("a segmentation is a list of polygons or a run-length code with counts")
    if segmentation.get("size", [height, width]) != [height, width]:
        raise ValueError(f"the run-length code is of size {segmentation['size']}, not [{height}, {width}]")
    counts = segmentation["counts"]
    try:
        if isinstance(counts, str):
            code = counts.encode("ascii")
            masks.bounds(code, (height, width))  # refuses what does not describe the image
            return code
        runs = np.asarray(counts, np.int64)
        if runs.ndim != 1 or (runs > width * height).any() or runs.tolist() != counts:
            raise ValueError("counts are not run lengths")
        return masks.from_runs(runs, (height, width))
    except (TypeError, OverflowError, UnicodeEncodeError) as error:
        raise ValueError("counts are not run lengths") from error


def _checked(size_wh: tuple[int, int]) -> tuple[int, int]:
    width, height = size_wh
    if not (width > 0 and height > 0 and width * height <= MAX_PIXELS):
        raise ValueError(f"an image of {width} × {height} px is too large for a mask")
    return width, height
