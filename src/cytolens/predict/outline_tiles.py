"""Soft outlines of overlapping tiles as the cells of one field: each cell once, and none cut at a seam.

Tiles overlap by a quarter of their side. A cell that is smaller than that lies whole in one of them at least:

1. Of several looks at one cell (masks that overlap by more than half) that one stays in which the cell lies farthest
   from the borders of its tile.
2. A piece, a finding that ends at a border of its tile inside the field, goes where another tile has the cell whole.
3. A cell larger than the overlap may be whole in no tile. Pieces of two tiles that say the same of where both looked
   become one cell: their pixels together, with the name and the score of the piece that shows most of it.

What is left is cleaned once, as the answer for a single picture is: the type of the image, suppression and overlaps are
matters of the field and not of its tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens import masks
from cytolens.formats.run_lengths import code_of_positions, positions_of_code
from cytolens.labels import LabelSet
from cytolens.predict.tiles import Window
from cytolens.tasks.mask_cleaning import cleaned_masks, cut_off, similar_pairs, spoken_for
from cytolens.tasks.segment import Outlines, SegmentOutput, SoftOutlines

_AT_BORDER_PX = 8.0  # a finding that ends so near to a border of its tile may go on behind it
_SAME = 0.5  # masks that overlap more are of one cell
_COVERED = 0.6  # a piece of whose box another finding covers more is one of its cell

Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Findings of two tiles that share pixels: both rows, their IoU, and the pixels that they share, each (P,)."""

    first: Rows
    second: Rows
    iou: NDArray[np.float64]
    shared: NDArray[np.float64]

    def of(self, which: NDArray[np.bool_]) -> _Pairs:
        return _Pairs(self.first[which], self.second[which], self.iou[which], self.shared[which])


def joined(
    parts: Sequence[tuple[Window, SoftOutlines]], size_wh: tuple[int, int], labels: LabelSet, output: SegmentOutput
) -> Outlines:
    """The cells of a field, without overlaps, from what was said of its tiles.

    No more than one value per pixel of the field is held, whatever the number of cells.

    Args:
        parts: the tiles and what was said of each.
        size_wh: of the field.
        labels: class indices are places in its names.
        output: how outlines are read.
    """
    soft = _placed(parts, size_wh)
    tile = np.repeat(np.arange(len(parts)), [len(one.boxes) for _, one in parts])
    codes = cut_off(soft, soft.classes, labels, output)
    depth = np.concatenate([depths(one.boxes + window.shift, window, size_wh) for window, one in parts])
    areas = np.array([masks.area(code) for code in codes], np.float64)
    cut = depth <= _AT_BORDER_PX
    pairs = _across(codes, areas, tile, soft.size_hw)
    stays = _seen_best(pairs, cut, depth, soft.scores) & ~_seen_whole(pairs, cut, areas, soft.boxes)
    windows = [window for window, _ in parts]
    groups = _together(pairs.of(stays[pairs.first] & stays[pairs.second]), cut, tile, codes, windows, soft.size_hw)
    rows = np.flatnonzero(stays)
    # The type of the field is told by cells, each of which speaks once; then it says where soft masks are cut off.
    classes = soft.classes.copy()
    classes[rows] = spoken_for(soft.classes[rows], soft.scores[rows], output)
    if (classes != soft.classes).any():
        codes = cut_off(soft, classes, labels, output)
    whole = dict(zip(rows.tolist(), (codes[row] for row in rows.tolist()), strict=True))
    for group in groups:
        most = max(group, key=lambda row: (areas[row], -row))
        united = np.unique(np.concatenate([positions_of_code(codes[row], size_wh) for row in group]))
        for row in group:
            del whole[row]
        whole[most] = code_of_positions(united, size_wh)
    rows = np.array(sorted(whole), np.intp)
    return cleaned_masks(
        [whole[row] for row in rows.tolist()], classes[rows], soft.scores[rows], soft.size_hw, labels, output
    )


def depths(boxes: NDArray[np.float32], window: Window, size_wh: tuple[int, int]) -> NDArray[np.float32]:
    """How far boxes (N, 4) of a field lie from those borders of their window that are not the field's, in px (N,)."""
    inner = np.array(
        [window.x > 0, window.y > 0, window.x + window.width < size_wh[0], window.y + window.height < size_wh[1]]
    )
    corners = np.array([window.x, window.y, window.x + window.width, window.y + window.height], np.float32)
    away = (boxes - corners) * np.array([1, 1, -1, -1], np.float32)
    return np.where(inner, away, np.inf).min(axis=1, initial=np.inf).astype(np.float32)


