"""The colours of a field's cells, and how they are brought to those of a reference.

Two ways, both beside the plain one of `stain`, which brings the background to white and leaves the dyes as they are:

* Reinhard: mean and deviation of the foreground in CIELAB become the reference's. Source: Reinhard, Ashikhmin, Gooch,
  Shirley, "Color Transfer between Images", IEEE Computer Graphics and Applications 21 (2001).
* Macenko: two dyes are found in optical density, and their colours and amounts become the reference's. Source: Macenko
  et al., "A Method for Normalizing Histology Slides for Quantitative Analysis", ISBI 2009.

Two things differ from the sources, because a blood film is mostly empty. Foreground is what absorbs in any channel: red
cells let red light through, and asking all channels would leave nuclei only. And in Reinhard's way the background keeps
its white, with a smooth passage; the whole picture shifted would colour what is empty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

WHITE = 240.0  # where the background goes: a little room is left for what is brighter
FOREGROUND_DENSITY = 0.15  # Macenko's limit
_LEAST_SHARE = 0.01  # of the pixels looked at, that must be foreground
_LEAST_PIXELS = 20
_LEAST_ANGLE = 0.05  # between the dyes, in radians; nearer ones cannot be told apart
_RATIO_RANGE = (0.5, 2.0)
_STRENGTH_RANGE = (0.25, 4.0)
Triple = tuple[float, float, float]


class ReinhardReference(BaseModel):
    """The foreground's colours that a field is brought to, in CIELAB of 8 bits (L·2.55, a + 128, b + 128).

    The defaults are medians over 300 fields of PBC's train part (CellaVision DM96, May-Gruenwald-Giemsa).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: Triple = (174.7, 143.9, 111.3)
    deviation: Triple = (37.8, 12.9, 16.5)


class MacenkoReference(BaseModel):
    """The dyes that a field is brought to, from optical densities by the natural logarithm.

    The defaults are medians over 300 fields of PBC's train part (CellaVision DM96, May-Gruenwald-Giemsa).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    nuclei: Triple = Field(default=(0.718, 0.623, 0.282), description="R, G, B of the dye that absorbs more red")
    other: Triple = Field(default=(0.418, 0.903, 0.088), description="R, G, B of the other dye")
    most: tuple[float, float] = Field(
        default=(1.01, 2.63), description="amount of each dye that 1 % of the cells exceed"
    )


@dataclass(frozen=True, slots=True)
class FieldColour:
    """The colours of one field's foreground, its background at white.

    Attributes:
        mean, deviation: in CIELAB of 8 bits, shape (3,); None: there is too little foreground.
        vectors: of the two dyes, unit length, the one that absorbs more red first, shape (2, 3); None: too little
            foreground, or one dye only.
        most: amount of each dye that a hundredth of the foreground exceeds, shape (2,); None as `vectors`.
    """

    mean: NDArray[np.floating] | None = None
    deviation: NDArray[np.floating] | None = None
    vectors: NDArray[np.floating] | None = None
    most: NDArray[np.floating] | None = None


@dataclass(frozen=True, slots=True)
class LabShift:
    """Tables of 256 values that move colours in CIELAB of 8 bits.

    Attributes:
        lightness: new L by old L, uint8.
        weight: by L, how much of the move of a and b is made: 0 at the background, 1 in the foreground; float32.
        move: what is added to a and b, by their values, shape (256, 2), float32.
    """

    lightness: NDArray[np.uint8]
    weight: NDArray[np.float32]
    move: NDArray[np.float32]


def measure_colour(sample: NDArray[np.uint8], background: NDArray[np.float64]) -> FieldColour:
    """The colours of the foreground among pixels (N, 3) of a field with this background (3,)."""
    balanced = np.clip(sample * (WHITE / background), 1, 255)
    density = -np.log(balanced / WHITE)
    foreground = density.max(axis=1) >= FOREGROUND_DENSITY
    if foreground.sum() < max(_LEAST_PIXELS, _LEAST_SHARE * len(sample)):
        return FieldColour()
    lab = _lab(np.rint(balanced[foreground]).astype(np.uint8)[None])[0].astype(np.float64)
    if lab.std(axis=0).max() < 1:  # one flat colour is no cells
        return FieldColour()
    density = np.maximum(density[foreground], 0)
    vectors = dyes(density)
    amounts = None if vectors is None else density @ np.linalg.pinv(vectors)
    most = None if amounts is None else np.percentile(amounts, 99, axis=0)
    if most is None or most.min() <= 1e-3:
        vectors = most = None
    return FieldColour(lab.mean(axis=0), lab.std(axis=0), vectors, most)


def dyes(density: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The colours of two dyes, shape (2, 3), from optical densities (N, 3) of stained pixels.

    The plane of the two largest principal directions; in it, the directions that a hundredth of the pixels lie
    beyond on either side. None: all pixels have one colour.
    """
    _, directions = np.linalg.eigh(np.cov(density.T))
    plane = directions[:, [2, 1]]
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    along = density @ plane
    angle = np.arctan2(along[:, 1], along[:, 0])
    low, high = np.percentile(angle, [1, 99])
    if not _LEAST_ANGLE <= high - low < np.pi / 2:
        return None
    ends = np.array([[np.cos(low), np.sin(low)], [np.cos(high), np.sin(high)]]) @ plane.T
    ends = np.maximum(ends, 0)  # a dye does not shine
    ends /= np.linalg.norm(ends, axis=1, keepdims=True)
    return ends[::-1] if ends[0, 0] < ends[1, 0] else ends


