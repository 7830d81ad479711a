"""The part of the evaluation report that shows how well cells are outlined."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import polars as pl

from cytolens.dataset import Dataset
from cytolens.evaluate import pictures, plots
from cytolens.evaluate.page import Page, Picture, Tile, interval_text
from cytolens.evaluate.scores import Scores

_WORST_IMAGES = 6
_ROWS = 40
_MISSED, _SURPLUS, _HIT, _TRUTH = plots.WARM, "#a21caf", plots.ACCENT, "#60a5fa"
_TILES = {
    "map": "mean precision, IoU .50–.95",
    "dsb_ap50": "precision at IoU .50",
    "dsb_ap50_pooled": "the same, cells pooled",
    "f1_50": "F1 at IoU .50",
    "pq": "panoptic quality",
    "coco_mask_map": "COCO mask AP",
    "coco_mask_ap50": "COCO mask AP at .50",
    "boundary_f": "contours, F",
}
_COLUMNS = {"ap50": "AP50", "ap50_95": "AP50–95", "map": "precision", "f1": "F1", "pq": "PQ"}
_CAPTION = (
    "AP is COCO's, of masks; precision is TP / (TP + FP + FN), the mean over IoU .50 to .95 and over the images that "
    "have the label; F1 and PQ are of pairs from IoU .50 on. Here a cell is paired within its label only."
)
_TYPES = "The score is the mean over the images most of whose cells have the label."
_ONE_TO_ONE = "Precision is TP / (TP + FP + FN), with findings and truths paired one to one from the limit on."
_COMPETITION = (
    "Precision by the competition's rule: an overlap counts above the limit, and a truth that several findings overlap "
    "so is a false one."
)


def segmentation_part(page: Page, scores: Scores, truth: Dataset) -> Page:
    """The page with figures, precision against overlap, labels, images, and the worst of them with contours."""
    figures = scores.figures
    competition = scores.task == "sartorius"
    names = {"score": "competition's score", **_TILES} if competition else _TILES
    share = figures["count_error_share"]
    off = "–" if figures["count_error"] is None else f"{figures['count_error']:.2f}"
    page = page.tiles(
        [
            *(_tile(figures, name, label) for name, label in names.items()),
            Tile("cells off per image", off, "" if share is None else f"{100 * share:.1f} % of the truth"),
            Tile("cells", f"{figures['truth']:,}", f"{figures['found']:,} found and counted"),
            Tile("split / merged", f"{figures['splits']:,} / {figures['merges']:,}", "truths / findings"),
        ]
    )
    page = page.section("How exactly cells are outlined").figures(
        [Picture(_curve(scores.tables["iou_limits"]), _COMPETITION if competition else _ONE_TO_ONE)]
    )
    page = _labels(page, figures["per_label"], competition)
    return _worst_images(_image_rows(page, scores, competition), scores, truth, competition)


def _labels(page: Page, per_label: Mapping[str, Mapping[str, Any]], competition: bool) -> Page:
    shown = {"score": "score", **_COLUMNS} if competition else _COLUMNS
    rows = [
        [label, row["truth"], row["found"], *(interval_text(row[n], row.get(f"{n}_interval")) for n in shown)]
        for label, row in per_label.items()
    ]
    caption = f"{_CAPTION} {_TYPES}" if competition else _CAPTION
    return page.section("Labels").table(["label", "truth", "found", *shown.values()], rows, caption)


def _image_rows(page: Page, scores: Scores, competition: bool) -> Page:
    by = "score" if competition else "map"
    images = scores.tables["images"].sort(by, "image_id")
    columns = [by, "truth", "found", "hits", "missed", "surplus", "splits", "merges", "boundary_f"]
    rows = [[row["image_id"], *(row[name] for name in columns)] for row in images.head(_ROWS).iter_rows(named=True)]
    names = ["image", "score" if competition else "precision", *columns[1:-1], "contours, F"]
    more = f"The {_ROWS} lowest of {len(images):,} images." if len(images) > _ROWS else ""
    return page.section("Images").table(names, rows, more)


def _worst_images(page: Page, scores: Scores, truth: Dataset, competition: bool) -> Page:
    by = "score" if competition else "map"
    worst = scores.tables["images"].filter(pl.col(by) < 1).sort(by, "image_id").head(_WORST_IMAGES)
    page = page.section(
        "Images with the lowest figures",
        "Green: found, on the truth in light blue. Orange: a truth that was missed. Purple: a counted finding without "
        "a truth. All at IoU .50.",
    )
    if not len(worst):
        return page.text("There are none.")
    files, shown = pictures.ImageFiles(truth.images), []
    for row in worst.iter_rows(named=True):
        detail = f"{row[by]:.3f}; {row['truth']} cells: {row['missed']} missed, {row['surplus']} surplus"
        pixels = files.read(row["image_id"])
        if isinstance(pixels, str):
            shown.append(Picture(None, row["image_id"], f"{detail}. Cannot be shown: {pixels}"))
            continue
        outcomes = scores.tables["outcomes"].filter(pl.col("image_id") == row["image_id"])
        try:
            drawn = pictures.contoured(pixels, _contours(outcomes))
        except ValueError as error:
            shown.append(Picture(None, row["image_id"], f"{detail}. Cannot be shown: {error}"))
            continue
        shown.append(Picture(drawn, row["image_id"], detail))
    return page.figures(shown)


def _contours(outcomes: pl.DataFrame) -> list[pictures.Contour]:
    """The truth below, what was found on it, mistakes on top."""
    drawn = []
    for side, outcome, colour, width in (
        ("truth", "hit", _TRUTH, 2),
        ("found", "hit", _HIT, 2),
        ("truth", "missed", _MISSED, 3),
        ("found", "surplus", _SURPLUS, 3),
    ):
        codes = outcomes.filter(side=side, outcome=outcome)["mask"].to_list()
        drawn += [pictures.Contour(code, colour, width) for code in codes]
    return drawn


def _tile(figures: Mapping[str, Any], name: str, label: str) -> Tile:
    interval = figures.get(f"{name}_interval")
    detail = "" if interval is None else f"{interval[0]:.3f} – {interval[1]:.3f}"
    return Tile(label, interval_text(figures[name], None), detail)


def _curve(limits: pl.DataFrame) -> bytes:
    """Precision against the overlap that is asked for, with a band for the interval, as a PNG."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(6.2, 3.6), layout="constrained", facecolor="white")
    axes = drawing.add_subplot()
    known = limits.drop_nulls(["low", "high"])
    axes.fill_between(known["limit"], known["low"], known["high"], color=plots.ACCENT, alpha=0.18, linewidth=0)
    axes.plot(limits["limit"], limits["precision"], "o-", color=plots.ACCENT, linewidth=1.8, markersize=4.5)
    axes.set_ylim(0, 1.015)
    axes.set_xlim(0.49, 0.96)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(plots.FAINT)
    axes.tick_params(color=plots.FAINT, labelcolor=plots.INK, labelsize=8)
    axes.grid(color=plots.GRID, linewidth=0.8)
    axes.set_xlabel("IoU limit", color=plots.INK, fontsize=9)
    axes.set_ylabel("TP / (TP + FP + FN), mean over images", color=plots.INK, fontsize=9)
    stream = io.BytesIO()
    # Without the program's version, so that equal scores give equal files.
    drawing.savefig(stream, format="png", dpi=200, metadata={"Software": None})
    return stream.getvalue()
