"""Outlines from maps: what a map network is shown, and how its maps become cells.

A map network says something of every pixel. Shown a field, it gives four maps: whether the pixel lies inside a cell,
how near it lies to the middle of its cell, and where that middle is, down and to the right, in units of `STEP_PX`.
Each pixel votes for a middle, and pixels that vote for the same one are a cell; so cells that touch come apart, and
nothing is suppressed. Shown the crop of one cell, it gives a map per part: the whole cell, its nucleus.

What becomes of a cell follows from the maps up to `REACH_PX` from its middle along either axis, so a large image can be
read in windows: each window sees `REACH_PX` more on every side and gives the cells whose middle lies in it, which are
those that reading the whole at once would give, pixel by pixel. For that the arithmetic says the same wherever a window
begins: heights are whole numbers, and votes are sums that are exact for maps kept as float16.

Source: the vote for a middle is that of Neven et al., "Instance segmentation by jointly optimizing spatial
embeddings", CVPR 2019, and of Cheng et al., "Panoptic-DeepLab", CVPR 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolens.tasks.classify import ClassifyInput

STEP_PX = 16.0  # of the image, in which the way to the middle is counted
FARTHEST_PX = 96.0  # the longest way to a middle that is believed
NEAR_PX = 24.0  # a vote counts for a middle up to this far
# A pixel of a cell lies up to the two together from its middle. What else may own the pixel has a middle up to twice
# NEAR_PX from that of the cell; what lies in a hole of the cell has its middle there. Beyond either may lie the peak of
# that middle, up to NEAR_PX off, and the few px that smoothing and the union of middles look at.
REACH_PX = 160
FIELD_MAPS = ("inside", "middle", "down", "right")
MULTIPLE = 32  # the largest stride
_LEVELS = (0.5, 99.8)  # percentiles of brightness that become black and white
_PEAK_PX = 5  # side of the square in which a middle is the highest place
_ONE_MIDDLE_PX = 4.0  # peaks whose own votes lie nearer are one cell
_SMOOTHING = (14, 62, 104, 62, 14)  # a Gauss curve of 1 px in 256ths
_GRADES = 4096  # steps of a height between 0 and 1

Levels = tuple[float, float]


class OutlineInput(BaseModel):
    """What a map network is shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shows: Literal["field", "cell"] = "field"
    levels: bool = Field(default=True, description="field: stretch the brightness between its extremes")
    cell: ClassifyInput = Field(default=ClassifyInput(), description="cell: how the crop of a box is cut")
    tile_px: int = Field(
        default=512, ge=64, multiple_of=MULTIPLE, description="field: side of a tile without its margin"
    )
    margin_px: int = Field(
        default=64, ge=0, multiple_of=MULTIPLE, description="field: what a tile sees on each side of it"
    )
    whole_px: int = Field(default=1024, ge=64, description="field: images up to this side are one tile")


class MapReading(BaseModel):
    """How cells are read from the maps of a field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inside_min: float = Field(default=0.5, gt=0, lt=1, description="a pixel from here on belongs to a cell")
    middle_min: float = Field(default=0.3, gt=0, lt=1, description="the least height of a middle")
    score_min: float = Field(default=0.5, ge=0, le=1, description="cells from this score on count")
    area_min_px: int = Field(default=12, ge=1, description="smaller cells go")


class OutlineOutput(BaseModel):
    """How the maps are read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    views: int = Field(default=1, ge=1, le=8, description="flips and turns looked at; their maps are averaged")
    reading: MapReading = MapReading()
    per_label: dict[str, MapReading] = Field(
        default_factory=dict, description="other limits for images of a type; those not named take `reading`"
    )
    parts: dict[str, float] = Field(
        default_factory=dict, description="cell: label of each part → the value from which a pixel belongs to it"
    )
    of: str = Field(default="", description="cell: the label of the cells that are outlined, and of their whole")

    def reading_of(self, label: str | None) -> MapReading:
        """The limits for images of a type."""
        return self.per_label.get(label or "", self.reading)


@dataclass(frozen=True, slots=True)
class Found:
    """One cell read from maps.

    Attributes:
        x, y: upper left corner of its mask in the maps, px.
        mask: shape (h, w), bool, its first and last rows and columns not empty.
        middle: x and y of its middle in the maps.
        score: 0 … 1.
    """

    x: int
    y: int
    mask: NDArray[np.bool_]
    middle: tuple[float, float]
    score: float


def levels(pixels: NDArray[np.uint8]) -> Levels:
    """The brightness of a picture (H, W, 3) that becomes black, and that which becomes white."""
    step = max(1, int((pixels.shape[0] * pixels.shape[1] / 1_000_000) ** 0.5))
    low, high = np.percentile(pixels[::step, ::step].mean(axis=2), _LEVELS)
    return float(low), float(max(high, low + 16))


def levelled(pixels: NDArray[np.uint8], between: Levels) -> NDArray[np.uint8]:
    """A picture whose brightness is stretched, all colours alike, uint8 (H, W, 3)."""
    low, high = between
    table = np.clip((np.arange(256) - low) * (255 / (high - low)), 0, 255).round().astype(np.uint8)
    return table[pixels]


