"""Augmentation of outlined cells: crops, zoom, mirrors, turns, flip-paste and copy-paste.

Sources: flip-paste is of the Sartorius solution (its specification, section 4); copy-paste is of Ghiasi et al.,
arXiv 2012.07177. A cell that a border or a pasted cell cuts down to a sliver is dropped here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolens.tasks.detect import BORDER
from cytolens.train.augment_colour import ColourAugment, vary_colour

Pixels = NDArray[np.uint8]
Masks = NDArray[np.bool_]
Part = tuple[Masks, int, int]  # a mask within its bounds (h, w), and its left and top in px
AS_IT_IS = ColourAugment(stain=0, weak=0, gamma=0, white_balance=0, blur=0, resample=0, sharpen=0, noise=0, jpeg=0)


class InstanceAugment(BaseModel):
    """How outlined cells are varied in training. Probabilities are per sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    crop_on_cell: float = Field(default=0.5, ge=0, le=1, description="how often a crop is laid over a cell on purpose")
    zoom: tuple[float, float] = Field(default=(1.0, 1.0), description="px of the crop per px of the network's input")
    flip: float = Field(default=0.5, ge=0, le=1, description="how often mirrored, for each axis")
    quarter_turn: bool = Field(default=True, description="turn by a random number of quarters")
    flip_paste: float = Field(
        default=0.0, ge=0, le=1, description="how often averaged half and half with its mirror; cells of both are kept"
    )
    flip_paste_labels: tuple[str, ...] = Field(
        default=(), description="only in images most of whose cells have one of these labels; empty: in all"
    )
    copy_paste: float = Field(
        default=0.0, ge=0, le=1, description="how often cells of another image of the same kind are pasted in"
    )
    copy_paste_most: int = Field(default=8, ge=1, description="cells pasted at a time, at most")
    least_left: float = Field(default=0.15, ge=0, le=1, description="share of a cell's area that must be left")
    least_px: int = Field(default=8, ge=1, description="area of the smallest cell that is learnt from")
    colour: ColourAugment = Field(default=AS_IT_IS, description="off, because not every image is a stained smear")


@dataclass(frozen=True, slots=True)
class OutlinedField:
    """An image with its outlined cells, each mask kept within its bounds, so that crowded images fit into memory.

    Attributes:
        pixels: uint8 RGB, shape (H, W, 3).
        corners: upper left pixel (x, y) of each patch, shape (G, 2).
        patches: the masks within their bounds, G arrays (h, w).
        classes: shape (G,), int64.
        kind: the class that most of the cells have; −1 where there are none.
        extra: whether it was labelled by a model.
    """

    pixels: Pixels
    corners: NDArray[np.intp]
    patches: tuple[Masks, ...]
    classes: NDArray[np.int64]
    kind: int
    extra: bool = False

    @classmethod
    def of(
        cls, pixels: Pixels, masks: Sequence[Masks], classes: NDArray[np.int64], extra: bool = False
    ) -> OutlinedField:
        """A field from whole masks (G arrays (H, W)), none of them empty."""
        parts = []
        for mask in masks:
            columns, lines = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
            patch = mask[lines[0] : lines[-1] + 1, columns[0] : columns[-1] + 1].copy()
            parts.append((patch, int(columns[0]), int(lines[0])))
        return cls.of_parts(pixels, parts, classes, extra)

    @classmethod
    def of_parts(
        cls, pixels: Pixels, parts: Sequence[Part], classes: NDArray[np.int64], extra: bool = False
    ) -> OutlinedField:
        """A field from masks within their bounds (G), none of them empty."""
        corners = np.array([(x, y) for _, x, y in parts], np.intp).reshape(-1, 2)
        kind = int(np.bincount(classes).argmax()) if len(classes) else -1
        return cls(pixels, corners, tuple(patch for patch, _, _ in parts), classes, kind, extra)


