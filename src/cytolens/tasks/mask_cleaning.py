"""From soft outlines to cells that do not overlap: pasting soft masks into the image, and cleaning what comes of it.

The steps and their order are those of the 11th place of the Sartorius competition, with three differences: all masks
below the size limit go, not only the smallest; the limit holds again after overlaps are gone, and of a cell that fell
apart the largest part stays; an image without cells is an empty answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cytolens import boxes as box
from cytolens import masks
from cytolens.formats.run_lengths import code_of_positions, positions_of_code, positions_of_part
from cytolens.labels import LabelSet
from cytolens.tasks.image_types import majority
from cytolens.tasks.segment import MaskCleaning, Outlines, SegmentOutput, SoftOutlines

_AT_ONCE = 256  # masks whose neighbours are compared in one call of the codec


@dataclass(frozen=True, slots=True)
class _Part:
    """The pixels of one mask, as far as its bounds: boolean (h, w), the upper left one at (x, y) of the image."""

    x: int
    y: int
    pixels: masks.Mask

    @property
    def area(self) -> int:
        return int(np.count_nonzero(self.pixels))

    @property
    def window(self) -> tuple[slice, slice]:
        """Where it lies in the image."""
        height, width = self.pixels.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)

    def of(self, pixels: masks.Mask) -> _Part:
        """Other pixels in the same frame, cut to their bounds."""
        rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
        if not len(rows):
            return _Part(self.x, self.y, np.zeros((0, 0), bool))
        inner = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return _Part(self.x + int(columns[0]), self.y + int(rows[0]), inner)

    def code(self, size_hw: tuple[int, int]) -> bytes:
        wh = (size_hw[1], size_hw[0])
        return code_of_positions(positions_of_part(self.pixels, self.x, self.y, wh), wh)


# -- pasting --------------------------------------------------------------------------------------


def pasted(soft: SoftOutlines, threshold: ArrayLike, pasting: str = "exact") -> list[bytes]:
    """The soft masks laid into the image and cut off, as run-length codes (N); a mask may be empty.

    Args:
        soft: what was said of one image.
        threshold: a pixel belongs to a cell above it, 0 … 1; one for all cells, or one for each (N).
        pasting: "exact" or "whole-pixels", see `values_in_image`.
    """
    limits = np.broadcast_to(np.asarray(threshold, np.float32) * np.float32(255), len(soft.boxes))
    codes = []
    for patch, corners, limit in zip(soft.patches, soft.boxes, limits, strict=True):
        values, x, y = values_in_image(patch, corners, soft.size_hw, pasting)
        codes.append(_Part(x, y, values > limit).code(soft.size_hw))
    return codes


def values_in_image(
    patch: ArrayLike, corners: ArrayLike, size_hw: tuple[int, int], pasting: str = "exact"
) -> tuple[NDArray[np.float32], int, int]:
    """A soft mask sampled at the pixels of an image, and the pixel (x, y) at which the upper left value lies.

    Values between the centres of bins are interpolated, and fall to 0 within a bin outside the outermost centres.
    With "exact" bins are equal parts of the box, wherever its edges are. With "whole-pixels" the values are those of
    torchvision's `paste_masks_in_image`: the box is rounded to pixels and made one pixel longer, which suits networks
    that come from there.

    Args:
        patch: shape (P, P).
        corners: the box in px of the image, shape (4,).
        size_hw: of the image.
        pasting: "exact" or "whole-pixels".

    Returns:
        Values in the patch's unit, float32, shape (h, w), x and y; (0, 0) values where nothing lies in the image.
    """
    framed = np.pad(np.asarray(patch, np.float32), 1)
    x_min, y_min, x_max, y_max = np.asarray(corners, np.float32).tolist()
    places = _whole_pixel_places if pasting == "whole-pixels" else _exact_places
    x, columns = places(x_min, x_max, size_hw[1], len(framed))
    y, rows = places(y_min, y_max, size_hw[0], len(framed))
    return _between(_between(framed, rows).T, columns).T, x, y


def _exact_places(low: float, high: float, limit: int, bins: int) -> tuple[int, NDArray[np.float32]]:
    """The first pixel along one axis, and where its centre and those after it lie among the framed bins (n,)."""
    wide = (high - low) / (bins - 2)
    if wide <= 0:
        return 0, np.zeros(0, np.float32)
    first = max(0, int(np.floor(low - wide / 2)))
    until = min(limit, int(np.ceil(high + wide / 2)))
    centres = np.arange(first, until) + 0.5
    return first, ((centres - low) / wide + 0.5).astype(np.float32)


def _whole_pixel_places(low: float, high: float, limit: int, bins: int) -> tuple[int, NDArray[np.float32]]:
    """As `_exact_places`, by the arithmetic of torchvision: single precision, rounded towards zero, one longer."""
    half = np.float32(high - low) * np.float32(0.5) * np.float32(bins / (bins - 2))
    centre = np.float32(high + low) * np.float32(0.5)
    start, end = int(centre - half), int(centre + half)
    length = max(end - start + 1, 1)
    first, until = max(start, 0), min(end + 1, limit)
    places = (np.arange(first, until) - start + 0.5) * (bins / length) - 0.5
    return first, places.astype(np.float32)


def _between(values: NDArray[np.float32], places: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of `values` (bins, m) interpolated at fractional row numbers (n), shape (n, m); the ends go on."""
    at = np.clip(places, 0, len(values) - 1)
    below = np.minimum(at.astype(np.intp), len(values) - 2)
    share = (at - below).astype(np.float32)[:, None]
    return np.asarray(values[below] + (values[below + 1] - values[below]) * share, np.float32)


