"""How findings are counted for the challenge's score and the strict one, and the figures that follow.

Everything is counted per image, so that a bootstrap resample is one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens import match
from cytolens.evaluate.agreement import mean_where, ratio

LOCALISATION, NAMING = 0.2, 0.8
STRICT_IOU = 0.5
Array = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Side:
    """Truth or findings: image and name as indices, shape (N,); boxes (N, 4); truths that are not scored (N,)."""

    image: Indices
    boxes: Array
    name: Indices
    ignored: NDArray[np.bool_]

    def by_image(self, images: int) -> list[Indices]:
        """The rows of each image, in their order."""
        order = np.argsort(self.image, kind="stable")
        return np.split(order, np.searchsorted(self.image[order], np.arange(1, images)))


@dataclass(frozen=True, eq=False)
class Tallies:
    """What becomes of each image; all figures are functions of sums over images.

    Attributes:
        localisation: Σ (GIoU + 1) / 2 over its truths, shape (images,).
        truths: scored truths, (images,).
        right, truth, named: by name, the challenge's way, (images, names + 1); the last column is
            the name of a truth in an image without a finding.
        strict_right, strict_found: by name, one to one, (images, names + 1).
        pairs, pair_giou: one-to-one pairs and their summed GIoU, (images,).
        missed, surplus: truths and findings without a partner, (images,).
    """

    localisation: Array
    truths: Array
    right: Array
    truth: Array
    named: Array
    strict_right: Array
    strict_found: Array
    pairs: Array
    pair_giou: Array
    missed: Array
    surplus: Array

    def summed(self, weights: NDArray[np.floating]) -> Tallies:
        """Sums over the images, each as often as it was drawn: weights (R, images); the first axis becomes R."""
        drawn = weights.astype(np.float64)
        return Tallies(**{one.name: drawn @ getattr(self, one.name) for one in fields(self)})


# -- pairing --------------------------------------------------------------------------------------


def tally(truth: Side, handed_in: Side, everything: Side, images: int, names: int) -> Tallies:
    """Go through the images; `names` is the index of "None"."""
    table: dict[str, NDArray[Any]] = {one.name: np.zeros(images) for one in fields(Tallies)}
    for name in ("right", "truth", "named", "strict_right", "strict_found"):
        table[name] = np.zeros((images, names + 1))
    sides = (truth.by_image(images), handed_in.by_image(images), everything.by_image(images))
    for image, (t, f, e) in enumerate(zip(*sides, strict=True)):
        scored = t[~truth.ignored[t]]
        giou, taken = _taken(truth.boxes[scored], truth.name[scored], handed_in, f, names)
        table["truths"][image] = len(scored)
        table["localisation"][image] = ((giou + 1) / 2).sum()
        np.add.at(table["truth"][image], truth.name[scored], 1)
        np.add.at(table["named"][image], taken, 1)
        np.add.at(table["right"][image], taken[taken == truth.name[scored]], 1)
        for name, value in _strict(truth, t, everything, e, names).items():
            table[name][image] = value
    return Tallies(**table)


def _taken(boxes: Array, names: Indices, found: Side, rows: Indices, none: int) -> tuple[Array, Indices]:
    """GIoU and name of the finding that each truth takes, both shape (t,)."""
    seen: set[tuple[float, ...]] = set()
    kept = [row for row in rows.tolist() if not _known((*found.boxes[row].tolist(), int(found.name[row])), seen)]
    if not kept:
        return np.full(len(names), -1.0), np.full(len(names), none, np.intp)
    table = np.asarray(box.giou(found.boxes[kept], boxes), np.float64)
    best = table.argmax(axis=0)
    return table[best, np.arange(len(names))], found.name[np.array(kept, np.intp)[best]]


def _known(key: tuple[float, ...], seen: set[tuple[float, ...]]) -> bool:
    """Whether a key was seen before; it is from now on."""
    before = key in seen
    seen.add(key)
    return before


def _strict(truth: Side, t: Indices, found: Side, f: Indices, none: int) -> dict[str, Any]:
    """One image's one-to-one pairs; a surplus finding in an ignored truth is excused."""
    ours, theirs, ignored = truth.boxes[t], found.boxes[f], truth.ignored[t]
    table = np.asarray(box.iou(theirs, ours), np.float64)
    if ignored.any():
        table[:, ignored] = box.overlap_share(theirs, ours[ignored])
    pairs = match.pair(table, ignored, STRICT_IOU)
    asked, said = truth.name[t[pairs.truth]], found.name[f[pairs.found]]
    length = none + 1
    return {
        "strict_right": np.bincount(said[said == asked], minlength=length),
        "strict_found": np.bincount(np.concatenate([said, found.name[f[pairs.surplus]]]), minlength=length),
        "pairs": len(pairs.truth),
        "pair_giou": sum(
            float(box.giou(theirs[i], ours[j])[0, 0]) for i, j in zip(pairs.found, pairs.truth, strict=True)
        ),
        "missed": len(pairs.missed),
        "surplus": len(pairs.surplus),
    }


# -- figures --------------------------------------------------------------------------------------


def figures_of(sums: Tallies, images: Any) -> dict[str, Array]:
    """Each figure in each of R resamples, shape (R,); NaN where there is no truth."""
    giou_term = ratio(sums.localisation, sums.truths)
    macro_f1 = mean_where(np.nan_to_num(shared_f1(sums)), sums.truth + sums.named > 0)
    macro_f1 = np.where(sums.truths > 0, macro_f1, np.nan)
    return {
        "score": LOCALISATION * giou_term + NAMING * macro_f1,
        "giou_term": giou_term,
        "macro_f1": macro_f1,
        "strict_macro_f1": mean_where(np.nan_to_num(strict_f1(sums)), sums.truth > 0),
        "mean_giou": ratio(sums.pair_giou, sums.pairs),
        "missed_per_image": ratio(sums.missed, images),
        "surplus_per_image": ratio(sums.surplus, images),
    }


def shared_f1(sums: Tallies) -> Array:
    """F1 of each name the challenge's way, NaN where it neither occurs nor is taken."""
    return ratio(2 * sums.right, sums.truth + sums.named)


def strict_f1(sums: Tallies) -> Array:
    """F1 of each name one to one, NaN where it neither occurs nor is found."""
    return ratio(2 * sums.strict_right, sums.truth + sums.strict_found)