@dataclass(frozen=True, slots=True)
class OutlinedSample:
    """A picture with its outlined cells.

    Attributes:
        pixels: uint8 RGB, shape (H, W, 3).
        masks: shape (G, H, W).
        classes: shape (G,), int64.
        areas: of the whole cells in px of this picture, before anything cut them, shape (G,).
    """

    pixels: Pixels
    masks: Masks
    classes: NDArray[np.int64]
    areas: NDArray[np.float64]

    def boxes(self) -> NDArray[np.float32]:
        """The bounds of the masks as pixel edges, shape (G, 4); four zeros for an empty mask."""
        boxes = np.zeros((len(self.masks), 4), np.float32)
        for row, mask in enumerate(self.masks):
            columns, lines = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
            if len(columns):
                boxes[row] = columns[0], lines[0], columns[-1] + 1, lines[-1] + 1
        return boxes

    def kept(self, keep: NDArray[np.bool_]) -> OutlinedSample:
        """The sample with some of its cells."""
        return replace(self, masks=self.masks[keep], classes=self.classes[keep], areas=self.areas[keep])


def augmented(
    field: OutlinedField,
    crop_px: int,
    settings: InstanceAugment,
    random: Generator,
    *,
    pasted: bool = False,
    donor: Callable[[], OutlinedField | None] = lambda: None,
) -> OutlinedSample:
    """One training sample, `crop_px` square, of a field.

    Args:
        field: what is cropped.
        crop_px: side of the result.
        settings: what to vary.
        random: the source of all chance.
        pasted: whether this kind of image is one that flip-paste is for.
        donor: gives another field for copy-paste, or None; asked only where one is needed.
    """
    sample = flipped_and_turned(_crop(field, crop_px, settings, random), settings, random)
    if random.random() < settings.copy_paste and (other := donor()) is not None:
        given = flipped_and_turned(_crop(other, crop_px, settings, random), settings, random)
        sample = copy_pasted(sample, given, settings, random)
    if pasted and random.random() < settings.flip_paste:
        sample = flip_pasted(sample)
    return replace(sample, pixels=np.ascontiguousarray(vary_colour(sample.pixels, settings.colour, random)))


def without_slivers(sample: OutlinedSample, settings: InstanceAugment) -> OutlinedSample:
    """The sample without cells of which too little is left."""
    left = sample.masks.sum(axis=(1, 2))
    return sample.kept((left >= settings.least_px) & (left >= settings.least_left * sample.areas))


def _crop(field: OutlinedField, crop_px: int, settings: InstanceAugment, random: Generator) -> OutlinedSample:
    """A random square window of a field at a random zoom; what lies outside the field is border."""
    import cv2

    low, high = np.log(settings.zoom)
    side_px = max(1, round(crop_px / float(np.exp(random.uniform(low, high)))))
    x, y = _place(field, side_px, settings, random)
    sample = window(field, x, y, side_px)
    if side_px != crop_px:
        ratio = crop_px / side_px
        sampling = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR
        pixels = cv2.resize(sample.pixels, (crop_px, crop_px), interpolation=sampling)
        masks = np.zeros((len(sample.masks), crop_px, crop_px), bool)
        for row, mask in enumerate(sample.masks):
            masks[row] = cv2.resize(mask.view(np.uint8), (crop_px, crop_px), interpolation=cv2.INTER_NEAREST) > 0
        sample = OutlinedSample(np.asarray(pixels, np.uint8), masks, sample.classes, sample.areas * ratio**2)
    return without_slivers(sample, settings)


def _place(field: OutlinedField, side_px: int, settings: InstanceAugment, random: Generator) -> tuple[int, int]:
    """Upper left corner of a window that lies inside the field as far as it can."""
    size = np.array(field.pixels.shape[1::-1])
    low, high = np.minimum(0, size - side_px), np.maximum(0, size - side_px)
    if len(field.patches) and random.random() < settings.crop_on_cell:
        chosen = int(random.integers(len(field.patches)))
        middle = field.corners[chosen] + np.array(field.patches[chosen].shape[::-1]) // 2
        low, high = np.maximum(low, middle - side_px + 1), np.minimum(high, middle)
    x, y = (int(random.integers(a, b + 1)) for a, b in zip(low, high, strict=True))
    return x, y


