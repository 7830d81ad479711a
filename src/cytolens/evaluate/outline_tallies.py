"""What became of outlines, counted image by image, so that any weighting of the images gives its figures.

Counted findings are the answer, and whatever they are called they are paired with the truths one to one; beside that
within each label. Everything found is ranked for average precision.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolens import masks, match
from cytolens.evaluate.average_precision import IOU_LIMITS as COCO_LIMITS
from cytolens.evaluate.average_precision import pooled
from cytolens.evaluate.joining import Joined, complete_labels
from cytolens.evaluate.outline_overlaps import OutlinesOfImage, boundary_f, contours, outlines_by_image
from cytolens.evaluate.outline_precision import counts_of
from cytolens.evaluate.sartorius import IOU_LIMITS, sartorius_counts
from cytolens.evaluate.scores import EvaluateSettings

MOST_PER_IMAGE = 2000  # findings per image in average precision, as LIVECell's
BOUNDARY_PX = 2.0
OUTCOMES = ("excused", "hit", "surplus")
_MOSTLY = 0.5

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Tallies:
    """Counts per image (I), and of those per label (K); TP, FP and FN are the last axis.

    Attributes:
        one_to_one: at each of the ten IoU limits, shape (I, 10, 3).
        competition: the same by the rule of `sartorius`, shape (I, 10, 3).
        iou: sum over the pairs at IoU .50, shape (I,).
        truth, found: scored truths, and counted findings that are not excused at IoU .50, shape (I,).
        splits, merges: see `_splits_and_merges`, shape (I,).
        boundary: `boundary_f`, shape (I,).
        label_one_to_one: within each label, shape (I, K, 10, 3).
        label_iou, label_truth, label_found: shape (I, K).
        ranking: of everything found, whatever it is called.
        label_rankings: label index → ranking, for labels that occur.
        truth_hit: whether a truth has a partner at IoU .50, shape (T,).
        found_outcome: index into `OUTCOMES`, shape (F,).
        answer: the findings that were counted and scored, shape (F,).
    """

    one_to_one: Counts
    competition: Counts
    iou: Floats
    truth: Counts
    found: Counts
    splits: Counts
    merges: Counts
    boundary: Floats
    label_one_to_one: Counts
    label_iou: Floats
    label_truth: Counts
    label_found: Counts
    ranking: match.Ranking
    label_rankings: dict[int, match.Ranking]
    truth_hit: NDArray[np.bool_]
    found_outcome: NDArray[np.int8]
    answer: NDArray[np.bool_]


class _Counting:
    """The tallies while they are being made."""

    def __init__(self, joined: Joined, settings: EvaluateSettings) -> None:
        images, labels, limits = len(joined.images), len(joined.labels), len(IOU_LIMITS)
        self.settings = settings
        self.ignored = joined.truth.frame["ignore"].to_numpy()
        self.truth_label, self.found_label = joined.truth_label, joined.found_label
        self.scores = joined.found.scores().astype(np.float64)
        # At a level that was asked for, findings outside it are no answer; otherwise names play no part.
        self.scope = (
            np.ones(len(joined.found), bool) if settings.level is None else np.asarray(joined.found_label >= 0, bool)
        )
        self.answer = joined.found.frame["counted"].to_numpy() & self.scope
        self.complete = complete_labels(joined)
        self.one_to_one, self.competition = np.zeros((2, images, limits, 3), np.int64)
        self.iou, self.boundary = np.zeros((2, images))
        self.truth, self.found, self.splits, self.merges = np.zeros((4, images), np.int64)
        self.label_one_to_one = np.zeros((images, labels, limits, 3), np.int64)
        self.label_iou = np.zeros((images, labels))
        self.label_truth, self.label_found = np.zeros((2, images, labels), np.int64)
        self.truth_hit = np.zeros(len(joined.truth), bool)
        self.outcome = np.zeros(len(joined.found), np.int8)
        # Of all names together under −1.
        self.rankings: dict[int, list[tuple[int, match.Ranking]]] = defaultdict(list)

    def add(self, outlines: OutlinesOfImage) -> None:
        image, f = outlines.image, self.answer[outlines.found]
        ignored, rows = self.ignored[outlines.truth], outlines.found[f]
        table, judged = outlines.table[f], self._judged(outlines)
        for level, limit in enumerate(IOU_LIMITS):
            pairs = match.pair(table, ignored, limit)
            surplus = pairs.surplus[judged[f][pairs.surplus]]
            self.one_to_one[image, level] = len(pairs.found), len(surplus), len(pairs.missed)
            if level == 0:
                self.iou[image] = pairs.iou.sum()
                self.truth_hit[outlines.truth[pairs.truth]] = True
                self.outcome[rows[pairs.found]] = OUTCOMES.index("hit")
                self.outcome[rows[surplus]] = OUTCOMES.index("surplus")
        self.competition[image] = sartorius_counts(table, ignored, ~judged[f])
        self.truth[image] = (~ignored).sum()
        scored = self.outcome[outlines.found] > 0
        self.found[image] = scored.sum()
        self._shapes(outlines, scored)
        self._rank(outlines, -1, self.scope[outlines.found], ignored, judged)
        self._labels(outlines, judged)

    def _judged(self, outlines: OutlinesOfImage) -> NDArray[np.bool_]:
        """Findings that are false without a truth: those of a label that is annotated exhaustively, shape (f,)."""
        complete, label = self.complete[outlines.image], self.found_label[outlines.found]
        if not len(complete):
            return np.ones(len(label), bool)
        return np.where(label >= 0, complete[np.maximum(label, 0)], complete.all())

    def _shapes(self, outlines: OutlinesOfImage, scored: NDArray[np.bool_]) -> None:
        image, t = outlines.image, ~self.ignored[outlines.truth]
        ours = [code for code, keep in zip(outlines.truth_codes, t, strict=True) if keep]
        theirs = [code for code, keep in zip(outlines.found_codes, scored, strict=True) if keep]
        tolerance = tolerance_px(self.settings, outlines.size_hw)
        self.boundary[image] = boundary_f(
            contours(theirs, outlines.size_hw), contours(ours, outlines.size_hw), tolerance
        )
        sizes = (np.array([masks.area(code) for code in codes], np.float64) for codes in (theirs, ours))
        self.splits[image], self.merges[image] = splits_and_merges(outlines.table[np.ix_(scored, t)], *sizes)

    def _rank(
        self,
        outlines: OutlinesOfImage,
        label: int,
        f: NDArray[np.bool_],
        ignored: NDArray[np.bool_],
        judged: NDArray[np.bool_],
    ) -> None:
        """COCO's ranking of some findings of an image; those that are not judged are false nowhere."""
        scores = self.scores[outlines.found[f]]
        one = match.rank([outlines.table[f]], [scores], [ignored], COCO_LIMITS, MOST_PER_IMAGE)
        kept = np.argsort(-scores, kind="stable")[:MOST_PER_IMAGE]
        neutral = one.neutral | (~one.hit & ~judged[f][kept][None])
        one = match.Ranking(one.scores, one.image, one.hit, neutral, one.truth_per_image)
        self.rankings[label].append((outlines.image, one))

    def _labels(self, outlines: OutlinesOfImage, judged: NDArray[np.bool_]) -> None:
        ours, theirs = self.truth_label[outlines.truth], self.found_label[outlines.found]
        outside, answer, image = self.ignored[outlines.truth], self.answer[outlines.found], outlines.image
        np.add.at(self.label_truth[image], ours[~outside & (ours >= 0)], 1)
        for label in sorted({*ours.tolist(), *theirs.tolist()} - {-1}):
            t = (ours == label) | (ours < 0)
            # A truth without a name may be of any label: what lies there counts neither way.
            ignored = (outside | (ours < 0))[t]
            part = OutlinesOfImage(image, outlines.size_hw, outlines.truth[t], outlines.found, [], [],
                                   outlines.table[:, t])  # fmt: skip
            self._rank(part, label, theirs == label, ignored, judged)
            f = answer & (theirs == label)
            for level, limit in enumerate(IOU_LIMITS):
                pairs = match.pair(part.table[f], ignored, limit)
                hits, surplus, missed = counts_of(pairs)
                surplus = surplus if self.complete[image, label] else 0
                self.label_one_to_one[image, label, level] = hits, surplus, missed
                if level == 0:
                    self.label_iou[image, label] = pairs.iou.sum()
                    self.label_found[image, label] = hits + surplus


