"""The evaluation report: figures, plots and the worst cases, on one page."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

import cytolens
from cytolens.cells import BOX_COLUMNS, Cells
from cytolens.dataset import Dataset
from cytolens.evaluate import pictures, plots
from cytolens.evaluate.attributes_page import attributes_part
from cytolens.evaluate.challenge_page import challenge_part
from cytolens.evaluate.page import Page, Picture, Tile, interval_text
from cytolens.evaluate.scores import Scores
from cytolens.evaluate.segmentation_page import segmentation_part
from cytolens.images import Pixels
from cytolens.problems import listing

_WORST_IMAGES = 6
_WORST_CELLS = 24
_PROBLEMS_SHOWN = 20
_SIDE_BY_SIDE = 12
_MISSED, _SURPLUS, _HIT = plots.WARM, "#a21caf", plots.ACCENT


def write_report(scores: Scores, truth: Dataset, found: Cells | Dataset, path: str | os.PathLike[str]) -> None:
    """Write the report of an evaluation as one self-contained HTML file.

    Args:
        scores: the evaluation.
        truth: what it was made with; its image files are shown where they can be read.
        found: the findings it was made with.
        path: of the HTML file.
    """
    report_page(scores, truth, found).write(path)


def report_page(scores: Scores, truth: Dataset, found: Cells | Dataset) -> Page:
    """The report of an evaluation as a `Page`."""
    cells = found.cells if isinstance(found, Dataset) else found
    sources = cells.frame["source"].drop_nulls().unique().sort().to_list()
    subtitle = (
        f"{scores.task} · {truth.name} · {scores.figures['images']:,} images · found by {listing(sources, 3) or '–'}"
    )
    page = Page("How well findings agree with the truth", subtitle, f"Made with Cytolens {cytolens.__version__}.")
    page = _PARTS.get(scores.task, _any_task)(page, scores, truth)
    page = page.section("How to read this").notes([*_reading(scores), *scores.notes])
    problems = [str(problem) for problem in scores.problems]
    more = [f"… and {len(problems) - _PROBLEMS_SHOWN} more."] if len(problems) > _PROBLEMS_SHOWN else []
    return page.notes([*problems[:_PROBLEMS_SHOWN], *more], "warning")


def _reading(scores: Scores) -> list[str]:
    """What figures and intervals mean, and what they leave out."""
    figures = scores.figures
    joined = [f"{count:,} by {how}" for how, count in figures["joined_by"].items()]
    notes = [f"Images were joined: {', '.join(joined) or 'none'}. Labels carry the truth's names; finer ones roll up."]
    if any(name.endswith("_interval") for name in figures):
        unit = figures["interval_unit"]
        notes.append(
            f"Intervals (in brackets) are 95 %, from a bootstrap over {figures['groups']:,} {unit}s: how far a figure "
            f"would move with another draw of such {unit}s. They cover counting error, not a model's misnaming, "
            "mistakes in the truth, or other laboratories, stains and scanners."
        )
        if unit == "image":
            notes.append(
                "No patient, slide or plate is known: images of one patient may stand on both sides of a split, and "
                "the intervals may be too narrow."
            )
    return notes


def _tile(label: str, figures: Mapping[str, Any], name: str, digits: int = 3) -> Tile:
    value, interval = figures.get(name), figures.get(f"{name}_interval")
    detail = "" if interval is None else f"{interval[0]:.{digits}f} – {interval[1]:.{digits}f}"
    return Tile(label, "–" if value is None else f"{value:.{digits}f}", detail)


def _with_interval(figures: Mapping[str, Any], name: str) -> str:
    return interval_text(figures.get(name), figures.get(f"{name}_interval"))


def _bars(per_label: Mapping[str, Mapping[str, Any]], name: str, title: str) -> bytes:
    order = sorted(per_label, key=lambda label: -(per_label[label][name] or 0))
    rows = [per_label[label] for label in order]
    return plots.bars(order, [row[name] for row in rows], [row.get(f"{name}_interval") for row in rows], title)


# -- any task -------------------------------------------------------------------------------------


def _any_task(page: Page, scores: Scores, truth: Dataset) -> Page:
    numbers = [name for name, value in scores.figures.items() if isinstance(value, float)]
    page = page.tiles([_tile(name.replace("_", " "), scores.figures, name) for name in numbers])
    per_label = scores.figures.get("per_label")
    if not per_label:
        return page
    names = [name for name in next(iter(per_label.values())) if not name.endswith("_interval")]
    return page.section("Labels").table(
        ["label", *names], [[label, *(row.get(name) for name in names)] for label, row in per_label.items()]
    )


# -- detection ------------------------------------------------------------------------------------


def _detection(page: Page, scores: Scores, truth: Dataset) -> Page:
    figures = scores.figures
    page = page.tiles(
        [
            _tile("mAP at IoU .50", figures, "map50"),
            _tile("mAP at IoU .50–.95", figures, "map50_95"),
            _tile("precision (counted)", figures, "precision"),
            _tile("recall (counted)", figures, "recall"),
            _tile("F1 (counted)", figures, "f1"),
            Tile("cells", f"{figures['truth']:,}", f"{figures['found']:,} found and counted"),
        ]
    )
    per_label = figures["per_label"]
    rows = [
        [label, row["truth"], row["found"], *(_with_interval(row, n) for n in _DETECTION_COLUMNS)]
        for label, row in per_label.items()
    ]
    columns = ["label", "truth", "found", "AP50", "AP50–95", "precision", "recall", "F1"]
    caption = f"A counted finding is right where it overlaps a truth of its label by IoU ≥ {figures['iou_min']:g}."
    page = page.section("Labels").table(columns, rows, caption)
    curves = scores.tables["precision_recall"]
    ap50 = {label: row["ap50"] for label, row in per_label.items()}
    page = page.figures(
        [
            Picture(plots.precision_recall(curves, ap50), "Precision against recall of everything found, at IoU .50."),
            Picture(_bars(per_label, "f1", "F1 of counted cells"), "F1 per label, with its interval."),
        ]
    )
    return _worst_images(page, scores, truth)


_DETECTION_COLUMNS = ("ap50", "ap50_95", "precision", "recall", "f1")


def _worst_images(page: Page, scores: Scores, truth: Dataset) -> Page:
    worst = (
        scores.tables["images"]
        .filter(pl.col("missed") + pl.col("surplus") > 0)
        .sort(pl.col("missed") + pl.col("surplus"), "image_id", descending=[True, False])
        .head(_WORST_IMAGES)
    )
    page = page.section(
        "Images with the most mistakes",
        "Thin green: found. Orange: a truth that was missed. Purple, broken: a counted finding without a truth.",
    )
    if not len(worst):
        return page.text("There are none.")
    files = pictures.ImageFiles(truth.images)
    shown = []
    for row in worst.iter_rows(named=True):
        pixels = files.read(row["image_id"])
        detail = f"{row['truth']} cells: {row['missed']} missed, {row['surplus']} surplus"
        if isinstance(pixels, str):
            shown.append(Picture(None, row["image_id"], f"{detail}. Cannot be shown: {pixels}"))
            continue
        outcomes = scores.tables["outcomes"].filter(pl.col("image_id") == row["image_id"])
        shown.append(Picture(pictures.outlined(pixels, _outlines(outcomes)), row["image_id"], detail))
    return page.figures(shown)


def _outlines(outcomes: pl.DataFrame) -> list[pictures.Outline]:
    """Hits below, mistakes on top and named."""
    drawn = []
    for side, outcome, colour, width, dashed, named in (
        ("found", "hit", _HIT, 2, False, False),
        ("truth", "missed", _MISSED, 3, False, True),
        ("found", "surplus", _SURPLUS, 3, True, True),
    ):
        for row in outcomes.filter(side=side, outcome=outcome).iter_rows(named=True):
            text = row["label"] if named else ""
            drawn.append(pictures.Outline([row[n] for n in BOX_COLUMNS], colour, text, width, dashed))
    return drawn


# -- classification -------------------------------------------------------------------------------


def _classification(page: Page, scores: Scores, truth: Dataset) -> Page:
    figures = scores.figures
    page = page.tiles(
        [
            _tile("accuracy", figures, "accuracy"),
            _tile("balanced accuracy", figures, "balanced_accuracy"),
            _tile("macro-F1", figures, "macro_f1"),
            _tile("accuracy, accepted", figures, "accuracy_accepted"),
            _tile("coverage", figures, "coverage"),
            _tile("calibration error", figures, "ece"),
            _tile("Cohen's κ", figures, "kappa"),
            Tile("cells", f"{figures['matched']:,}", f"{figures['missed']:,} not found"),
        ]
    )
    per_label = figures["per_label"]
    rows = [
        [label, row["support"], *(_with_interval(row, name) for name in ("precision", "recall", "f1"))]
        for label, row in per_label.items()
    ]
    page = page.section("Labels").table(["label", "cells", "precision", "recall", "F1"], rows)
    confusion = figures["confusion"]
    matrix = plots.confusion_matrix(confusion["labels"], confusion["columns"], confusion["matrix"])
    caption = "Rows are the truth. Colour is the share of the row: green named rightly, orange wrongly."
    wide = len(confusion["labels"]) > _SIDE_BY_SIDE  # a large matrix needs the page's whole width to be read
    page = page.figures(
        [Picture(matrix, caption, wide=wide), Picture(_bars(per_label, "f1", "F1"), "F1 per label, with its interval.")]
    )
    page = _confused_pairs(page, confusion)
    page = _parent_rows(page, figures["parents"])
    page = _sureness(page, scores)
    return _worst_cells(page, scores, truth)


def _confused_pairs(page: Page, confusion: Mapping[str, Any]) -> Page:
    """The commonest mistakes."""
    pairs = [
        (count, label, column, count / max(1, sum(row)))
        for label, row in zip(confusion["labels"], confusion["matrix"], strict=True)
        for column, count in zip(confusion["columns"], row, strict=True)
        if column != label and count
    ]
    if not pairs:
        return page
    rows = [
        [label, column, count, f"{100 * share:.1f} %"]
        for count, label, column, share in sorted(pairs, key=lambda pair: (-pair[0], -pair[3], pair[1]))[:10]
    ]
    return page.section("Commonest confusions").table(["truth", "found", "cells", "of the truth"], rows)


def _parent_rows(page: Page, parents: Mapping[str, Mapping[str, Any]]) -> Page:
    if not parents:
        return page
    rows = [[name, row["support"], _with_interval(row, "accuracy")] for name, row in parents.items()]
    caption = "Right where the label and its kinds together have more probability than any label outside."
    return page.section("Truths named by a parent only").table(["label", "cells", "accuracy"], rows, caption)


def _sureness(page: Page, scores: Scores) -> Page:
    figures = scores.figures
    if not len(scores.tables["coverage"]):
        return page
    accepted = None
    if figures["referred"] and figures["accuracy_accepted"] is not None:
        accepted = (figures["coverage"], figures["accuracy_accepted"])
    page = page.section("How far confidence can be trusted").figures(
        [
            Picture(
                plots.reliability(scores.tables["reliability"], figures["ece"]),
                "How often a name is right against how surely it was said. On the broken line both agree.",
            ),
            Picture(
                plots.accuracy_against_coverage(scores.tables["coverage"], accepted),
                "Accuracy of the surest cells when the others are left to a person.",
            ),
        ]
    )
    rows = [
        [f"{100 * row['coverage']:.0f} %", row["kept"], row["accuracy"], row["threshold"]]
        for row in figures["coverage_curve"]
    ]
    return page.table(["coverage", "cells kept", "accuracy", "confidence from"], rows)


def _worst_cells(page: Page, scores: Scores, truth: Dataset) -> Page:
    wrong = scores.tables["cells"].filter(~pl.col("correct") & ~pl.col("parent"))
    worst = wrong.sort("confidence", "truth_cell_id", descending=[True, False]).head(_WORST_CELLS)
    page = page.section("Surest mistakes", "What the truth says → what was found, and how surely.")
    if not len(worst):
        return page.text("There are none.")
    files = pictures.ImageFiles(truth.images)
    shown = []
    for row in worst.iter_rows(named=True):
        caption = f"{row['truth']} → {row['predicted']}"
        detail = f"{100 * row['confidence']:.0f} %{', referred' if row['refer'] else ''} · {row['image_id']}"
        pixels = files.read(row["image_id"])
        if isinstance(pixels, str):
            shown.append(Picture(None, caption, f"{detail}. Cannot be shown: {pixels}"))
        else:
            shown.append(Picture(_cell_picture(pixels, row), caption, detail))
    return page.grid(shown)


def _cell_picture(pixels: Pixels, row: Mapping[str, Any]) -> bytes:
    """The cell as the truth boxes it; where that is the whole image, without a margin."""
    corners = [row[name] for name in BOX_COLUMNS]
    whole = corners[2] - corners[0] >= pixels.shape[1] and corners[3] - corners[1] >= pixels.shape[0]
    return pictures.crop(pixels, corners, factor=1.0 if whole else 1.25)


_PARTS: dict[str, Callable[[Page, Scores, Dataset], Page]] = {
    "detection": _detection,
    "classification": _classification,
    "attributes": lambda page, scores, truth: attributes_part(page, scores),
    "segmentation": segmentation_part,
    "sartorius": segmentation_part,
    "cytologia": lambda page, scores, truth: _worst_images(challenge_part(page, scores), scores, truth),
}
