"""Tiles: large images in pieces the detector was made for, joined again without seams.

A detector knows cells of a certain size in its input. An image that shows many more cells than a
usual field would shrink them below that size, so it is cut into overlapping tiles. The red cell,
7 to 8 µm nearly everywhere, is the ruler by which the size of a tile is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens.tasks.detect import DetectOutput, Findings

OVERLAP = 0.25  # of a tile's side; more than the largest cell in it


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of the image: x, y, width, height in px."""

    x: int
    y: int
    width: int
    height: int

    @property
    def shift(self) -> NDArray[np.float32]:
        """What to add to a box of the window to place it in the image, shape (4,)."""
        return np.array([self.x, self.y, self.x, self.y], np.float32)

    def of(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The window's part of an image (H, W, 3)."""
        return pixels[self.y : self.y + self.height, self.x : self.x + self.width]


def sampled(size_wh: tuple[int, int], side_px: int) -> list[Window]:
    """Windows of at most `side_px` in the middle of an image, then in the middles of its quarters."""
    width, height = min(side_px, size_wh[0]), min(side_px, size_wh[1])
    spare_x, spare_y = size_wh[0] - width, size_wh[1] - height
    places = [(2, 2), (1, 1), (3, 1), (1, 3), (3, 3)]
    return list(dict.fromkeys(Window(spare_x * x // 4, spare_y * y // 4, width, height) for x, y in places))


def windows(size_wh: tuple[int, int], tile_px: int) -> list[Window]:
    """Windows of at most `tile_px` that cover the image, evenly spread, with at least `OVERLAP`."""

    def starts(length: int) -> list[int]:
        if length <= tile_px:
            return [0]
        step = tile_px * (1 - OVERLAP)
        count = int(np.ceil((length - tile_px) / step)) + 1
        return np.linspace(0, length - tile_px, count).round().astype(int).tolist()

    width, height = min(size_wh[0], tile_px), min(size_wh[1], tile_px)
    return [Window(x, y, width, height) for y in starts(size_wh[1]) for x in starts(size_wh[0])]


def kept(
    boxes: NDArray[np.float32],
    classes: NDArray[np.integer],
    scores: NDArray[np.float32],
    cut_off: NDArray[np.bool_],
    iou_limit: float,
) -> NDArray[np.intp]:
    """Rows to keep of findings from overlapping windows, best first.

    A cell cut by a window's inner border is found whole in the neighbouring window, so a cut finding
    is dropped when a whole one of its label covers most of it; then one suppression over all.

    Args:
        boxes: in px of the image, shape (N, 4).
        classes, scores: shape (N,).
        cut_off: which findings touch an inner border of their window, shape (N,).
        iou_limit: of two findings of one label that overlap more, one stays.
    """
    drop = np.zeros(len(boxes), bool)
    for kind in np.unique(classes[cut_off]):
        pieces = np.flatnonzero(cut_off & (classes == kind))
        others = np.flatnonzero(~cut_off & (classes == kind))
        if len(others):
            drop[pieces] = _covered(boxes[pieces], boxes[others])
    left = np.flatnonzero(~drop)
    return left[box.non_maximum_suppression(boxes[left], scores[left], min(iou_limit, 0.5), classes[left])]


def joined(parts: Sequence[tuple[Window, Findings]], size_wh: tuple[int, int], settings: DetectOutput) -> Findings:
    """The findings of overlapping windows as findings of the image."""
    boxes = np.concatenate([found.boxes + window.shift for window, found in parts])
    cut_off = np.concatenate([touches_inner_border(found.boxes + w.shift, w, size_wh) for w, found in parts])
    classes = np.concatenate([found.classes for _, found in parts])
    scores = np.concatenate([found.scores for _, found in parts])
    told = {
        column: np.concatenate([found.attributes[column] for _, found in parts]) for column in parts[0][1].attributes
    }
    keep = kept(boxes, classes, scores, cut_off, settings.nms_iou)[: settings.most * len(parts)]
    return Findings(boxes, classes, scores, told).kept(keep)


def touches_inner_border(boxes: NDArray[np.float32], window: Window, size_wh: tuple[int, int]) -> NDArray[np.bool_]:
    """Which boxes, in px of the image, end at a border of the window that is not one of the image."""
    slack = 2.0
    left = (boxes[:, 0] <= window.x + slack) & (window.x > 0)
    top = (boxes[:, 1] <= window.y + slack) & (window.y > 0)
    right = (boxes[:, 2] >= window.x + window.width - slack) & (window.x + window.width < size_wh[0])
    bottom = (boxes[:, 3] >= window.y + window.height - slack) & (window.y + window.height < size_wh[1])
    return left | top | right | bottom


def _covered(pieces: NDArray[np.float32], others: NDArray[np.float32], share: float = 0.6) -> NDArray[np.bool_]:
    """Which pieces lie mostly in one of the others; in blocks, so that a slide's worth fits in memory."""
    block = max(1, 4_000_000 // max(len(others), 1))
    parts = [
        (box.overlap_share(pieces[i : i + block], others) > share).any(axis=1) for i in range(0, len(pieces), block)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def tile_from_ruler(red_cell_px: float, side_px: int, wanted_px: float) -> int:
    """Side of a tile in which a red cell of `red_cell_px` becomes `wanted_px` of the network's input."""
    return max(side_px // 4, round(side_px * red_cell_px / wanted_px))