def tally(joined: Joined, settings: EvaluateSettings) -> Tallies:
    """Count the outlines of all images.

    Raises:
        DatasetError: see `outlines_by_image`.
    """
    counting = _Counting(joined, settings)
    for outlines in outlines_by_image(joined):
        counting.add(outlines)
    images = len(joined.images)
    rankings = {
        label: pooled([one for _, one in parts], [image for image, _ in parts], images)
        for label, parts in sorted(counting.rankings.items())
    }
    everything = rankings.pop(-1) if -1 in rankings else pooled([], [], images)
    return Tallies(
        counting.one_to_one,
        counting.competition,
        counting.iou,
        counting.truth,
        counting.found,
        counting.splits,
        counting.merges,
        counting.boundary,
        counting.label_one_to_one,
        counting.label_iou,
        counting.label_truth,
        counting.label_found,
        everything,
        rankings,
        counting.truth_hit,
        counting.outcome,
        counting.answer,
    )


def tolerance_px(settings: EvaluateSettings, size_hw: tuple[int, int]) -> float:
    """How far apart contours may be in an image of this size."""
    if settings.boundary_share is not None:
        return settings.boundary_share * float(np.hypot(*size_hw))
    return BOUNDARY_PX if settings.boundary_px is None else settings.boundary_px


def splits_and_merges(table: Floats, found_area: Floats, truth_area: Floats) -> tuple[int, int]:
    """Truths that several findings share, and findings that hold several truths.

    A truth is split where at least two findings lie in it with more than half of their area; a finding merges where at
    least two truths lie in it so.

    Args:
        table: IoU, shape (found, truth).
        found_area, truth_area: in px, shape (found,) and (truth,).
    """
    shared = table * (found_area[:, None] + truth_area[None]) / (1 + table)
    # The area comes back from the IoU within rounding; a half pixel keeps "more than half" what it says.
    inside_truth = np.round(shared) > _MOSTLY * found_area[:, None]
    inside_found = np.round(shared) > _MOSTLY * truth_area[None]
    return int((inside_truth.sum(axis=0) > 1).sum()), int((inside_found.sum(axis=1) > 1).sum())