def window(field: OutlinedField, x: int, y: int, side_px: int) -> OutlinedSample:
    """The square of a field with its upper left pixel at (x, y), which may lie outside; with all cells it touches."""
    height, width = field.pixels.shape[:2]
    pixels = np.full((side_px, side_px, 3), BORDER, np.uint8)
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = max(x0, min(x + side_px, width)), max(y0, min(y + side_px, height))
    pixels[y0 - y : y1 - y, x0 - x : x1 - x] = field.pixels[y0:y1, x0:x1]
    sizes = np.array([patch.shape[::-1] for patch in field.patches], np.intp).reshape(-1, 2)
    inside = (field.corners < (x + side_px, y + side_px)).all(axis=1) & (field.corners + sizes > (x, y)).all(axis=1)
    rows = np.flatnonzero(inside)
    masks = np.zeros((len(rows), side_px, side_px), bool)
    for mask, row in zip(masks, rows, strict=True):
        left, top = field.corners[row] - (x, y)
        patch = field.patches[row][max(-top, 0) :, max(-left, 0) :]
        part = mask[max(top, 0) :, max(left, 0) :]
        h, w = min(part.shape[0], patch.shape[0]), min(part.shape[1], patch.shape[1])
        part[:h, :w] = patch[:h, :w]
    seen = masks.any(axis=(1, 2))
    areas = np.array([field.patches[row].sum() for row in rows], np.float64)
    return OutlinedSample(pixels, masks[seen], field.classes[rows][seen], areas[seen])


def flipped_and_turned(sample: OutlinedSample, settings: InstanceAugment, random: Generator) -> OutlinedSample:
    """The sample mirrored and turned by chance."""
    if random.random() < settings.flip:
        sample = mirrored(sample)
    if random.random() < settings.flip:
        sample = mirrored(sample, horizontal=False)
    if settings.quarter_turn and (turns := int(random.integers(0, 4))):
        masks = np.rot90(sample.masks, turns, axes=(1, 2))
        sample = replace(sample, pixels=np.rot90(sample.pixels, turns), masks=masks)
    return sample


def mirrored(sample: OutlinedSample, horizontal: bool = True) -> OutlinedSample:
    """The sample's mirror image, left to right or top to bottom."""
    if horizontal:
        return replace(sample, pixels=sample.pixels[:, ::-1], masks=sample.masks[:, :, ::-1])
    return replace(sample, pixels=sample.pixels[::-1], masks=sample.masks[:, ::-1])


def flip_pasted(sample: OutlinedSample) -> OutlinedSample:
    """The sample averaged half and half with its mirror image (rounded down); the cells of both, which may overlap."""
    other = mirrored(sample)
    pixels = ((sample.pixels.astype(np.uint16) + other.pixels) // 2).astype(np.uint8)
    return OutlinedSample(
        pixels,
        np.concatenate([sample.masks, other.masks]),
        np.concatenate([sample.classes, other.classes]),
        np.concatenate([sample.areas, other.areas]),
    )


def copy_pasted(
    sample: OutlinedSample, donor: OutlinedSample, settings: InstanceAugment, random: Generator
) -> OutlinedSample:
    """The sample with some cells of another of the same size on top; the cells beneath lose what is covered."""
    if not len(donor.masks):
        return sample
    count = int(random.integers(1, min(len(donor.masks), settings.copy_paste_most) + 1))
    chosen = random.permutation(len(donor.masks))[:count]
    covered: Masks = np.logical_or.reduce(donor.masks[chosen])
    joined = OutlinedSample(
        np.where(covered[:, :, None], donor.pixels, sample.pixels),
        np.concatenate([sample.masks & ~covered, donor.masks[chosen]]),
        np.concatenate([sample.classes, donor.classes[chosen]]),
        np.concatenate([sample.areas, donor.areas[chosen]]),
    )
    return without_slivers(joined, settings)
