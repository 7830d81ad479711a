"""Augmentation of single cells for classification."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolens.train.augment_colour import ColourAugment, vary_colour

Pixels = NDArray[np.uint8]


class CropAugment(BaseModel):
    """How crops are varied in training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rotate: bool = Field(default=True, description="turn by any angle; cells have no upright")
    flip: float = Field(default=0.5, ge=0, le=1)
    scale: tuple[float, float] = Field(default=(0.7, 1.3), description="zoom: the context and the size of cells differ")
    aspect: float = Field(
        default=0.08, ge=0, description="largest logarithm of the stretch (pixels are not always square)"
    )
    translate: float = Field(default=0.06, ge=0, description="largest shift of the cell, in sides of the crop")
    erase: float = Field(default=0.0, ge=0, le=1, description="how often a patch is covered by the background")
    colour: ColourAugment = ColourAugment()


def varied(store: Pixels, side_px: int, zoom: float, settings: CropAugment, random: Generator) -> Pixels:
    """A training crop, `side_px` square, from a larger stored picture of the cell.

    Args:
        store: the cell in the middle of its surroundings, square, uint8 RGB.
        side_px: side of the result.
        zoom: pixels of the result per pixel of `store` when nothing is varied.
        settings: what to vary.
        random: the source of all chance.
    """
    import cv2

    angle = random.uniform(0, 2 * np.pi) if settings.rotate else 0.0
    low, high = np.log(settings.scale)
    scale = zoom * np.exp(random.uniform(low, high))
    stretch = np.exp(random.uniform(-1, 1) * settings.aspect / 2)
    mirror = -1.0 if random.random() < settings.flip else 1.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.diag([mirror * stretch * scale, scale / stretch])
    middle = (store.shape[0] - 1) / 2
    shift = random.uniform(-1, 1, 2) * settings.translate * side_px
    offset = (side_px - 1) / 2 + shift - linear @ [middle, middle]
    matrix = np.column_stack([linear, offset])
    source = cv2.GaussianBlur(store, (0, 0), 0.35 / scale) if scale < 0.6 else store
    moved = cv2.warpAffine(source, matrix, (side_px, side_px), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    pixels = vary_colour(np.asarray(moved, np.uint8), settings.colour, random)
    if random.random() < settings.erase:
        pixels = _erased(pixels, random)
    return pixels


def _erased(pixels: Pixels, random: Generator) -> Pixels:
    """The picture with one rectangle of up to a third of the side in the colour of its palest corner."""
    side = pixels.shape[0]
    height, width = (random.uniform(0.1, 0.33, 2) * side).astype(int)
    top, left = random.integers(0, side - height), random.integers(0, side - width)
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    result = pixels.copy()
    result[top : top + height, left : left + width] = corners[corners.sum(axis=1).argmax()]
    return result
