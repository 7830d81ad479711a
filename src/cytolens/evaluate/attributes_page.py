"""The part of the evaluation report that shows attributes: the model beside guessing from the label, value by value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cytolens.evaluate import plots
from cytolens.evaluate.page import Page, Picture, Tile, interval_text
from cytolens.evaluate.scores import Scores

_TILES = {
    "mean_macro_f1": "mean macro-F1",
    "mean_gain_macro_f1": "gain over class-only",
    "mean_accuracy": "mean accuracy",
    "exact_match": "all attributes right",
    "mean_coverage": "coverage",
    "mean_end_to_end": "right, end to end",
}
_CAPTION = (
    "Accuracy, F1 and κ are of matched cells; end to end, an annotated cell without a partner is wrong. Class-only "
    "guesses every attribute from the cell's true label: what a model must beat."
)
_COLUMNS = (
    "attribute", "cells", "accuracy", "macro-F1", "class-only macro-F1", "gain", "κ", "end to end", "calibration error",
    "same label: macro-F1", "same label: coverage",
)  # fmt: skip


def attributes_part(page: Page, scores: Scores) -> Page:
    """The page with headline figures, bars of model and class-only, and what was confused with what."""
    figures = scores.figures
    tiles = [_tile(figures, name, label) for name, label in _TILES.items()]
    page = page.tiles([*tiles, Tile("cells", f"{figures['annotated']:,}", f"{figures['missed']:,} not found")])
    own, alone = figures["per_attribute"], figures["class_only"]["per_attribute"]
    rows = [_row(name, entry, alone[name]) for name, entry in own.items()]
    page = page.section("Attributes").table(_COLUMNS, rows, _CAPTION)
    names = list(own)
    bars = plots.grouped_bars(
        names,
        {side: [part[name]["macro_f1"] for name in names] for side, part in (("model", own), ("class-only", alone))},
        {
            side: [part[name].get("macro_f1_interval") for name in names]
            for side, part in (("model", own), ("class-only", alone))
        },
        "macro-F1",
    )
    page = page.figure(bars, "Macro-F1 of each attribute, with its interval: the model and class-only.")
    page = _values(page, own, alone)
    return _original(page, figures["compatible"])


def _values(page: Page, own: Mapping[str, Any], alone: Mapping[str, Any]) -> Page:
    rows = [
        [name, value, f1, alone[name]["f1_per_value"][value]]
        for name, entry in own.items()
        for value, f1 in entry["f1_per_value"].items()
    ]
    pictures = []
    for name, entry in own.items():
        confusion = entry["confusion"]
        matrix = plots.confusion_matrix(confusion["values"], confusion["columns"], confusion["matrix"])
        pictures.append(Picture(matrix, name, "Rows are the truth."))
    page = page.section("Values", "Which value was taken for which.").figures(pictures)
    return page.table(["attribute", "value", "F1", "class-only F1"], rows)


def _original(page: Page, compatible: Mapping[str, Any]) -> Page:
    """The original program's score, whose pairs need no least overlap."""
    per_attribute = compatible["per_attribute"]
    if not per_attribute:
        return page
    rows = [
        [name, row["value"], row["support"], *(_shown(row, key) for key in ("accuracy", "precision", "recall", "f1"))]
        for name, row in per_attribute.items()
    ]
    text = (
        "The compatible score pairs every truth with the finding that overlaps it most, however little, and scores one "
        f"value of each attribute that has two. Mean F1: {_shown(compatible, 'mean_f1')}."
    )
    columns = ["attribute", "value", "cells", "accuracy", "precision", "recall", "F1"]
    return page.section("As the original LeukemiaAttri program scores", text).table(columns, rows)


def _row(name: str, entry: Mapping[str, Any], alone: Mapping[str, Any]) -> list[object]:
    alike = entry["class_matched"]
    return [
        name, entry["support"], _shown(entry, "accuracy"), _shown(entry, "macro_f1"), _shown(alone, "macro_f1"),
        _shown(entry, "gain_macro_f1"), _shown(entry, "kappa"), _shown(entry, "end_to_end"), _shown(entry, "ece"),
        _shown(alike, "macro_f1"), _shown(alike, "coverage"),
    ]  # fmt: skip


def _tile(figures: Mapping[str, Any], name: str, label: str) -> Tile:
    interval = figures.get(f"{name}_interval")
    detail = "" if interval is None else f"{interval[0]:.3f} – {interval[1]:.3f}"
    return Tile(label, interval_text(figures[name], None), detail)


def _shown(row: Mapping[str, Any], name: str) -> str:
    return interval_text(row[name], row.get(f"{name}_interval"))