def _placed(parts: Sequence[tuple[Window, SoftOutlines]], size_wh: tuple[int, int]) -> SoftOutlines:
    """What was said of the tiles as if it was of the field; a cell may stand there several times."""
    said = [one for _, one in parts]
    return SoftOutlines(
        size_hw=(size_wh[1], size_wh[0]),
        boxes=np.concatenate([one.boxes + window.shift for window, one in parts]),
        classes=np.concatenate([one.classes for one in said]),
        scores=np.concatenate([one.scores for one in said]),
        class_scores=np.concatenate([one.class_scores for one in said]),
        patches=np.concatenate([one.patches for one in said]),
    )


def _across(codes: Sequence[bytes], areas: NDArray[np.float64], tile: Rows, size_hw: tuple[int, int]) -> _Pairs:
    """The pairs of findings of different tiles that share pixels."""
    bounds = np.array([masks.bounds(code, size_hw) for code in codes], np.float32).reshape(-1, 4)
    first, second, iou = similar_pairs(codes, bounds, size_hw, 0.0)
    shared = np.round(iou * (areas[first] + areas[second]) / (1 + iou))
    return _Pairs(first, second, iou, shared).of(tile[first] != tile[second])


def _seen_best(
    pairs: _Pairs, cut: NDArray[np.bool_], depth: NDArray[np.float32], scores: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Which findings (N,) no other tile shows better: of two whole ones of one cell the deeper in its tile stays."""
    same = pairs.of((pairs.iou > _SAME) & ~cut[pairs.first] & ~cut[pairs.second])
    order = np.lexsort((np.arange(len(depth)), -scores, -depth))
    stays = np.zeros(len(depth), bool)
    stays[box.survivors(order, same.first, same.second)] = True
    return stays


def _seen_whole(
    pairs: _Pairs, cut: NDArray[np.bool_], areas: NDArray[np.float64], boxes: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Which findings (N,) are pieces of a cell that another tile has whole."""
    gone = np.zeros(len(cut), bool)
    for piece, other in ((pairs.first, pairs.second), (pairs.second, pairs.first)):
        which = np.flatnonzero(cut[piece] & ~cut[other])
        piece, other = piece[which], other[which]
        within = pairs.shared[which] > _SAME * areas[piece]
        # Of a sliver at a border the network sees too little to draw it well, but its box tells.
        low, high = np.maximum(boxes[piece, :2], boxes[other, :2]), np.minimum(boxes[piece, 2:], boxes[other, 2:])
        within |= np.maximum(high - low, 0).prod(axis=1) > _COVERED * box.areas(boxes[piece])
        gone[piece[within]] = True
    return gone


def _together(
    pairs: _Pairs,
    cut: NDArray[np.bool_],
    tile: Rows,
    codes: Sequence[bytes],
    windows: Sequence[Window],
    size_hw: tuple[int, int],
) -> list[list[int]]:
    """Pieces that are of one cell, two or more in each list."""
    of: dict[int, list[int]] = {}
    for row, other, shared in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.shared.tolist(), strict=True):
        if not (cut[row] and cut[other]) or of.get(row) is of.get(other, ()):
            continue
        both = _common(windows[int(tile[row])], windows[int(tile[other])])
        either = _inside(codes[row], both, size_hw) + _inside(codes[other], both, size_hw) - shared
        if shared > _SAME * either:
            group = of.get(row, [row]) + of.get(other, [other])
            of |= dict.fromkeys(group, group)
    return list({id(group): group for group in of.values()}.values())


def _common(one: Window, other: Window) -> Window:
    """What two overlapping windows share."""
    x, y = max(one.x, other.x), max(one.y, other.y)
    right = min(one.x + one.width, other.x + other.width)
    return Window(x, y, right - x, min(one.y + one.height, other.y + other.height) - y)


def _inside(code: bytes, window: Window, size_hw: tuple[int, int]) -> int:
    """How many pixels of a mask of the field lie in a window."""
    pixels, x, y = masks.crop(code, size_hw)
    rows = slice(max(window.y - y, 0), max(window.y + window.height - y, 0))
    columns = slice(max(window.x - x, 0), max(window.x + window.width - x, 0))
    return int(np.count_nonzero(pixels[rows, columns]))
