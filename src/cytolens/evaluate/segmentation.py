"""How well cells are outlined: by masks, whatever a cell is called, and within each label.

Counted findings are the answer and enter `map`, `dsb_ap50`, F1, panoptic quality, counts, splits, merges and contours;
everything found enters COCO's mask AP, which is about the order. `map` is the mean over the images of TP / (TP + FP +
FN), averaged over ten IoU limits, with findings and truths paired one to one. The task "sartorius" has the score of
that competition (`evaluate/sartorius.py`), which differs where findings overlap each other. An image without truth
and answer counts 1 in means over images.

Tables of the scores: ``outcomes`` (one row per scored truth and counted finding: what became of it at IoU .50, with its
mask), ``images`` (figures per image), ``iou_limits`` (precision at each limit).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens.cells import BOX_COLUMNS
from cytolens.evaluate.agreement import mean_where, ratio
from cytolens.evaluate.average_precision import average_precision
from cytolens.evaluate.joining import Joined, names_without_place
from cytolens.evaluate.outline_tallies import BOUNDARY_PX, OUTCOMES, Floats, Tallies, tally
from cytolens.evaluate.sartorius import IOU_LIMITS, precision_of
from cytolens.evaluate.scores import EvaluateSettings, Scores, figure, plain
from cytolens.evaluate.uncertainty import Resampling, resampling
from cytolens.problems import SettingError

Weights = NDArray[np.floating]


def score_segmentation(joined: Joined, settings: EvaluateSettings) -> Scores:
    """The figures of the task "segmentation", under the names that `evaluate --json` gives them.

    Raises:
        SettingError: a setting has no part in this task, or two say how far apart contours may be.
        DatasetError: a scored truth or a finding has no mask, or masks and images do not fit together.
    """
    return _scored("segmentation", joined, settings)


def score_sartorius(joined: Joined, settings: EvaluateSettings) -> Scores:
    """The figures of the task "sartorius": the competition's score, and those of "segmentation" beside it.

    Raises:
        SettingError, DatasetError: as for `score_segmentation`.
    """
    return _scored("sartorius", joined, settings)


def _scored(task: str, joined: Joined, settings: EvaluateSettings) -> Scores:
    _refuse(settings, task)
    joined = _outlined(joined)
    tallies = tally(joined, settings)
    drawn = resampling(joined.images, settings.bootstrap if settings.intervals else 0, settings.seed)
    counts = tallies.competition if task == "sartorius" else tallies.one_to_one
    figures: dict[str, Any] = {}
    if task == "sartorius":
        figures |= _mean("score", precision_of(tallies.competition).mean(axis=1), drawn.weights)
    figures |= _headline(tallies, drawn.weights)
    at_limits = precision_of(counts)
    per_limit = {
        f"{limit:.2f}": _mean("precision", at_limits[:, i], drawn.weights) for i, limit in enumerate(IOU_LIMITS)
    }
    figures |= {
        "precision_at": {limit: row["precision"] for limit, row in per_limit.items()},
        "images": len(joined.images),
        "truth": int(tallies.truth.sum()),
        "found": int(tallies.found.sum()),
        "splits": int(tallies.splits.sum()),
        "merges": int(tallies.merges.sum()),
        "boundary_tolerance_px": _boundary_px(settings),
        "boundary_tolerance_share": settings.boundary_share,
        "interval_unit": drawn.unit,
        "groups": drawn.groups,
        "joined_by": dict(joined.joined_by),
        "per_label": _per_label(task, joined, tallies, drawn),
    }
    return Scores(
        task=task,
        figures=figures,
        notes=(*joined.notes, *_notes(joined, settings), *drawn.notes),
        problems=joined.problems,
        tables={
            "outcomes": _outcomes(joined, tallies),
            "images": _images(joined, tallies),
            "iou_limits": _limits(per_limit),
        },
    )


def _outlined(joined: Joined) -> Joined:
    """Without findings that have only a box where nobody asked for more: a model that outlines white cells finds red
    ones as boxes, and draws nothing where it does not count. Those that count, under a label of the truth, stay.
    """
    frame = joined.found.frame
    bare = frame["mask"].is_null().to_numpy()
    spare = bare & ((joined.found_label < 0) | ~frame["counted"].to_numpy())
    if not spare.any() or spare.all():
        return joined
    note = (
        f"{int(spare.sum())} findings with a box alone are left out: of other labels than the truth's, or not counted."
    )
    return replace(
        joined, found=joined.found.filter(~spare), found_label=joined.found_label[~spare], notes=(*joined.notes, note)
    )


def _boundary_px(settings: EvaluateSettings) -> float | None:
    """The tolerance in px; None where it is a share of the diagonal."""
    if settings.boundary_share is not None:
        return None
    return BOUNDARY_PX if settings.boundary_px is None else settings.boundary_px


def _refuse(settings: EvaluateSettings, task: str) -> None:
    if settings.iou_min != EvaluateSettings().iou_min:
        raise SettingError(
            f"iou_min = {settings.iou_min:g} has no part in the task {task}: its overlaps are fixed by what "
            "its figures mean (.50, and .50 to .95 in ten steps); leave it out"
        )
    if settings.boundary_px is not None and settings.boundary_share is not None:
        raise SettingError(
            f"boundary_px = {settings.boundary_px:g} and boundary_share = {settings.boundary_share:g} both say how far "
            "apart contours may be; give one of them"
        )


# -- figures --------------------------------------------------------------------------------------


def _mean(name: str, values: Floats, weights: Weights | None) -> dict[str, Any]:
    """A mean over images (I,) with its interval; NaN values are left out."""
    known = np.isfinite(values)
    filled = np.where(known, values, 0)
    samples = None
    if weights is not None:
        w = weights.astype(np.float64)
        samples = ratio(w @ filled, w @ known)
    return figure(name, float(ratio(filled.sum(), known.sum())), samples)


def _quotient(name: str, part: Floats, whole: Floats, weights: Weights | None) -> dict[str, Any]:
    """A quotient of sums over images (I,) with its interval."""
    samples = None
    if weights is not None:
        w = weights.astype(np.float64)
        samples = ratio(w @ part, w @ whole)
    return figure(name, float(ratio(part.sum(), whole.sum())), samples)


def _headline(tallies: Tallies, weights: Weights | None) -> dict[str, Any]:
    precisions = precision_of(tallies.one_to_one)
    entry = _mean("map", precisions.mean(axis=1), weights)
    entry |= _mean("dsb_ap50", precisions[:, 0], weights)
    at_50 = tallies.one_to_one[:, 0].astype(np.float64)
    entry |= _quotient("dsb_ap50_pooled", at_50[:, 0], at_50.sum(axis=1), weights)
    entry |= _pooled(at_50, tallies.iou, weights, "_50")
    entry |= _coco(tallies, weights)
    entry |= _mean("boundary_f", tallies.boundary, weights)
    off = np.abs(tallies.found - tallies.truth).astype(np.float64)
    entry |= _mean("count_error", off, weights)
    return entry | _quotient("count_error_share", off, tallies.truth.astype(np.float64), weights)


def _pooled(at_50: Floats, iou: Floats, weights: Weights | None, suffix: str = "") -> dict[str, Any]:
    """Precision, recall, F1 and panoptic quality of counts (I, 3) pooled over images.

    Panoptic quality is the product of segmentation quality (mean IoU of the pairs) and recognition quality, which is
    F1. Source: A. Kirillov et al., CVPR 2019.
    """
    tp, fp, fn = at_50.T
    both = tp + (fp + fn) / 2
    return {
        **_quotient(f"precision{suffix}", tp, tp + fp, weights),
        **_quotient(f"recall{suffix}", tp, tp + fn, weights),
        **_quotient(f"f1{suffix}", tp, both, weights),
        **_quotient("pq", iou, both, weights),
        **_quotient("sq", iou, tp, weights),
    }


def _coco(tallies: Tallies, weights: Weights | None) -> dict[str, Any]:
    """COCO's mask AP: the mean over the labels that have truth, and of all findings whatever they are called."""
    entry: dict[str, Any] = {}
    rankings = [ranking for ranking in tallies.label_rankings.values() if ranking.truth_per_image.sum()]
    for suffix, chosen in (("", rankings), ("_class_free", [tallies.ranking])):
        point = _over(np.stack([average_precision(one)[0] for one in chosen]) if chosen else np.zeros((0, 1)))
        drawn = None
        if weights is not None:
            tables = [average_precision(one, weights) for one in chosen]
            drawn = _over(np.stack(tables) if tables else np.zeros((0, len(weights), 1)))
        entry |= figure(f"coco_mask_map{suffix}", point.mean(), None if drawn is None else drawn.mean(axis=1))
        entry |= figure(f"coco_mask_ap50{suffix}", point[0], None if drawn is None else drawn[:, 0])
    return entry


