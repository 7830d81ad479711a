"""Boxes of several lists made one list: weighted fusion, suppression and soft suppression, on arrays.

All functions take one list of boxes per model, work within each class, in any unit (pixels here), and
agree with the package ensemble-boxes (which wants boxes in 0 … 1). Of equal scores the earlier list,
then the earlier row, comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cytolens import boxes as box
from cytolens.problems import SettingError

Lists = Literal["per-model", "one"]
Decay = Literal["linear", "gaussian"]
Indices = NDArray[np.intp]
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Fused:
    """The fused list, by falling score; N is the number of rows given, all lists one after the other.

    Attributes:
        boxes: shape (F, 4), float64.
        scores: shape (F,), float64.
        classes: shape (F,).
        lead: the given row that each comes from, or the strongest of those it was fused from, shape (F,).
        member_of: the fused box that each given row went into, −1: none, shape (N,).
    """

    boxes: Array
    scores: Array
    classes: NDArray[np.integer]
    lead: Indices
    member_of: Indices


@dataclass(frozen=True, eq=False)
class _Given:
    """All lists one after the other; `usable` rows reach the score floor and have an area."""

    boxes: Array
    scores: Array
    classes: NDArray[np.integer]
    list_of: Indices
    weights: Array
    usable: NDArray[np.bool_]


def wbf(
    boxes: Sequence[ArrayLike],
    scores: Sequence[ArrayLike],
    classes: Sequence[ArrayLike],
    *,
    iou: float,
    weights: Sequence[float] | None = None,
    score_floor: float = 0.0,
    lists: Lists = "per-model",
) -> Fused:
    """Weighted box fusion.

    By falling (weighted) score each box joins the cluster whose fused box, as it is then, it overlaps most
    by more than `iou`, or else opens one. A fused corner is Σ sᵢ·cᵢ / Σ sᵢ. Of T lists with weights w, n boxes
    of mean weighted score s̄ make the score s̄ · min(n, T) / Σ w, so a box that few lists have is lowered. With
    lists="one" nothing is lowered: the score is the mean, weighted by the lists' weights.

    Source: Solovyev, Wang, Gabruseva, "Weighted boxes fusion", Image and Vision Computing 107 (2021); the
    score as in ensemble-boxes with conf_type "avg" and no overflow.

    Args:
        boxes: per list, shape (N, 4); boxes without an area are left out.
        scores, classes: per list, shape (N,).
        iou: overlap above which boxes are the same thing.
        weights: of each list; None: all 1.
        score_floor: rows of a lower score are left out.
        lists: whether a list that lacks a box speaks against it ("per-model") or not ("one").

    Raises:
        ValueError: a list has not as many scores or classes as boxes.
        SettingError: the weights are not one positive number per list.
    """
    given = _given(boxes, scores, classes, weights, score_floor)
    strength = given.scores * given.weights[given.list_of]
    fused, lead = np.zeros((len(strength), 4)), np.zeros(len(strength), np.intp)
    member_of = np.full(len(strength), -1, np.intp)
    count = 0
    for rows in _by_class(given):
        rows = rows[np.argsort(-strength[rows], kind="stable")]
        index, corners = _clustered(given.boxes[rows], strength[rows], iou)
        member_of[rows] = count + index
        fused[count : count + len(corners)] = corners
        lead[count : count + len(corners)] = rows[np.unique(index, return_index=True)[1]]
        count += len(corners)
    used = member_of >= 0
    into, which = member_of[used], given.list_of[used]
    sizes, total = np.bincount(into, minlength=count), np.bincount(into, strength[used], count)
    if lists == "one":
        fused_scores = total / np.bincount(into, given.weights[which], count)
    else:
        fused_scores = total / sizes * np.minimum(sizes, len(given.weights)) / given.weights.sum()
    return _ordered(fused[:count], fused_scores, given, lead[:count], member_of)


def nms(
    boxes: Sequence[ArrayLike],
    scores: Sequence[ArrayLike],
    classes: Sequence[ArrayLike],
    *,
    iou: float,
    weights: Sequence[float] | None = None,
    score_floor: float = 0.0,
) -> Fused:
    """Plain suppression over several lists: of boxes that overlap by more than `iou` the best stays, unchanged.

    With weights, a list's scores are multiplied by its share of the weight. What was suppressed counts as
    a member of the box it overlaps most among those that stay. Arguments and errors as of `wbf`.
    """
    given = _given(boxes, scores, classes, weights, score_floor)
    strength = _shared(given, weights)
    kept = [rows[box.non_maximum_suppression(given.boxes[rows], strength[rows], iou)] for rows in _by_class(given)]
    return _survivors(given, strength, kept, iou)


def soft_nms(
    boxes: Sequence[ArrayLike],
    scores: Sequence[ArrayLike],
    classes: Sequence[ArrayLike],
    *,
    iou: float,
    weights: Sequence[float] | None = None,
    score_floor: float = 0.001,
    decay: Decay = "gaussian",
    sigma: float = 0.5,
) -> Fused:
    """Soft suppression over several lists: what a better box overlaps keeps its place with a lowered score.

    Boxes whose lowered score does not exceed `score_floor` go. "linear" multiplies by 1 − IoU where that
    exceeds `iou`; "gaussian" by exp(−IoU² / sigma), whatever `iou`. The scores are the lowered ones.
    Other arguments and errors as of `nms`.

    Source: Bodla et al., "Soft-NMS – improving object detection with one line of code", ICCV 2017.
    """
    given = _given(boxes, scores, classes, weights, 0.0)
    strength = _shared(given, weights)
    kept = []
    for rows in _by_class(given):
        order, lowered = _softened(given.boxes[rows], strength[rows], iou, decay, sigma, score_floor)
        strength[rows[order]] = lowered
        kept.append(rows[order[lowered > score_floor]])
    return _survivors(given, strength, kept, iou)


def _given(
    boxes: Sequence[ArrayLike],
    scores: Sequence[ArrayLike],
    classes: Sequence[ArrayLike],
    weights: Sequence[float] | None,
    score_floor: float,
) -> _Given:
    if not len(boxes) == len(scores) == len(classes):
        raise ValueError(f"{len(boxes)} lists of boxes, {len(scores)} of scores, {len(classes)} of classes")
    corners = [box.as_boxes(one).astype(np.float64) for one in boxes]
    values = [np.asarray(one, np.float64).reshape(-1) for one in scores]
    kinds = [np.asarray(one).reshape(-1) for one in classes]
    for number, (c, s, k) in enumerate(zip(corners, values, kinds, strict=True)):
        if not len(c) == len(s) == len(k):
            raise ValueError(f"list {number} has {len(c)} boxes, {len(s)} scores and {len(k)} classes")
    all_boxes = np.concatenate([np.zeros((0, 4)), *corners])
    all_scores = np.concatenate([np.zeros(0), *values])
    return _Given(
        boxes=all_boxes,
        scores=all_scores,
        classes=np.concatenate([np.zeros(0, np.intp), *(k.astype(np.intp) for k in kinds)]),
        list_of=np.repeat(np.arange(len(corners)), [len(c) for c in corners]).astype(np.intp),
        weights=checked_weights(weights, len(corners)),
        usable=box.valid(all_boxes) & (all_scores >= score_floor),
    )


def checked_weights(weights: Sequence[float] | None, count: int) -> Array:
    """One positive weight per list, shape (count,); None: all 1.

    Raises:
        SettingError: they are not `count` positive numbers.
    """
    if weights is None:
        return np.ones(count)
    values = np.asarray(weights, np.float64).reshape(-1)
    if len(values) != count or not (np.isfinite(values) & (values > 0)).all():
        raise SettingError(f"weights: wanted {count} positive numbers, one per member; got {list(weights)}")
    return values


def _shared(given: _Given, weights: Sequence[float] | None) -> Array:
    """The scores, multiplied by the list's share of the weight where weights were given."""
    if weights is None:
        return given.scores.copy()
    return given.scores * (given.weights / given.weights.sum())[given.list_of]