# -- cleaning -------------------------------------------------------------------------------------


def cleaned(soft: SoftOutlines, labels: LabelSet, output: SegmentOutput) -> Outlines:
    """Cells without overlaps from soft outlines; see `cleaned_masks`.

    Args:
        soft: what was said of one image.
        labels: class indices are places in its names.
        output: the steps, for all cell types or for each.
    """
    classes = spoken_for(soft.classes, soft.scores, output)
    codes = cut_off(soft, classes, labels, output)
    return cleaned_masks(codes, classes, soft.scores, soft.size_hw, labels, output)


def cut_off(soft: SoftOutlines, classes: NDArray[np.intp], labels: LabelSet, output: SegmentOutput) -> list[bytes]:
    """The soft masks in the image, each cut off where its class (N) says, as run-length codes (N); see `pasted`."""
    limits = [output.cleaning_of(labels.names[index]).mask_threshold for index in classes.tolist()]
    return pasted(soft, np.array(limits, np.float32), output.pasting)


def cleaned_masks(
    codes: Sequence[bytes],
    classes: ArrayLike,
    scores: ArrayLike,
    size_hw: tuple[int, int],
    labels: LabelSet,
    output: SegmentOutput,
) -> Outlines:
    """Cells without overlaps from masks that may overlap, be empty or be too small.

    Of two masks that overlap too much the lower goes; small ones go; each may be redrawn; each loses the pixels that
    higher ones hold; of what falls apart the largest part stays (pixels that touch at a corner hold together); what is
    small now goes, too. Every cell goes by the settings of its label: of a pair, those of the lower one count.

    Cells whose score is too low to count go through the same steps after all that count, whatever their label, so they
    never take a pixel from one that counts.

    Args:
        codes: masks as run-length codes in the frame of the image (N).
        classes: class indices, places in the names of `labels`, shape (N,).
        scores: shape (N,).
        size_hw: of the image.
        labels: the label set.
        output: the steps, for all cell types or for each.

    Raises:
        ValueError: a code does not describe an image of that size.
    """
    scores = np.asarray(scores, np.float32)
    classes = spoken_for(np.asarray(classes, np.intp), scores, output)
    steps = [output.cleaning_of(labels.names[index]) for index in classes.tolist()]
    counted = scores >= np.array([step.score_min for step in steps], np.float32)
    wh = (size_hw[1], size_hw[0])
    parts = [_part(positions_of_code(code, wh), size_hw[0]) for code in codes]
    bounds = np.array([_bounds(part) for part in parts], np.float32).reshape(-1, 4)
    # Equal scores keep the order of the rows.
    order = np.lexsort((np.arange(len(scores)), -scores, ~counted))
    order = order[[parts[row].area > 0 for row in order.tolist()]] if len(order) else order
    order = _suppressed(codes, bounds, order, [step.mask_nms_iou for step in steps], size_hw)
    kept: dict[int, _Part] = {}
    for row in order.tolist():
        if parts[row].area >= steps[row].area_min_px:
            kept[row] = _redrawn(parts[row], steps[row])
    done = _apart(kept, steps, size_hw)
    rows = np.array(sorted(done, key=lambda row: (-scores[row], row)), np.intp)
    return Outlines(
        boxes=np.array([_bounds(done[row]) for row in rows.tolist()], np.float32).reshape(-1, 4),
        classes=classes[rows],
        scores=scores[rows],
        masks=[done[row].code(size_hw) for row in rows.tolist()],
        counted=counted[rows],
    )


