"""Augmentation of whole fields for detection: mosaic, affine map, mixup, flips and quarter turns.

Source: the YOLOX recipe (arXiv 2107.08430, section 2.1). A box that a border cuts down to a sliver
is dropped here (`least_left`), which the reference keeps.

Whether a cell that the picture's border cuts is annotated is a habit of the annotators. Cells that an augmentation cuts
know nothing of it: shown as cells they teach to find slivers that nobody boxes, shown as background to overlook what
others box. `least_taught` takes them out of the lesson, and `as_predicted` shows the borders that there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolens import boxes as box
from cytolens.tasks.detect import BORDER
from cytolens.train.augment_colour import ColourAugment, vary_colour

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class FieldSample:
    """A field with its annotations, in its own pixels.

    Attributes:
        pixels: uint8 RGB, shape (H, W, 3).
        boxes: shape (G, 4), float32.
        classes: shape (G,), int64.
        ignored: which truths are not scored, shape (G,), bool.
        incomplete: which classes are not annotated exhaustively, shape (C,), bool.
        values: index of each attribute's value or −1, shape (G, A); A is 0 where attributes are not learnt.
        sides_px: root of each box's area in px of the network's input as prediction shows the field, shape (G,); what
            scales the field afterwards leaves it as it is.
        rulers_px: diameter of a red cell of each one's field in the same px, shape (G,); 0: not known.
        regions: what attributes are read from, shape (G, 4); None: the boxes.
    """

    pixels: Pixels
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    incomplete: NDArray[np.bool_]
    values: NDArray[np.int8]
    sides_px: NDArray[np.float32]
    rulers_px: NDArray[np.float32]
    regions: NDArray[np.float32] | None = None

    def kept(self, keep: NDArray[np.bool_]) -> FieldSample:
        """The sample with some of its truths."""
        return replace(
            self,
            boxes=self.boxes[keep],
            classes=self.classes[keep],
            ignored=self.ignored[keep],
            values=self.values[keep],
            sides_px=self.sides_px[keep],
            rulers_px=self.rulers_px[keep],
        )

    @classmethod
    def together(cls, pixels: Pixels, parts: Sequence[FieldSample]) -> FieldSample:
        """One sample of these pixels with the truths of several, whose boxes are in them already."""
        return cls(
            pixels,
            np.concatenate([part.boxes for part in parts]),
            np.concatenate([part.classes for part in parts]),
            np.concatenate([part.ignored for part in parts]),
            np.logical_or.reduce([part.incomplete for part in parts]),
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.sides_px for part in parts]),
            np.concatenate([part.rulers_px for part in parts]),
        )


class FieldAugment(BaseModel):
    """How fields are varied in training. Probabilities are per sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mosaic: float = Field(default=0.5, ge=0, le=1, description="how often four fields are joined")
    mosaic_scale: tuple[float, float] = Field(default=(0.5, 1.5), description="zoom after the joining")
    mixup: float = Field(default=0.0, ge=0, le=1, description="how often a mosaic is averaged with another field")
    mixup_scale: tuple[float, float] = (0.5, 1.5)
    scale: tuple[float, float] = Field(default=(0.7, 1.4), description="zoom of a field that is not in a mosaic")
    rotate_deg: float = Field(default=10.0, ge=0, description="largest turn")
    shear_deg: float = Field(default=2.0, ge=0)
    translate: float = Field(default=0.1, ge=0, description="largest shift, in sides of the input")
    flip: float = Field(default=0.5, ge=0, le=1, description="how often mirrored, for each axis")
    quarter_turn: bool = Field(default=True, description="turn by a random number of quarters")
    as_predicted: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="how often a field that is not in a mosaic is shown whole, as in prediction",
    )
    least_left: float = Field(default=0.1, ge=0, le=1, description="share of a box's area that must be left")
    least_taught: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of a box's area that must be left for it to teach; with less the place is not scored",
    )
    colour: ColourAugment = ColourAugment()


Load = Callable[[int], FieldSample]