def _by_class(given: _Given) -> Iterator[Indices]:
    """The usable rows of each class, in their order."""
    rows = np.flatnonzero(given.usable)
    rows = rows[np.argsort(given.classes[rows], kind="stable")]
    return (part for part in np.split(rows, np.flatnonzero(np.diff(given.classes[rows])) + 1) if len(part))


def _overlaps(corners: Array, others: Array) -> tuple[Indices, Array]:
    """The boxes that one box (4,) overlaps at all, and by how much (IoU), among others given as columns, shape (4, n).

    Most boxes of a large image are far apart, so sorting those out first is what makes long lists cheap.
    """
    x_min, y_min, x_max, y_max = others
    apart_in_x = (x_max <= corners[0]) | (x_min >= corners[2])
    near = np.flatnonzero(~(apart_in_x | (y_max <= corners[1]) | (y_min >= corners[3])))
    return near, np.asarray(box.iou(corners, others[:, near].T)[0], np.float64)


def _clustered(boxes: Array, strength: Array, limit: float) -> tuple[Indices, Array]:
    """The cluster of each box (n,), numbered as they open, and their fused boxes; rows are by falling strength."""
    index = np.zeros(len(boxes), np.intp)
    fused, total = np.zeros((4, len(boxes))), np.zeros(len(boxes))
    count = 0
    for row, (corners, own) in enumerate(zip(boxes, strength, strict=True)):
        near, overlap = _overlaps(corners, fused[:, :count])
        if len(near) and overlap.max() > limit:
            best = int(near[overlap.argmax()])
        else:
            best, count = count, count + 1
            fused[:, best] = corners
        total[best] += own
        if total[best] > 0:
            fused[:, best] += (corners - fused[:, best]) * (own / total[best])
        index[row] = best
    return index, fused[:, :count].T