def similar_pairs(
    codes: Sequence[bytes], bounds: ArrayLike, size_hw: tuple[int, int], iou_limit: float
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Pairs of masks whose IoU is above a limit, once each: first and second row, and the IoU, each of shape (P,).

    Only masks whose bounds share some x are compared, in batches, so that images with very many cells take no table
    of all pairs.

    Args:
        codes: masks in the frame of the image (N).
        bounds: their boxes, shape (N, 4).
        size_hw: of the image.
        iou_limit: at least 0.
    """
    corners = box.as_boxes(bounds)
    by_left = np.argsort(corners[:, 0], kind="stable")
    left, right = corners[by_left, 0], corners[by_left, 2]
    firsts, seconds, ious = [np.zeros(0, np.intp)], [np.zeros(0, np.intp)], [np.zeros(0)]
    for start in range(0, len(by_left), _AT_ONCE):
        end = min(start + _AT_ONCE, len(by_left))
        until = max(end, int(np.searchsorted(left, right[start:end].max(), "left")))
        some, others = by_left[start:end], by_left[start:until]
        table = masks.iou([codes[row] for row in some], [codes[row] for row in others], size_hw)
        one, other = np.nonzero(np.triu(table > iou_limit, 1))
        firsts.append(some[one])
        seconds.append(others[other])
        ious.append(table[one, other])
    return np.concatenate(firsts), np.concatenate(seconds), np.concatenate(ious)


def spoken_for(classes: NDArray[np.intp], scores: NDArray[np.float32], output: SegmentOutput) -> NDArray[np.intp]:
    """The classes (N) that the cells of an image go by: their own, or with `one_label` the image's."""
    one = majority(classes, scores, output.type_score_min) if output.one_label else None
    return classes if one is None else np.full_like(classes, one)


def redrawn_filled(pixels: ArrayLike) -> masks.Mask:
    """A mask (h, w) whose every contour, inner ones too, is drawn anew by a fill that is made for convex polygons.

    Holes are filled and hollows damaged, as in annotations that were once drawn so.
    """
    import cv2

    given = np.ascontiguousarray(np.asarray(pixels, bool).view(np.uint8))
    contours, _ = cv2.findContours(given, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    canvas = np.zeros_like(given)
    for contour in contours:
        cv2.fillConvexPoly(canvas, contour, (1,))
    return canvas.astype(bool)


def largest_part(pixels: ArrayLike) -> masks.Mask:
    """The largest connected part of a mask (h, w); pixels that touch at a corner are connected."""
    import cv2

    given = np.asarray(pixels, bool)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(given.astype(np.uint8), connectivity=8)
    if count <= 2:
        return given
    return parts == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())


def _part(positions: NDArray[np.int64], height: int) -> _Part:
    """The pixels of a mask from their numbers, column by column."""
    if not len(positions):
        return _Part(0, 0, np.zeros((0, 0), bool))
    columns, rows = np.divmod(positions, height)
    x, y = int(columns[0]), int(rows.min())
    pixels = np.zeros((int(rows.max()) - y + 1, int(columns[-1]) - x + 1), bool)
    pixels[rows - y, columns - x] = True
    return _Part(x, y, pixels)


def _bounds(part: _Part) -> tuple[float, float, float, float]:
    height, width = part.pixels.shape
    return (part.x, part.y, part.x + width, part.y + height) if part.pixels.size else (0, 0, 0, 0)


def _suppressed(
    codes: Sequence[bytes],
    bounds: NDArray[np.float32],
    order: NDArray[np.intp],
    iou_limits: Sequence[float],
    size_hw: tuple[int, int],
) -> NDArray[np.intp]:
    """The rows of `order` (best first) that stay; a pair is judged by the limit of the row that comes later."""
    if not len(order):
        return order
    limits = np.array([iou_limits[row] for row in order.tolist()])
    one, other, iou = similar_pairs([codes[row] for row in order], bounds[order], size_hw, float(limits.min()))
    near = iou > limits[np.maximum(one, other)]
    return order[box.survivors(np.arange(len(order)), one[near], other[near])]


def _redrawn(part: _Part, step: MaskCleaning) -> _Part:
    return part.of(redrawn_filled(part.pixels)) if step.redraw == "filled" else part


def _apart(parts: dict[int, _Part], steps: Sequence[MaskCleaning], size_hw: tuple[int, int]) -> dict[int, _Part]:
    """The masks, best first, without what those before them hold; what is left of none, or of too little, is gone."""
    # What higher masks held before they lost pixels themselves covers the same pixels as what is left of them.
    taken = np.zeros(size_hw, bool)
    done = {}
    for row, part in parts.items():
        free = part.pixels & ~taken[part.window]
        taken[part.window] |= part.pixels
        left = part.of(largest_part(free) if steps[row].parts == "largest" else free)
        if left.area >= max(1, steps[row].area_min_px):
            done[row] = left
    return done