def augmented(
    index: int, count: int, load: Load, side_px: int, settings: FieldAugment, random: Generator, closing: bool
) -> FieldSample:
    """One training sample, `side_px` square.

    Args:
        index: the field that is asked for.
        count: how many fields there are to mix with.
        load: gives a field by its index.
        side_px: side of the result.
        settings: what to vary.
        random: the source of all chance.
        closing: in the closing epochs there is neither mosaic nor mixup.
    """
    if not closing and random.random() < settings.mosaic:
        others = random.integers(0, count, 3).tolist()
        sample = _mosaic([load(i) for i in (index, *others)], side_px, settings, random)
        if random.random() < settings.mixup:
            sample = _mixup(sample, load(int(random.integers(0, count))), settings, random)
    else:
        sample = _single(load(index), side_px, settings, random)
    sample = _flipped_and_turned(sample, settings, random)
    return replace(sample, pixels=vary_colour(sample.pixels, settings.colour, random))


def with_regions(sample: FieldSample, least_iou: float, random: Generator) -> FieldSample:
    """The sample with regions for its attributes: its boxes, moved a little as a detector's are."""
    side_px = sample.pixels.shape[0]
    moved = box.jittered(sample.boxes, least_iou, random)
    grown = np.sqrt(box.areas(moved) / np.maximum(box.areas(sample.boxes), 1e-9))
    regions = box.clip(moved, side_px, side_px).astype(np.float32)
    return replace(sample, regions=regions, sides_px=(sample.sides_px * grown).astype(np.float32))


def _warped(sample: FieldSample, matrix: NDArray[np.float64], side_px: int, settings: FieldAugment) -> FieldSample:
    """The sample through an affine map (2, 3) of pixel edges onto a square."""
    import cv2

    centre = matrix.copy()
    centre[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
    shrink = np.sqrt(abs(np.linalg.det(matrix[:, :2]))) < 0.6
    pixels = cv2.GaussianBlur(sample.pixels, (0, 0), 0.8) if shrink else sample.pixels
    pixels = cv2.warpAffine(pixels, centre, (side_px, side_px), flags=cv2.INTER_LINEAR, borderValue=(BORDER,) * 3)
    low, high = sample.boxes[:, :2], sample.boxes[:, 2:]
    corners = np.stack([low, np.c_[high[:, :1], low[:, 1:]], high, np.c_[low[:, :1], high[:, 1:]]], axis=1)
    moved = corners @ matrix[:, :2].T + matrix[:, 2]
    # The hull of a turned box is larger than the cell. Cells are round, so the box of the inscribed ellipse fits.
    middle = moved.mean(axis=1)
    half = np.sqrt(((moved[:, 1] - moved[:, 0]) / 2) ** 2 + ((moved[:, 3] - moved[:, 0]) / 2) ** 2)
    whole = np.concatenate([middle - half, middle + half], axis=1)
    return _cut(replace(sample, pixels=pixels, boxes=whole.astype(np.float32)), side_px, settings)


def _cut(sample: FieldSample, side_px: int, settings: FieldAugment) -> FieldSample:
    """Boxes clipped to the picture; those of which too little is left are dropped, or not scored."""
    clipped = box.clip(sample.boxes, side_px, side_px)
    left = box.areas(clipped) / np.maximum(box.areas(sample.boxes), 1e-9)
    keep = (left > 0) & (left >= settings.least_left) & (box.sizes_wh(clipped) > 1).all(axis=1)
    ignored = sample.ignored | (left < settings.least_taught)
    return replace(sample, boxes=clipped, ignored=ignored).kept(keep)


def _affine(
    about: tuple[float, float], to: tuple[float, float], scale: float, settings: FieldAugment, random: Generator
) -> NDArray[np.float64]:
    """A random turn and shear with a given zoom that takes the point `about` to the point `to`."""
    turn = np.deg2rad(random.uniform(-1, 1) * settings.rotate_deg)
    shear = np.tan(np.deg2rad(random.uniform(-1, 1, 2) * settings.shear_deg))
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    linear = np.array([[1, shear[0]], [shear[1], 1]]) @ linear
    return np.column_stack([linear, np.asarray(to) - linear @ np.asarray(about)])


def _single(sample: FieldSample, side_px: int, settings: FieldAugment, random: Generator) -> FieldSample:
    height, width = sample.pixels.shape[:2]
    fit = side_px / max(height, width)
    if settings.as_predicted and random.random() < settings.as_predicted:
        return _warped(sample, np.array([[fit, 0, 0], [0, fit, 0]]), side_px, settings)
    low, high = np.log(settings.scale)
    shift = random.uniform(-1, 1, 2) * settings.translate * side_px
    to = (side_px / 2 + shift[0], side_px / 2 + shift[1])
    matrix = _affine((width / 2, height / 2), to, fit * np.exp(random.uniform(low, high)), settings, random)
    return _warped(sample, matrix, side_px, settings)


def _mosaic(samples: list[FieldSample], side_px: int, settings: FieldAugment, random: Generator) -> FieldSample:
    """Four fields about a random joint on a canvas of twice the side, seen through an affine map."""
    import cv2

    joint = random.uniform(0.5, 1.5, 2) * side_px
    canvas = np.full((2 * side_px, 2 * side_px, 3), BORDER, np.uint8)
    parts: list[FieldSample] = []
    for corner, sample in enumerate(samples):
        height, width = sample.pixels.shape[:2]
        fit = side_px / max(height, width)
        inner = (max(1, int(width * fit)), max(1, int(height * fit)))
        left = int(joint[0]) - (inner[0] if corner % 2 == 0 else 0)
        top = int(joint[1]) - (inner[1] if corner < 2 else 0)
        scaled = cv2.resize(sample.pixels, inner, interpolation=cv2.INTER_AREA if fit < 0.6 else cv2.INTER_LINEAR)
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + inner[0], 2 * side_px), min(top + inner[1], 2 * side_px)
        if x1 > x0 and y1 > y0:
            canvas[y0:y1, x0:x1] = scaled[y0 - top : y1 - top, x0 - left : x1 - left]
        ratio = np.array([inner[0] / width, inner[1] / height] * 2, np.float32)
        placed = sample.boxes * ratio + np.array([left, top] * 2, np.float32)
        parts.append(_cut(replace(sample, boxes=placed), 2 * side_px, settings))
    joined = FieldSample.together(canvas, parts)
    low, high = np.log(settings.mosaic_scale)
    shift = random.uniform(-1, 1, 2) * settings.translate * side_px
    to = (side_px / 2 + shift[0], side_px / 2 + shift[1])
    matrix = _affine((side_px, side_px), to, np.exp(random.uniform(low, high)), settings, random)
    return _warped(joined, matrix, side_px, settings)


