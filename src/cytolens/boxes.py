"""All box arithmetic, once.

A box is four pixel EDGES ``x_min, y_min, x_max, y_max``; an array of boxes has shape (N, 4) and
type float32 or float64. Pixel (0, 0) covers the box (0, 0, 1, 1), so a width is ``x_max - x_min``
without a "+1". Functions return new arrays and never touch their arguments.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

Boxes = NDArray[np.floating]


def as_boxes(boxes: ArrayLike) -> Boxes:
    """Any box-like input as a float array of shape (N, 4).

    Raises:
        ValueError: the last axis does not have four numbers.
    """
    array = np.asarray(boxes)
    if not np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float64)
    if array.size == 0:
        return array.reshape(0, 4)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"boxes have shape (N, 4); got {array.shape}")
    return array


def sizes_wh(boxes: ArrayLike) -> Boxes:
    """Width and height of each box, shape (N, 2)."""
    boxes = as_boxes(boxes)
    return boxes[:, 2:] - boxes[:, :2]


def areas(boxes: ArrayLike) -> Boxes:
    """Area of each box in px², shape (N,); a box turned inside out has area 0."""
    return np.prod(np.maximum(sizes_wh(boxes), 0), axis=1)


def centres(boxes: ArrayLike) -> Boxes:
    """Centre (x, y) of each box, shape (N, 2)."""
    boxes = as_boxes(boxes)
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def from_corner_size(corner_size: ArrayLike) -> Boxes:
    """Boxes from ``x_min, y_min, width, height`` (COCO's order)."""
    given = as_boxes(corner_size)
    return np.concatenate([given[:, :2], given[:, :2] + given[:, 2:]], axis=1)


def to_corner_size(boxes: ArrayLike) -> Boxes:
    """Boxes to ``x_min, y_min, width, height`` (COCO's order)."""
    boxes = as_boxes(boxes)
    return np.concatenate([boxes[:, :2], sizes_wh(boxes)], axis=1)


def from_centre_size(centre_size: ArrayLike) -> Boxes:
    """Boxes from ``x_centre, y_centre, width, height`` (YOLO's order)."""
    given = as_boxes(centre_size)
    half = given[:, 2:] / 2
    return np.concatenate([given[:, :2] - half, given[:, :2] + half], axis=1)


def to_centre_size(boxes: ArrayLike) -> Boxes:
    """Boxes to ``x_centre, y_centre, width, height`` (YOLO's order)."""
    return np.concatenate([centres(boxes), sizes_wh(boxes)], axis=1)


def clip(boxes: ArrayLike, width: float, height: float) -> Boxes:
    """Boxes cut to an image of width × height px. A box wholly outside collapses to area 0."""
    boxes = as_boxes(boxes)
    limit = np.array([width, height, width, height], boxes.dtype)
    return np.clip(boxes, 0, limit)


def grow(boxes: ArrayLike, margin: ArrayLike) -> Boxes:
    """Boxes moved outwards on all four sides by `margin` px (one number, or one per box)."""
    boxes = as_boxes(boxes)
    by = np.broadcast_to(np.asarray(margin, boxes.dtype), len(boxes))[:, None]
    return np.concatenate([boxes[:, :2] - by, boxes[:, 2:] + by], axis=1)


def squares(boxes: ArrayLike, factor: float = 1.0) -> Boxes:
    """Squares about each box's centre, as long as `factor` times its longer side."""
    side = sizes_wh(boxes).max(axis=1, keepdims=True, initial=0) * factor
    return from_centre_size(np.concatenate([centres(boxes), side, side], axis=1))


def jittered(boxes: ArrayLike, least_iou: float, random: Generator, share: float = 0.25) -> Boxes:
    """Boxes whose edges are each moved at random, as far as the overlap with what they were allows.

    Args:
        boxes: with an area, shape (N, 4).
        least_iou: the overlap that each keeps with itself, below 1.
        random: the source of chance.
        share: how far an edge is moved at most, in widths or heights of the box.
    """
    boxes = as_boxes(boxes)
    moves = random.uniform(-share, share, boxes.shape) * np.tile(sizes_wh(boxes), 2)
    for _ in range(60):
        # The overlap falls steadily with the length of the move, so halving it ends above the limit.
        moved = (boxes + moves).astype(boxes.dtype)
        low, high = np.maximum(boxes[:, :2], moved[:, :2]), np.minimum(boxes[:, 2:], moved[:, 2:])
        overlap = np.prod(np.maximum(high - low, 0), axis=1)
        short = overlap < least_iou * (areas(boxes) + areas(moved) - overlap)
        if not short.any():
            return moved
        moves[short] /= 2
    return boxes.copy()


def intersections(a: ArrayLike, b: ArrayLike) -> Boxes:
    """Area of overlap of every box of `a` (N) with every box of `b` (M), shape (N, M)."""
    a, b = as_boxes(a), as_boxes(b)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.prod(np.maximum(high - low, 0), axis=2)


def iou(a: ArrayLike, b: ArrayLike) -> Boxes:
    """Intersection over union, shape (N, M); 0 where the union has no area."""
    overlap = intersections(a, b)
    union = areas(a)[:, None] + areas(b)[None] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def overlap_share(a: ArrayLike, b: ArrayLike) -> Boxes:
    """Intersection over the area of `a`, shape (N, M): how much of `a` lies in `b`.

    COCO scores findings against crowd regions with it.
    """
    overlap = intersections(a, b)
    own = np.broadcast_to(areas(a)[:, None], overlap.shape)
    return np.divide(overlap, own, out=np.zeros_like(overlap), where=own > 0)


def giou(a: ArrayLike, b: ArrayLike) -> Boxes:
    """Generalised IoU in [-1, 1], shape (N, M): IoU − (C − U) / C, C the enclosing box.

    Source: Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019.
    """
    a, b = as_boxes(a), as_boxes(b)
    overlap = intersections(a, b)
    union = areas(a)[:, None] + areas(b)[None] - overlap
    low = np.minimum(a[:, None, :2], b[None, :, :2])
    high = np.maximum(a[:, None, 2:], b[None, :, 2:])
    hull = np.prod(np.maximum(high - low, 0), axis=2)
    ratio = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    slack = np.divide(hull - union, hull, out=np.zeros_like(overlap), where=hull > 0)
    return ratio - slack


def valid(boxes: ArrayLike, width: float | None = None, height: float | None = None) -> NDArray[np.bool_]:
    """Which boxes are finite, have an area and (where a size is given) touch the image, shape (N,)."""
    boxes = as_boxes(boxes)
    good = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    if width is not None and height is not None:
        good &= (boxes[:, 0] < width) & (boxes[:, 1] < height) & (boxes[:, 2:] > 0).all(axis=1)
    return np.asarray(good, bool)


def non_maximum_suppression(
    boxes: ArrayLike, scores: ArrayLike, iou_limit: float, groups: ArrayLike | None = None
) -> NDArray[np.intp]:
    """Rows to keep, best first: greedy suppression with plain IoU.

    A box is dropped when a kept box of a higher score (and of the same group, where groups are
    given) overlaps it by more than `iou_limit`. Equal scores keep the order of the rows, so the
    result does not depend on the platform's sort.

    Raises:
        ValueError: there are not as many scores (or groups) as boxes.
    """
    boxes = as_boxes(boxes)
    scores = np.asarray(scores, np.float64)
    kind = np.zeros(len(scores)) if groups is None else np.asarray(groups)
    if not scores.shape == kind.shape == (len(boxes),):
        raise ValueError(f"{len(boxes)} boxes need as many scores and groups; got {scores.shape} and {kind.shape}")
    order = np.argsort(-scores, kind="stable")
    first, second = _overlapping(boxes, iou_limit)
    same = kind[first] == kind[second]
    return survivors(order, first[same], second[same])


def survivors(order: NDArray[np.intp], first: NDArray[np.intp], second: NDArray[np.intp]) -> NDArray[np.intp]:
    """Greedy suppression once it is known which rows are too much alike: the rows that stay, best first.

    Args:
        order: all rows, best first, shape (N,).
        first, second: pairs of rows of which only one may stay, in either order, each of shape (P,).
    """
    rank = np.empty(len(order), np.intp)
    rank[order] = np.arange(len(order))
    better, worse = np.sort(np.stack((rank[first], rank[second])), axis=0)
    by_rank = np.argsort(better, kind="stable")
    better, worse = better[by_rank], worse[by_rank]
    edges = np.searchsorted(better, np.arange(len(order) + 1))
    alive = np.ones(len(order), bool)
    for place in np.unique(better).tolist():
        if alive[place]:
            alive[worse[edges[place] : edges[place + 1]]] = False
    return order[alive]


def _overlapping(boxes: Boxes, iou_limit: float, most: int = 2_000_000) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs that overlap by more than `iou_limit`; only boxes that share some x are compared, `most` at once."""
    by_left = np.argsort(boxes[:, 0], kind="stable")
    boxes = boxes[by_left]
    own_area = areas(boxes)
    # Box i, in the order of left edges, shares some x with the boxes behind it up to until[i].
    until = np.searchsorted(boxes[:, 0], boxes[:, 2], "left")
    total = np.concatenate(([0], np.cumsum(np.maximum(until - np.arange(len(boxes)) - 1, 0))))
    pairs: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    start = 0
    while start < len(boxes):
        end = max(start + 1, int(np.searchsorted(total, total[start] + most, "right")) - 1)
        counts = np.diff(total[start : end + 1])
        first = np.repeat(np.arange(start, end), counts)
        second = first + 1 + np.arange(len(first)) - np.repeat(total[start:end] - total[start], counts)
        low = np.maximum(boxes[first, :2], boxes[second, :2])
        high = np.minimum(boxes[first, 2:], boxes[second, 2:])
        overlap = np.prod(np.maximum(high - low, 0), axis=1)
        near = overlap > iou_limit * (own_area[first] + own_area[second] - overlap)
        pairs.append((by_left[first[near]], by_left[second[near]]))
        start = end
    if not pairs:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    return np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])