def _over(tables: Floats) -> Floats:
    """The mean over the first axis of what is known."""
    table = np.moveaxis(tables, 0, -1)
    return mean_where(table, np.isfinite(table))


def _per_label(task: str, joined: Joined, tallies: Tallies, drawn: Resampling) -> dict[str, Any]:
    """Each label that occurs, scored among cells of that label only; in "sartorius", its images' score, too."""
    rows: dict[str, Any] = {}
    kind = _commonest(tallies.label_truth)
    for k, name in enumerate(joined.labels.names):
        if k not in tallies.label_rankings:
            continue
        row: dict[str, Any] = {}
        if task == "sartorius":
            own = np.where(kind == k, precision_of(tallies.competition).mean(axis=1), np.nan)
            row |= _mean("score", own, drawn.weights) | {"images": int((kind == k).sum())}
        ranking = tallies.label_rankings[k]
        point = average_precision(ranking)[0]
        samples = None if drawn.weights is None else average_precision(ranking, drawn.weights)
        row |= figure("ap50", point[0], None if samples is None else samples[:, 0])
        row |= figure("ap50_95", point.mean(), None if samples is None else samples.mean(axis=1))
        counts = tallies.label_one_to_one[:, k]
        present = counts[:, 0].sum(axis=1) > 0
        row |= _mean("map", np.where(present, precision_of(counts).mean(axis=1), np.nan), drawn.weights)
        row |= _pooled(counts[:, 0].astype(np.float64), tallies.label_iou[:, k], drawn.weights)
        rows[name] = row | {
            "truth": int(tallies.label_truth[:, k].sum()),
            "found": int(tallies.label_found[:, k].sum()),
        }
    return rows


