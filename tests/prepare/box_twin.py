"""Slow and obvious twin of what a check says about boxes: plain loops over plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any

from tests.reference import Box, area, iou


@dataclass
class Verdicts:
    """Rows of each kind of fault; repeats as (row, row that stays)."""

    outside: set[int] = field(default_factory=set)
    no_area: set[int] = field(default_factory=set)
    not_a_number: set[int] = field(default_factory=set)
    dropped: set[int] = field(default_factory=set)
    exact: dict[int, int] = field(default_factory=dict)
    near: dict[int, int] = field(default_factory=dict)
    disputed: set[tuple[int, int]] = field(default_factory=set)


def clipped(box: Box, size: tuple[float, float]) -> tuple[float, float, float, float]:
    """The part of a box inside an image of this width and height."""
    width, height = size
    return (
        min(max(box[0], 0), width),
        min(max(box[1], 0), height),
        min(max(box[2], 0), width),
        min(max(box[3], 0), height),
    )


def is_beyond(box: Box, size: tuple[float, float]) -> bool:
    """Whether any of the four edges lies outside the image."""
    return any(edge < 0 for edge in box) or any(box[i] > size[i % 2] for i in range(4))


def has_area(box: Box) -> bool:
    """Whether the right edge is right of the left one, and the lower below the upper."""
    return box[2] > box[0] and box[3] > box[1] and area(box) >= 0


def judged(
    boxes: Sequence[Box],
    sizes: Sequence[tuple[float | None, float | None]],
    layers: Sequence[Any],
    said: Sequence[Any],
    scored: Sequence[bool],
    same_iou: float = 0.9,
) -> Verdicts:
    """Everything about boxes without masks.

    Args:
        boxes: as given.
        sizes: of each box's image; None where unknown.
        layers: only boxes of one layer are compared.
        said: what is said of each cell.
        scored: whether a model said it; of equal boxes a person's stays.
        same_iou: overlap from which two boxes are the same.
    """
    out, inside = Verdicts(), {}
    for row, box in enumerate(boxes):
        size = tuple(inf if side is None else side for side in sizes[row])
        if not all(isfinite(edge) for edge in box):
            out.not_a_number.add(row)
            continue
        inside[row] = clipped(box, size)  # type: ignore[arg-type]
        if not has_area(box):
            out.no_area.add(row)
        elif is_beyond(box, size):  # type: ignore[arg-type]
            out.outside.add(row)
    usable = [row for row in inside if has_area(inside[row])]
    out.dropped = set(range(len(boxes))) - set(usable)
    best_first = sorted(usable, key=lambda row: (scored[row], row))
    kept: list[int] = []
    for row in best_first:
        twin = next((k for k in kept if _same(k, row, layers, said) and inside[k] == inside[row]), None)
        if twin is None:
            kept.append(row)
        else:
            out.exact[row] = twin
    alive: list[int] = []
    for row in kept:
        twin = next((k for k in alive if _same(k, row, layers, said) and iou(inside[k], inside[row]) >= same_iou), None)
        if twin is None:
            alive.append(row)
        else:
            out.near[row] = twin
    for a in alive:
        for b in alive:
            overlap = iou(inside[a], inside[b])
            if a < b and layers[a] == layers[b] and said[a] != said[b] and overlap >= same_iou:
                out.disputed.add((a, b))
    return out


def _same(a: int, b: int, layers: Sequence[Any], said: Sequence[Any]) -> bool:
    return layers[a] == layers[b] and said[a] == said[b]