def _mixup(sample: FieldSample, other: FieldSample, settings: FieldAugment, random: Generator) -> FieldSample:
    """The average of a sample and another field that has cells; both keep their truths."""
    if not len(other.boxes):
        return sample
    side_px = sample.pixels.shape[0]
    calm = settings.model_copy(
        update={"scale": settings.mixup_scale, "rotate_deg": 0.0, "shear_deg": 0.0, "as_predicted": 0.0}
    )
    second = _single(other, side_px, calm, random)
    pixels = ((sample.pixels.astype(np.uint16) + second.pixels) // 2).astype(np.uint8)
    return FieldSample.together(pixels, (sample, second))


def _flipped_and_turned(sample: FieldSample, settings: FieldAugment, random: Generator) -> FieldSample:
    from cytolens.views import View, flip, quarter_turn

    side_px = sample.pixels.shape[0]
    size = (side_px, side_px)
    view, pixels = View.whole(size), sample.pixels
    if random.random() < settings.flip:
        view, pixels = view.then(flip(size)), pixels[:, ::-1]
    if random.random() < settings.flip:
        view, pixels = view.then(flip(size, horizontal=False)), pixels[::-1]
    if settings.quarter_turn and (turns := int(random.integers(0, 4))):
        view, pixels = view.then(quarter_turn(size, turns)), np.rot90(pixels, turns)
    return replace(sample, pixels=np.ascontiguousarray(pixels), boxes=view.forward_boxes(sample.boxes))
