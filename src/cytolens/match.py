"""Truth × found: the only input of every detection, segmentation and attribute score.

Two ways to pair, for two questions. `rank` walks through the findings by falling score, as COCO
does, and answers "how good is the order" (average precision). `pair` makes the best one-to-one
assignment and answers "which cell is which" (counts, names, attributes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cytolens import boxes as box
from cytolens import masks
from cytolens.cells import Cells

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Matches:
    """A one-to-one assignment.

    Attributes:
        truth: rows of the truth that have a partner, shape (P,).
        found: the partner's row in the findings, shape (P,).
        iou: their overlap, shape (P,).
        missed: rows of the truth without a partner (ignored truths are left out).
        surplus: rows of the findings without a partner (those inside an ignored truth are left out).
    """

    truth: Indices
    found: Indices
    iou: NDArray[np.float64]
    missed: Indices
    surplus: Indices


@dataclass(frozen=True, slots=True)
class Ranking:
    """Findings of one label over many images by falling score, judged at several IoU limits.

    Attributes:
        scores: shape (D,), falling.
        image: index of the image of each finding, shape (D,).
        hit: whether it took a truth, shape (limits, D).
        neutral: whether it counts neither way (it took an ignored truth), shape (limits, D).
        truth_per_image: scored truths of each image, shape (images,).
    """

    scores: NDArray[np.float64]
    image: Indices
    hit: NDArray[np.bool_]
    neutral: NDArray[np.bool_]
    truth_per_image: NDArray[np.int64]


def overlaps(truth: Cells, found: Cells, size_hw: tuple[int, int] | None = None) -> NDArray[np.float64]:
    """IoU of every finding with every truth of one image, shape (found, truth).

    An ignored truth is a region: what counts is how much of the finding lies in it. With `size_hw`
    masks are compared, otherwise boxes.
    """
    ignored = truth.frame["ignore"].to_numpy()
    if size_hw is not None:
        a, b = _codes(found), _codes(truth)
        table = masks.iou(a, b, size_hw)
        if ignored.any() and len(a):
            own = np.array([max(masks.area(code), 1) for code in a], np.float64)
            union = table[:, ignored]
            other = np.array([masks.area(code) for code, i in zip(b, ignored, strict=True) if i], np.float64)
            table[:, ignored] = union * (own[:, None] + other[None]) / (1 + union) / own[:, None]
        return table
    ours, theirs = found.boxes().astype(np.float64), truth.boxes().astype(np.float64)
    table = np.asarray(box.iou(ours, theirs), np.float64)
    if ignored.any():
        table[:, ignored] = box.overlap_share(ours, theirs[ignored])
    return table


def _codes(cells: Cells) -> list[bytes]:
    codes = cells.masks()
    if any(code is None for code in codes):
        raise ValueError("masks are to be compared, but some cells have only a box")
    return [code for code in codes if code is not None]


def pair(table: ArrayLike, ignored: ArrayLike, iou_min: float = 0.5) -> Matches:
    """The one-to-one assignment of one image that maximises the total IoU.

    Args:
        table: IoU of findings with truths, shape (found, truth).
        ignored: which truths are not scored, shape (truth,).
        iou_min: pairs below it are not made.
    """
    from scipy.optimize import linear_sum_assignment

    table = np.asarray(table, np.float64)
    ignored = np.asarray(ignored, bool)
    scored = np.flatnonzero(~ignored)
    allowed = np.where(table[:, scored] >= iou_min, table[:, scored], 0.0)
    found, column = linear_sum_assignment(allowed, maximize=True)
    good = allowed[found, column] > 0
    found, truth = found[good], scored[column[good]]
    order = np.argsort(truth, kind="stable")
    found, truth = found[order], truth[order]
    excused = np.asarray((table[:, ignored] >= iou_min).any(axis=1))
    alone = np.setdiff1d(np.arange(len(table)), found)
    return Matches(
        truth=truth,
        found=found,
        iou=table[found, truth],
        missed=np.setdiff1d(scored, truth),
        surplus=alone[~excused[alone]],
    )


def partners(
    truth_boxes: ArrayLike,
    found_boxes: ArrayLike,
    found_scores: ArrayLike,
    table: ArrayLike,
    ignored: ArrayLike,
    size_wh: tuple[int | None, int | None],
    iou_min: float = 0.5,
) -> tuple[Indices, Indices]:
    """Which finding is which truth cell of one image, whatever either is called.

    One to one by the greatest total overlap (`pair`). Where the image carries exactly one cell and its
    box is the whole image, the label is the image's: its partner is the finding whose box holds the
    image's centre and whose own centre is nearest to it; a finding that is the whole image comes first.

    Args:
        truth_boxes, found_boxes: shape (T, 4) and (F, 4).
        found_scores: shape (F,).
        table: IoU of findings with truths, shape (F, T).
        ignored: which truths are not scored, shape (T,).
        size_wh: of the image; None where it is not known.
        iou_min: pairs below it are not made.

    Returns:
        rows of the truth and the findings that belong together, each of shape (P,).
    """
    truth_boxes, found_boxes = box.as_boxes(truth_boxes), box.as_boxes(found_boxes)
    if len(truth_boxes) == 1 and not np.asarray(ignored, bool)[0] and is_whole_image(truth_boxes, size_wh)[0]:
        found = _central(found_boxes, np.asarray(found_scores), size_wh)
        return np.zeros(len(found), np.intp), found
    matches = pair(table, ignored, iou_min)
    return matches.truth, matches.found


def is_whole_image(boxes: ArrayLike, size_wh: tuple[int | None, int | None]) -> NDArray[np.bool_]:
    """Which boxes (N, 4) end within half a pixel of every border of the image; none where its size is unknown."""
    boxes = box.as_boxes(boxes)
    if size_wh[0] is None or size_wh[1] is None:
        return np.zeros(len(boxes), bool)
    whole = np.array([0, 0, *size_wh], np.float64)
    return np.abs(boxes - whole).max(axis=1, initial=0) <= 0.5


def _central(boxes: box.Boxes, scores: NDArray[np.floating], size_wh: tuple[int | None, int | None]) -> Indices:
    """The finding that an image's label is about, as an array of one index; empty where there is none."""
    centre = np.array(size_wh, np.float64) / 2
    holds = ((boxes[:, :2] <= centre) & (centre <= boxes[:, 2:])).all(axis=1)
    away = np.linalg.norm(box.centres(boxes) - centre, axis=1)
    away[is_whole_image(boxes, size_wh)] = -1
    away[~holds] = np.inf
    # Equal distance: the surer finding.
    return np.lexsort((-scores, away))[: min(1, int(holds.sum()))]


