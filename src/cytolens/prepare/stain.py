"""Field normalisation: other people's stain, camera and white balance brought to one look.

Light through a stained film follows Beer and Lambert: value = background · exp(−density). So two
numbers say most of what differs between laboratories: the colour of the empty background (lamp,
white balance, exposure) and how strong the stain is. Both are estimated once per field; the
normalised field has a white background and a fixed strength. The map is one table of 256 values
per channel, so it costs next to nothing and is the same in training and prediction. Where that is not enough, the
dyes themselves can be brought to those of a reference (`stain_colour`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cytolens.prepare.stain_colour import (
    WHITE,
    FieldColour,
    LabShift,
    MacenkoReference,
    ReinhardReference,
    lab_shift,
    measure_colour,
    mixing,
    restained,
    shifted,
)

_SAMPLES = 20_000  # pixels looked at; estimates do not get better beyond
_STRENGTH_RANGE = (0.5, 4.0)


class StainSettings(BaseModel):
    """How a field is normalised before a network sees it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    background: bool = Field(default=True, description="bring the background to white")
    density: float | None = Field(
        default=None,
        gt=0,
        description="optical density that the darkest hundredth of a field is scaled to; None: not scaled",
    )
    method: Literal["background", "reinhard", "macenko"] = Field(
        default="background",
        description="what else is brought to a reference: background: nothing; reinhard: mean and deviation of the "
        "cells' colours; macenko: the two dyes",
    )
    reinhard: ReinhardReference = ReinhardReference()
    macenko: MacenkoReference = MacenkoReference()

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.method != "background" and (not self.background or self.density is not None):
            raise ValueError(
                f"method = {self.method} brings background and strength to its reference itself; it goes with "
                "background = true and without density"
            )
        return self


@dataclass(frozen=True, slots=True)
class FieldStain:
    """What was found in one field.

    Attributes:
        background: value of the empty background per channel (R, G, B), float, shape (3,).
        density: optical density (natural logarithm, green channel) that a hundredth of the pixels exceeds.
        spread: share of the pixels that look like background.
        colour: of what is not background; None: not measured.
    """

    background: NDArray[np.float64]
    density: float
    spread: float
    colour: FieldColour | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """How the pixels of one field are normalised.

    Attributes:
        lookup: new value by old value and channel, shape (256, 3), uint8.
        mixing: what is done to densities after it, shape (3, 3); None: nothing.
        shift: what is done in CIELAB after it; None: nothing.
    """

    lookup: NDArray[np.uint8]
    mixing: NDArray[np.float32] | None = None
    shift: LabShift | None = None


def measure(pixels: NDArray[np.uint8]) -> FieldStain:
    """Estimate background and stain strength of a field (H, W, 3), uint8 RGB."""
    step = max(1, int((pixels.shape[0] * pixels.shape[1] / _SAMPLES) ** 0.5))
    sample = pixels[::step, ::step].reshape(-1, 3)
    darkest_channel = sample.min(axis=1)
    # The very brightest pixels are glare and refraction; the background is the plateau just below.
    top = float(np.percentile(darkest_channel, 97))
    near = (darkest_channel >= 0.9 * top) & (darkest_channel <= 1.03 * top + 1)
    if not near.any():  # the percentile fell between two plateaus that lie far apart
        near = darkest_channel >= top
    background = np.median(sample[near], axis=0).astype(np.float64).clip(8, 255)
    green = np.clip(sample[:, 1].astype(np.float64) / background[1], 1 / 255, None)
    density = float(-np.log(np.percentile(green, 1)))
    # A quarter of these is enough for means, and for hundredths of what is stained.
    colour = measure_colour(sample[::4], background)
    return FieldStain(background, max(density, 1e-3), float(near.mean()), colour)


def table(field: FieldStain, settings: StainSettings) -> NDArray[np.uint8]:
    """The look-up table (256, 3) that normalises a field with these measurements."""
    values = np.arange(256, dtype=np.float64)[:, None] * np.ones(3)
    if not settings.background and settings.density is None:
        return values.astype(np.uint8)  # as it is: a logarithm would lift black
    white = np.full(3, WHITE)
    source = field.background if settings.background else white
    depth = -np.log(np.clip(values / source, 1 / 255, None))
    if settings.density is not None:
        low, high = _STRENGTH_RANGE
        depth = depth * np.clip(settings.density / field.density, low, high)
    return np.rint(np.clip(white * np.exp(-depth), 0, 255)).astype(np.uint8)


def change(field: FieldStain, settings: StainSettings) -> Change:
    """How a field with these measurements is normalised.

    A field without cells, or of one colour, has nothing to bring to a reference: only its background becomes white.
    """
    lookup = table(field, settings)
    if settings.method == "macenko" and field.colour is not None:
        return Change(lookup, mixing=mixing(field.colour, settings.macenko))
    if settings.method == "reinhard" and field.colour is not None:
        return Change(lookup, shift=lab_shift(field.colour, settings.reinhard))
    return Change(lookup)


def normalise(pixels: NDArray[np.uint8], change: Change) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) of a field, changed as `change` says."""
    import cv2

    level = np.asarray(cv2.LUT(pixels, change.lookup[None]), np.uint8)
    if change.mixing is not None:
        return restained(level, change.mixing, np.full(3, WHITE))
    return level if change.shift is None else shifted(level, change.shift)