def _softened(
    boxes: Array, scores: Array, limit: float, decay: Decay, sigma: float, floor: float
) -> tuple[Indices, Array]:
    """The order in which boxes are taken, and the lowered scores in that order; both shape (n,)."""
    columns, scores, order = boxes.T.copy(), scores.copy(), np.arange(len(boxes))
    for at in range(len(boxes)):
        best = at + int(scores[at:].argmax())
        if scores[best] <= floor:  # nothing that is left can stay, or lower what stays
            break
        for table in (columns, scores, order):
            table[..., [at, best]] = table[..., [best, at]]
        near, overlap = _overlaps(columns[:, at], columns[:, at + 1 :])
        keep = np.where(overlap > limit, 1 - overlap, 1.0) if decay == "linear" else np.exp(-(overlap**2) / sigma)
        scores[at + 1 + near] *= keep
    return order, scores


def _survivors(given: _Given, strength: Array, kept: list[Indices], iou: float) -> Fused:
    """What suppression kept; what it did not keep goes to the kept box of its class that it overlaps most."""
    lead = np.concatenate([np.zeros(0, np.intp), *kept])
    member_of = np.full(len(strength), -1, np.intp)
    member_of[lead] = np.arange(len(lead))
    for rows, stay in zip(_by_class(given), kept, strict=True):
        columns = given.boxes[stay].T.copy()
        for row in np.setdiff1d(rows, stay):
            near, overlap = _overlaps(given.boxes[row], columns)
            if len(near) and overlap.max() > iou:
                member_of[row] = member_of[stay[near[overlap.argmax()]]]
    return _ordered(given.boxes[lead], strength[lead], given, lead, member_of)


def _ordered(boxes: Array, scores: Array, given: _Given, lead: Indices, member_of: Indices) -> Fused:
    """By falling score; equal scores by class, then in the order in which they arose."""
    order = np.argsort(-scores, kind="stable")
    place = np.empty(len(order) + 1, np.intp)
    place[order], place[-1] = np.arange(len(order)), -1  # −1 finds the last entry, and stays −1
    return Fused(boxes[order], scores[order], given.classes[lead[order]], lead[order], place[member_of])