def rank(
    tables: Sequence[ArrayLike],
    scores: Sequence[ArrayLike],
    ignored: Sequence[ArrayLike],
    iou_limits: ArrayLike,
    most: int = 1000,
) -> Ranking:
    """COCO's greedy matching of one label, image by image, at several IoU limits.

    By falling score each finding takes the free truth it overlaps most, if that reaches the limit;
    an ignored truth is taken only where no scored one fits, may be taken again, and makes the
    finding neutral. Source: the public COCO evaluation, of which it reproduces every figure.

    Args:
        tables: per image, IoU of findings with truths (found, truth).
        scores: per image, of the findings.
        ignored: per image, which truths are not scored.
        iou_limits: shape (limits,).
        most: findings per image that are looked at, best first.
    """
    limits = np.atleast_1d(np.asarray(iou_limits, np.float64))
    all_scores, all_images, all_hits, all_neutral, counts = [], [], [], [], []
    for index, (given, score, ignore) in enumerate(zip(tables, scores, ignored, strict=True)):
        ignore, score = np.asarray(ignore, bool), np.asarray(score, np.float64)
        order = np.argsort(-score, kind="stable")[:most]
        table = np.asarray(given, np.float64).reshape(len(score), len(ignore))[order]
        hit, neutral = _greedy(table, ignore, limits)
        all_scores.append(score[order])
        all_images.append(np.full(len(order), index, np.intp))
        all_hits.append(hit)
        all_neutral.append(neutral)
        counts.append(int((~ignore).sum()))
    flat = np.concatenate(all_scores) if all_scores else np.zeros(0)
    order = np.argsort(-flat, kind="stable")
    none = np.zeros((len(limits), 0), bool)
    return Ranking(
        scores=flat[order],
        image=(np.concatenate(all_images) if all_images else np.zeros(0, np.intp))[order],
        hit=np.concatenate([none, *all_hits], axis=1)[:, order],
        neutral=np.concatenate([none, *all_neutral], axis=1)[:, order],
        truth_per_image=np.asarray(counts, np.int64),
    )


def _greedy(
    table: NDArray[np.float64], ignored: NDArray[np.bool_], limits: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """One image of `rank`; rows of `table` are already by falling score."""
    count, truths = table.shape
    hit = np.zeros((len(limits), count), bool)
    neutral = np.zeros((len(limits), count), bool)
    if not count or not truths:
        return hit, neutral
    scored = table[:, ~ignored]
    regions = table[:, ignored].max(axis=1, initial=-1.0)
    worth = scored.max(axis=1, initial=-1.0)
    for level, limit in enumerate(np.minimum(limits, 1 - 1e-10)):
        free = np.ones(scored.shape[1], bool)
        for row in range(count):
            if worth[row] >= limit:
                candidates = np.where(free, scored[row], -1.0)
                # The last of equal overlaps wins, as in the public code.
                best = len(candidates) - 1 - int(np.argmax(candidates[::-1]))
                if candidates[best] >= limit:
                    free[best] = False
                    hit[level, row] = True
                    continue
            neutral[level, row] = regions[row] >= limit
    return hit, neutral
