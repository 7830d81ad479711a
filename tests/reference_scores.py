"""Slow and obvious twins of the scores: written from the definitions, one cell at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

Box = Sequence[float]


def iou(a: Box, b: Box, over_a: bool = False) -> float:
    """Intersection over union, or over the area of `a`."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    whole = area_a if over_a else area_a + area_b - overlap
    return overlap / whole if whole > 0 else 0.0


def average_precision(
    images: Sequence[tuple[Sequence[tuple[Box, bool]], Sequence[tuple[Box, float]]]], limit: float
) -> float | None:
    """COCO's average precision of one label at one IoU limit.

    Args:
        images: per image the truths (box, ignored) and the findings (box, score).
        limit: of the overlap.
    """
    rows: list[tuple[float, str]] = []
    total = 0
    for truths, found in images:
        total += sum(not ignored for _, ignored in truths)
        taken: set[int] = set()
        for corners, score in sorted(found, key=lambda one: -one[1]):
            best, best_overlap = None, limit
            for index, (other, ignored) in enumerate(truths):
                if ignored or index in taken:
                    continue
                overlap = iou(corners, other)
                if overlap >= best_overlap:
                    best, best_overlap = index, overlap
            if best is not None:
                taken.add(best)
                rows.append((score, "hit"))
            elif any(ignored and iou(corners, other, over_a=True) >= limit for other, ignored in truths):
                rows.append((score, "neutral"))
            else:
                rows.append((score, "false"))
    if total == 0:
        return None
    rows.sort(key=lambda row: -row[0])
    points, hits, false = [], 0, 0
    for _, outcome in rows:
        hits += outcome == "hit"
        false += outcome == "false"
        if hits + false:
            points.append((hits / total, hits / (hits + false)))
    steps = [max((p for r, p in points if r >= step / 100), default=0.0) for step in range(101)]
    return sum(steps) / 101


def agreement(truth: Sequence[str], said: Sequence[str]) -> dict[str, float]:
    """Accuracy, balanced accuracy, macro-F1 and Cohen's kappa, counted by hand."""
    names = sorted(set(truth))
    recalls, f1s, chance = [], [], 0.0
    for name in names:
        right = sum(t == s == name for t, s in zip(truth, said, strict=True))
        support, predicted = sum(t == name for t in truth), sum(s == name for s in said)
        recalls.append(right / support)
        f1s.append(2 * right / (support + predicted))
        chance += support * predicted / len(truth) ** 2
    accuracy = sum(t == s for t, s in zip(truth, said, strict=True)) / len(truth)
    return {
        "accuracy": accuracy,
        "balanced_accuracy": sum(recalls) / len(names),
        "macro_f1": sum(f1s) / len(names),
        "kappa": float("nan") if chance == 1 else (accuracy - chance) / (1 - chance),
    }


def calibration_error(confidence: Sequence[float], correct: Sequence[bool], edges: Sequence[float]) -> float:
    """Expected calibration error; a bin holds its upper edge."""
    error = 0.0
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = [
            (c, ok) for c, ok in zip(confidence, correct, strict=True) if low < c <= high or (index == 0 and c == low)
        ]
        if inside:
            mean = sum(c for c, _ in inside) / len(inside)
            right = sum(ok for _, ok in inside) / len(inside)
            error += len(inside) / len(confidence) * abs(mean - right)
    return error


def kept_at(confidence: Sequence[float], correct: Sequence[bool], share: float) -> tuple[int, float, float]:
    """The smallest set of surest cells that is at least a share of all: how many, accuracy, threshold."""
    for threshold in sorted(set(confidence), reverse=True):
        kept = [ok for c, ok in zip(confidence, correct, strict=True) if c >= threshold]
        if len(kept) >= share * len(confidence) - 1e-9:
            return len(kept), sum(kept) / len(kept), threshold
    raise AssertionError("the lowest threshold keeps all")


def wilson(successes: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The two shares p at which (share − p)² = z² p (1 − p) / total: roots of a quadratic."""
    share = successes / total
    a, b, c = 1 + z * z / total, -(2 * share + z * z / total), share * share
    root = (b * b - 4 * a * c) ** 0.5
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def sartorius(table: Sequence[Sequence[float]], truths: int) -> float:
    """The Sartorius competition's score of one image from IoU rows of findings, counted cell by cell."""
    values = []
    for hundredths in range(50, 100, 5):
        limit = hundredths / 100
        tp = fp = fn = 0
        for truth in range(truths):
            partners = sum(row[truth] > limit for row in table)
            tp += partners == 1
            fn += partners == 0
            fp += partners > 1
        fp += sum(all(overlap <= limit for overlap in row) for row in table)
        values.append(tp / (tp + fp + fn) if tp + fp + fn else 1.0)
    return sum(values) / len(values)


def best_pairs(table: Sequence[Sequence[float]], truths: int, limit: float) -> list[tuple[int, int]]:
    """Of all ways to pair findings with truths one to one, from an overlap on, one of the greatest total overlap."""

    def ways(row: int, free: frozenset[int]) -> tuple[float, list[tuple[int, int]]]:
        if row == len(table):
            return 0.0, []
        best = ways(row + 1, free)
        for truth in free:
            if table[row][truth] >= limit:
                total, pairs = ways(row + 1, free - {truth})
                if total + table[row][truth] > best[0]:
                    best = total + table[row][truth], [(row, truth), *pairs]
        return best

    return ways(0, frozenset(range(truths)))[1]


def contour(mask: Sequence[Sequence[bool]]) -> list[list[bool]]:
    """Pixels of a mask that have a neighbour inside the image and outside the mask."""
    height, width = len(mask), len(mask[0])

    def outside(y: int, x: int) -> bool:
        return 0 <= y < height and 0 <= x < width and not mask[y][x]

    return [
        [
            mask[y][x] and any(outside(*at) for at in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)))
            for x in range(width)
        ]
        for y in range(height)
    ]


def boundary_f(found: Sequence[Sequence[bool]], truth: Sequence[Sequence[bool]], tolerance: float) -> float:
    """Harmonic mean of the shares of either's contour pixels within a distance of one of the other's."""
    ours, theirs = (
        [(y, x) for y, row in enumerate(side) for x, here in enumerate(row) if here] for side in (found, truth)
    )
    if not ours or not theirs:
        return float(bool(ours) == bool(theirs))

    def near(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> float:
        limit = tolerance * tolerance + 1e-9
        return sum(any((y - v) ** 2 + (x - u) ** 2 <= limit for v, u in others) for y, x in some) / len(some)

    precision, recall = near(ours, theirs), near(theirs, ours)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
