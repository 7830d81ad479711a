"""What of a picture a name rests on: grey squares are laid over it, one after another, and the name is asked for again.

Source: Zeiler, Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014. It needs nothing of a network
but its answers, so it is the same for one network and for several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolens import boxes as box
from cytolens.images import Pixels


class OcclusionSettings(BaseModel):
    """How squares are laid over a cell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    square: float = Field(
        default=0.2, gt=0, le=1, description="side of a square, in sides of what is shown of the cell"
    )
    step: float = Field(default=0.1, gt=0, le=1, description="from one square to the next, in the same measure")


@dataclass(frozen=True, slots=True)
class Occlusion:
    """What covering each part of a cell does to the probability of its name.

    Attributes:
        window: the part of the image that was covered, whole px: x_min, y_min, x_max, y_max.
        drop: mean fall of the probability over the squares that cover a pixel, shape (height, width) of the window;
            negative where the probability rises. Pixels that no square covers have 0.
        before: the probability with nothing covered.
        squares: how many were laid.
    """

    window: tuple[int, int, int, int]
    drop: NDArray[np.float32]
    before: float
    squares: int


def occlusion(
    ask: Callable[[Pixels], float], pixels: Pixels, region: ArrayLike, settings: OcclusionSettings | None = None
) -> Occlusion:
    """Cover one cell bit by bit.

    The squares are grey, as light as the cell's picture is on average: that suggests no dye.

    Args:
        ask: gives the probability of the name in a picture of the same size as `pixels`.
        pixels: the image, uint8 RGB (H, W, 3); it is not changed.
        region: what the classifier is shown of the cell, x_min, y_min, x_max, y_max (4,); may reach beyond the image.
        settings: the squares; None: the defaults.
    """
    settings = settings or OcclusionSettings()
    height, width = pixels.shape[:2]
    x_min, y_min, x_max, y_max = (float(edge) for edge in box.clip(region, width, height)[0])
    left, top = int(np.floor(x_min)), int(np.floor(y_min))
    right, bottom = max(int(np.ceil(x_max)), left + 1), max(int(np.ceil(y_max)), top + 1)
    side = max(right - left, bottom - top)
    square_px = max(1, round(settings.square * side))
    step_px = max(1, round(settings.step * side))
    grey = np.uint8(round(float(pixels[top:bottom, left:right].mean())))
    before = ask(pixels)
    total = np.zeros((bottom - top, right - left))
    times = np.zeros_like(total)
    covered = pixels.copy()
    count = 0
    for y in _starts(bottom - top, square_px, step_px):
        for x in _starts(right - left, square_px, step_px):
            part = np.s_[y : y + square_px, x : x + square_px]
            own = covered[top:bottom, left:right]
            kept = own[part].copy()
            own[part] = grey
            fall = before - ask(covered)
            own[part] = kept
            total[part] += fall
            times[part] += 1
            count += 1
    drop = np.divide(total, times, out=np.zeros_like(total), where=times > 0)
    return Occlusion((left, top, right, bottom), drop.astype(np.float32), before, count)


def _starts(length: int, square_px: int, step_px: int) -> Iterator[int]:
    """Where squares begin along one side: each step from the start, and the last one at the end."""
    last = max(length - square_px, 0)
    yield from range(0, last, step_px)
    yield last