def _commonest(label_truth: NDArray[np.int64]) -> NDArray[np.intp]:
    """The label of most truths of each image (I, K), the first of equals; −1 where none has a name, shape (I,)."""
    if not label_truth.shape[1]:
        return np.full(len(label_truth), -1, np.intp)
    return np.where(label_truth.sum(axis=1) > 0, label_truth.argmax(axis=1), -1).astype(np.intp)


def _notes(joined: Joined, settings: EvaluateSettings) -> list[str]:
    outside = joined.found_label < 0
    if not outside.any():
        return []
    named = names_without_place(joined.found.label_names(), joined.found_label)
    if settings.level is not None:
        return [f"{int(outside.sum())} findings outside the level asked for are left out: {named}."]
    return [
        f"{int(outside.sum())} findings whose label has no counterpart in the truth count as outlines, and under no "
        f"label: {named}."
    ]


# -- tables ---------------------------------------------------------------------------------------


def _outcomes(joined: Joined, tallies: Tallies) -> pl.DataFrame:
    columns = ["image_id", "cell_id", *BOX_COLUMNS, "score", "mask"]
    names = [*joined.labels.names, None]
    scored = ~joined.truth.frame["ignore"].to_numpy()
    ours = joined.truth.frame.filter(scored).select(
        pl.lit("truth").alias("side"),
        *columns,
        pl.Series("label", [names[i] for i in joined.truth_label[scored]], pl.String),
        pl.Series("outcome", np.where(tallies.truth_hit[scored], "hit", "missed"), pl.String),
    )
    theirs = joined.found.frame.filter(tallies.answer).select(
        pl.lit("found").alias("side"),
        *columns,
        pl.Series("label", [names[i] for i in joined.found_label[tallies.answer]], pl.String),
        pl.Series("outcome", [OUTCOMES[i] for i in tallies.found_outcome[tallies.answer]], pl.String),
    )
    return pl.concat([ours, theirs])


def _images(joined: Joined, tallies: Tallies) -> pl.DataFrame:
    hits, surplus, missed = tallies.one_to_one[:, 0].T
    kind = _commonest(tallies.label_truth)
    names = [*joined.labels.names, None]
    return joined.images.frame.select("image_id", "group").with_columns(
        label=pl.Series([names[i] for i in kind], dtype=pl.String),
        truth=pl.Series(tallies.truth),
        found=pl.Series(tallies.found),
        hits=pl.Series(hits),
        missed=pl.Series(missed),
        surplus=pl.Series(surplus),
        splits=pl.Series(tallies.splits),
        merges=pl.Series(tallies.merges),
        map=pl.Series(precision_of(tallies.one_to_one).mean(axis=1)),
        ap50=pl.Series(precision_of(tallies.one_to_one)[:, 0]),
        score=pl.Series(precision_of(tallies.competition).mean(axis=1)),
        boundary_f=pl.Series(tallies.boundary),
    )


def _limits(rows: dict[str, dict[str, Any]]) -> pl.DataFrame:
    intervals = [row.get("precision_interval") or [None, None] for row in rows.values()]
    return pl.DataFrame(
        {
            "limit": IOU_LIMITS,
            "precision": [plain(row["precision"]) for row in rows.values()],
            "low": [low for low, _ in intervals],
            "high": [high for _, high in intervals],
        },
        schema=dict.fromkeys(("limit", "precision", "low", "high"), pl.Float64),
    )