def mixing(field: FieldColour, reference: MacenkoReference) -> NDArray[np.float32] | None:
    """The matrix (3, 3) that turns a pixel's density into that under the reference's dyes; None: they are not known."""
    if field.vectors is None or field.most is None:
        return None
    wanted = np.array([reference.nuclei, reference.other], np.float64)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    scale = np.clip(np.array(reference.most) / field.most, *_STRENGTH_RANGE)
    return (wanted.T * scale @ np.linalg.pinv(field.vectors.T)).astype(np.float32)


def lab_shift(field: FieldColour, reference: ReinhardReference) -> LabShift | None:
    """The tables that give the foreground the reference's mean and deviation; None: there is no foreground."""
    if field.mean is None or field.deviation is None:
        return None
    ratio = np.clip(np.array(reference.deviation) / np.maximum(field.deviation, 1), *_RATIO_RANGE)
    value = np.arange(256, dtype=np.float64)[:, None]
    move = (value - field.mean) * ratio + reference.mean - value
    ends = np.array([[WHITE] * 3, [WHITE * np.exp(-FOREGROUND_DENSITY)] * 3])
    white, full = _lab(np.rint(ends).astype(np.uint8)[None])[0, :, 0].astype(np.float64)
    weight = np.clip((white - value[:, 0]) / (white - full), 0, 1)
    lightness = np.rint(np.clip(value[:, 0] + weight * move[:, 0], 0, 255)).astype(np.uint8)
    return LabShift(lightness, weight.astype(np.float32), move[:, 1:].astype(np.float32))


def shifted(pixels: NDArray[np.uint8], shift: LabShift) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) with a white background, moved in CIELAB."""
    import cv2

    lab = _lab(pixels)
    planes = cv2.split(lab)
    weight = cv2.LUT(planes[0], shift.weight)
    moved = [cv2.LUT(planes[0], shift.lightness)]
    for plane, table in zip(planes[1:], shift.move.T, strict=True):
        step = cv2.multiply(weight, cv2.LUT(plane, np.ascontiguousarray(table)))
        moved.append(cv2.add(plane, step, dtype=cv2.CV_8U))
    return np.asarray(cv2.cvtColor(cv2.merge(moved), cv2.COLOR_LAB2RGB), np.uint8)


def restained(
    pixels: NDArray[np.uint8],
    mixing: NDArray[np.floating],
    lamp: NDArray[np.floating],
    *,
    bend: float = 1.0,
    lift: float = 0.5,
) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) under other dyes and another lamp, by Beer and Lambert.

    Args:
        pixels: uint8 RGB, the background at `WHITE`.
        mixing: new densities of R, G, B from the old ones, shape (3, 3).
        lamp: the new background, shape (3,).
        bend: power of the density.
        lift: added to the light at the end; a half rounds to the nearest value.
    """
    import cv2

    density = cv2.transform(cv2.LUT(pixels, _DENSITY), mixing.astype(np.float32))
    if bend != 1.0:
        density = np.sign(density) * np.abs(density) ** np.float32(bend)
    light = cv2.exp(-density) * lamp.astype(np.float32) + np.float32(lift)
    return np.clip(light, 0, 255).astype(np.uint8)


_DENSITY = (-np.log(np.clip(np.arange(256) / WHITE, 1 / 255, None))).astype(np.float32)


def _lab(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import cv2

    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB), np.uint8)