def read(maps: NDArray[np.floating], limits: MapReading) -> list[Found]:
    """The cells in the maps of a field, in the order of their middles, row by row.

    Args:
        maps: `FIELD_MAPS`, shape (4, H, W).
        limits: see `MapReading`.
    """
    from scipy import ndimage

    maps = np.asarray(maps, np.float32)
    inside = maps[0] >= limits.inside_min
    middles = _middles(maps, inside, limits.middle_min)
    if not len(middles):
        return []
    owned = _owned(maps, inside, middles)
    parts = [
        (number, (place[0].start + top, place[1].start + left), mask)
        for number, place in enumerate(ndimage.find_objects(owned, len(middles)))
        if place is not None
        for mask, (top, left) in [_largest(owned[place] == number + 1)]
    ]
    cells = []
    for number, (y, x), mask in _filled(parts, inside.shape, limits.area_min_px):
        here = maps[:2, y : y + mask.shape[0], x : x + mask.shape[1]]
        score = float(here[0][mask].mean() * min(1.0, here[1][mask].max()) ** 0.5)
        cells.append(Found(x, y, mask, (float(middles[number, 1]), float(middles[number, 0])), score))
    return cells


def _votes(
    maps: NDArray[np.float32], rows: NDArray[np.intp], columns: NDArray[np.intp], farthest: float
) -> NDArray[np.float64]:
    """Where some pixels say that the middle of their cell is, row and column, shape (N, 2)."""
    way = np.clip(maps[2:4, rows, columns].T.astype(np.float64) * STEP_PX, -farthest, farthest)
    return np.stack([rows, columns], axis=1) + way


def _middles(maps: NDArray[np.float32], inside: NDArray[np.bool_], least: float) -> NDArray[np.float64]:
    """Row and column of the middles, shape (M, 2), row by row."""
    import cv2

    graded, weights = np.rint(maps[1].astype(np.float64) * _GRADES), np.array(_SMOOTHING, np.float64)
    smooth = cv2.sepFilter2D(graded, cv2.CV_64F, weights, weights)
    highest = cv2.dilate(smooth, np.ones((_PEAK_PX, _PEAK_PX), np.uint8))
    floor = least * _GRADES * sum(_SMOOTHING) ** 2
    rows, columns = np.nonzero((smooth >= highest) & (smooth >= floor) & inside)
    if not len(rows):
        return np.zeros((0, 2))
    # A peak lies at its middle; one that points far away is in error, and must not reach into other windows.
    return _united(_votes(maps, rows, columns, NEAR_PX), smooth[rows, columns].astype(np.float64))


def _owned(maps: NDArray[np.float32], inside: NDArray[np.bool_], middles: NDArray[np.float64]) -> NDArray[np.int32]:
    """For each pixel the number of its middle from 1, 0 where it has none, shape (H, W)."""
    from scipy.spatial import KDTree

    rows, columns = np.nonzero(inside)
    away, owner = KDTree(middles).query(_votes(maps, rows, columns, FARTHEST_PX), distance_upper_bound=NEAR_PX)
    owned = np.zeros(inside.shape, np.int32)
    near = np.isfinite(away)
    owned[rows[near], columns[near]] = np.asarray(owner)[near] + 1
    return owned


def _united(votes: NDArray[np.float64], heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Middles, of which the lower of two that are one cell goes."""
    from scipy.spatial import KDTree

    gone = np.zeros(len(votes), bool)
    order = np.lexsort((votes[:, 1], votes[:, 0], -heights))
    near = KDTree(votes).query_ball_point(votes, _ONE_MIDDLE_PX)
    for one in order:
        if not gone[one]:
            others = [other for other in near[one] if other != one]
            gone[others] = True
    return votes[~gone]


def _largest(mask: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """The largest part of a mask that is not empty, cut to its bounds, and the row and column where these begin."""
    import cv2

    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    left, top, width, height = (int(v) for v in stats[largest, :4])
    return parts[top : top + height, left : left + width] == largest, (top, left)


_Part = tuple[int, tuple[int, int], NDArray[np.bool_]]  # number, row and column of the upper left corner, mask


def _filled(parts: list[_Part], size_hw: tuple[int, ...], area_min_px: int) -> list[_Part]:
    """The parts with their holes filled, in the same order; a pixel of another part stays that part's.

    Those that are too small even so are gone, and hold no pixel against others.
    """
    from scipy import ndimage

    taken = np.zeros(size_hw, bool)
    for _, (y, x), mask in parts:
        taken[y : y + mask.shape[0], x : x + mask.shape[1]] |= mask
    whole: dict[int, NDArray[np.bool_]] = {}
    # A part inside the hole of another is smaller, and what it encloses is its own.
    for number, (y, x), mask in sorted(parts, key=lambda part: part[2].size):
        here = taken[y : y + mask.shape[0], x : x + mask.shape[1]]
        filled = mask | (np.asarray(ndimage.binary_fill_holes(mask), bool) & ~here)
        if filled.sum() < area_min_px:
            here &= ~mask
            continue
        whole[number] = filled
        here |= filled
    return [(number, corner, whole[number]) for number, corner, _ in parts if number in whole]
