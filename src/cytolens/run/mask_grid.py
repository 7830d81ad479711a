"""Many ways to clean masks, all judged at once: mask threshold × suppression × score × size, for one cell type.

Masks are cleaned once for each pair of threshold and suppression, and compared with the truth once. What a higher score
or a larger size would leave of them are rows of that one table: cells of a lower score never change those above them.
A size limit frees the few pixels that smaller cells had taken from others; only the final judgement counts these.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from cytolens import masks, match
from cytolens.cells import Cells
from cytolens.evaluate.sartorius import IOU_LIMITS, precision_of
from cytolens.labels import LabelSet
from cytolens.tasks.mask_cleaning import cleaned
from cytolens.tasks.segment import MaskCleaning, Outlines, SegmentOutput, SoftOutlines

_SCORES = tuple(round(0.05 * step, 2) for step in range(4, 17))


class MaskGrid(BaseModel):
    """The values that are tried, each with each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mask_threshold: tuple[float, ...] = Field(default=(0.35, 0.4, 0.45, 0.5, 0.55), min_length=1)
    mask_nms_iou: tuple[float, ...] = Field(default=(0.05, 0.1, 0.15), min_length=1)
    score_min: tuple[float, ...] = Field(default=_SCORES, min_length=1)
    area_min_px: tuple[int, ...] = Field(default=(0, 50, 75, 100, 150), min_length=1)

    @field_validator("mask_threshold", "mask_nms_iou", "score_min", "area_min_px")
    @classmethod
    def _fit(cls, values: tuple[float, ...], info: object) -> tuple[float, ...]:
        name = getattr(info, "field_name", "")
        for value in values:
            MaskCleaning.model_validate({name: value})
        return values

    def choices(self, base: MaskCleaning) -> list[MaskCleaning]:
        """All settings that are tried, in the order of `choice_scores`; what the grid does not set is as in `base`."""
        tried = product(self.mask_threshold, self.mask_nms_iou, self.score_min, self.area_min_px)
        names = ("mask_threshold", "mask_nms_iou", "score_min", "area_min_px")
        return [base.model_copy(update=dict(zip(names, values, strict=True))) for values in tried]


def choice_scores(
    soft: SoftOutlines, truth: Cells, labels: LabelSet, output: SegmentOutput, grid: MaskGrid, base: MaskCleaning
) -> NDArray[np.float64]:
    """The Sartorius score of one image with each of `grid.choices(base)`, shape (choices,).

    Args:
        soft: the outlines of one cell type in one image.
        truth: the cells that they are compared with; each with a mask.
        labels: class indices are places in its names.
        output: how soft masks are pasted.
        grid: what is tried.
        base: what the grid does not set.
    """
    ignored = truth.frame["ignore"].to_numpy()
    scores: list[NDArray[np.float64]] = []
    for threshold, iou in product(grid.mask_threshold, grid.mask_nms_iou):
        step = {"mask_threshold": threshold, "mask_nms_iou": iou, "score_min": 0.0, "area_min_px": 0}
        reading = output.model_copy(
            update={"cleaning": base.model_copy(update=step), "per_label": {}, "one_label": False}
        )
        found = cleaned(soft, labels, reading)
        areas = np.array([masks.area(code) for code in found.masks], np.int64)
        kept = [
            (found.scores >= np.float32(score)) & (areas >= area)
            for score, area in product(grid.score_min, grid.area_min_px)
        ]
        table = overlaps(truth, found, labels, soft.size_hw)
        scores.append(subset_scores(table, ignored, np.array(kept, bool)))
    return np.concatenate(scores)


def overlaps(truth: Cells, found: Outlines, labels: LabelSet, size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """IoU of outlines with the cells of the truth by their masks, shape (found, truth); see `match.overlaps`."""
    cells = Cells.of(
        labels,
        image_id=[""] * len(found.masks),
        boxes=found.boxes,
        label=[labels.names[index] for index in found.classes.tolist()],
        source="outlines",
        score=found.scores,
        mask=found.masks,
    )
    return match.overlaps(truth, cells, size_hw)


def subset_scores(table: ArrayLike, ignored: ArrayLike, kept: ArrayLike) -> NDArray[np.float64]:
    """The Sartorius score of one image for several sets of its findings, shape (S,); see `evaluate.sartorius`.

    Args:
        table: IoU of masks, shape (found, truth); of an ignored truth, how much of the finding lies in it.
        ignored: truths that are not scored, shape (truth,).
        kept: which findings each set has, shape (S, found).
    """
    overlap, outside = np.asarray(table, np.float64), np.asarray(ignored, bool)
    sets = np.asarray(kept, np.float32)
    counts = np.zeros((len(IOU_LIMITS), len(sets), 3))
    near = (overlap > IOU_LIMITS[0]).any(axis=1)  # few findings overlap anything as much; the others are only counted
    for row, limit in zip(counts, IOU_LIMITS, strict=True):
        over = overlap > limit
        per_truth = np.rint(sets[:, near] @ over[np.ix_(near, ~outside)].astype(np.float32))
        alone = sets @ (~over.any(axis=1)).astype(np.float32)
        row[:, 0] = (per_truth == 1).sum(axis=1)
        row[:, 1] = np.rint(alone) + (per_truth > 1).sum(axis=1)
        row[:, 2] = (per_truth == 0).sum(axis=1)
    return precision_of(counts).mean(axis=0)


def best_choice(scores: ArrayLike) -> int:
    """The choice with the best mean over images; of equally good ones the first.

    Args:
        scores: shape (images, choices), at least one image.
    """
    # Rounded, so that equal means stay equal whatever the order they were summed in.
    return int(np.round(np.asarray(scores, np.float64).mean(axis=0), 12).argmax())


def nested_choices(scores: ArrayLike, units: Sequence[object]) -> dict[object, int]:
    """For each fold the choice that is best on the images of all others; folds that are alone are left out.

    Args:
        scores: shape (images, choices).
        units: the fold of each image (images).
    """
    table = np.asarray(scores, np.float64)
    own = {unit: np.array([other == unit for other in units], bool) for unit in dict.fromkeys(units)}
    return {unit: best_choice(table[~there]) for unit, there in own.items() if not there.all()}
