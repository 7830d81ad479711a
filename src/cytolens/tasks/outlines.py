"""Outlines from maps: what a map network is shown, and how its maps become cells.

A map network says something of every pixel. Shown a field, it gives four maps: whether the pixel lies inside a cell,
how near it lies to the middle of its cell, and where that middle is, down and to the right, in units of `STEP_PX`.
Each pixel votes for a middle, and pixels that vote for the same one are a cell; so cells that touch come apart, and
nothing is suppressed. Shown the crop of one cell, it gives a map per part: the whole cell, its nucleus.

Reading the maps looks no further than `REACH_PX` from a cell's middle, so a large image can be read in windows: each
window sees `REACH_PX` more on every side and gives the cells whose middle lies in it, which are exactly those that
reading the whole at once would give.

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
REACH_PX = 128  # more than both together
FIELD_MAPS = ("inside", "middle", "down", "right")
MULTIPLE = 32  # the largest stride
_LEVELS = (0.5, 99.8)  # percentiles of brightness that become black and white
_PEAK_PX = 5  # side of the square in which a middle is the highest place
_ONE_MIDDLE_PX = 4.0  # peaks whose own votes lie nearer are one cell

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
    from scipy.spatial import KDTree

    maps = np.asarray(maps, np.float32)
    inside = maps[0] >= limits.inside_min
    middles = _middles(maps, inside, limits.middle_min)
    if not len(middles):
        return []
    rows, columns = np.nonzero(inside)
    votes = _votes(maps, rows, columns)
    away, owner = KDTree(middles).query(votes, distance_upper_bound=NEAR_PX)
    owned = np.zeros(inside.shape, np.int32)
    near = np.isfinite(away)
    owned[rows[near], columns[near]] = np.asarray(owner)[near] + 1
    cells = []
    for number, place in enumerate(ndimage.find_objects(owned, len(middles))):
        if place is None:
            continue
        cell = _cell(owned[place] == number + 1, limits.area_min_px)
        if cell is None:
            continue
        mask, (top, left) = cell
        y, x = place[0].start + top, place[1].start + left
        here = maps[:2, y : y + mask.shape[0], x : x + mask.shape[1]]
        score = float(here[0][mask].mean() * min(1.0, here[1][mask].max()) ** 0.5)
        cells.append(Found(x, y, mask, (float(middles[number, 1]), float(middles[number, 0])), score))
    return cells


def _votes(maps: NDArray[np.float32], rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[np.float32]:
    """Where some pixels say that the middle of their cell is, row and column, shape (N, 2)."""
    way = np.clip(maps[2:4, rows, columns].T * STEP_PX, -FARTHEST_PX, FARTHEST_PX)
    return (np.stack([rows, columns], axis=1) + way).astype(np.float32)


def _middles(maps: NDArray[np.float32], inside: NDArray[np.bool_], least: float) -> NDArray[np.float32]:
    """Row and column of the middles, shape (M, 2), row by row."""
    import cv2

    smooth = cv2.GaussianBlur(maps[1], (5, 5), 1.0)
    highest = cv2.dilate(smooth, np.ones((_PEAK_PX, _PEAK_PX), np.uint8))
    rows, columns = np.nonzero((smooth >= highest) & (smooth >= least) & inside)
    if not len(rows):
        return np.zeros((0, 2), np.float32)
    return _united(_votes(maps, rows, columns), smooth[rows, columns])


def _united(votes: NDArray[np.float32], heights: NDArray[np.float32]) -> NDArray[np.float32]:
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


def _cell(mask: NDArray[np.bool_], area_min_px: int) -> tuple[NDArray[np.bool_], tuple[int, int]] | None:
    """The largest part of a mask with its holes filled, cut to its bounds, and where these begin; None: too small."""
    import cv2
    from scipy import ndimage

    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if count < 2:
        return None
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    left, top, width, height = (int(v) for v in stats[largest, :4])
    part = np.asarray(ndimage.binary_fill_holes(parts[top : top + height, left : left + width] == largest), bool)
    return (part, (top, left)) if int(part.sum()) >= area_min_px else None
