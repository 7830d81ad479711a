"""The part of the evaluation report that shows the challenge's score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cytolens.evaluate import plots
from cytolens.evaluate.page import Page, Picture, Tile, interval_text
from cytolens.evaluate.scores import Scores

_TILES = {
    "score": "challenge score S",
    "giou_term": "localisation, (GIoU + 1) / 2",
    "macro_f1": "macro-F1, the challenge's",
    "strict_macro_f1": "macro-F1, strict",
    "mean_giou": "GIoU of pairs",
    "missed_per_image": "missed per image",
    "surplus_per_image": "surplus per image",
    "map50": "mAP at IoU .50",
    "map50_95": "mAP at IoU .50–.95",
}
_CAPTION = (
    "The challenge gives every truth the finding with the largest GIoU, and a surplus finding costs nothing; the "
    "strict F1 pairs one to one from IoU .5 on and counts every finding."
)


def challenge_part(page: Page, scores: Scores) -> Page:
    """The page with the headline figures, both F1 of each label, and how they compare."""
    figures, per_label = scores.figures, scores.figures["per_label"]
    tiles = [_tile(figures, name, label) for name, label in _TILES.items()]
    page = page.tiles([*tiles, Tile("cells", f"{figures['truth']:,}", f"{figures['found']:,} in the answer")])
    rows = [
        [name, row["truth"], row["found"], *(_interval(row, key) for key in ("f1", "strict_f1"))]
        for name, row in per_label.items()
    ]
    page = page.section("Labels").table(["label", "truth", "found", "F1", "strict F1"], rows, _CAPTION)
    order = sorted(per_label, key=lambda name: -(per_label[name]["strict_f1"] or 0))
    ordered = [per_label[name] for name in order]
    bars = plots.bars(
        order, [row["strict_f1"] for row in ordered], [row.get("strict_f1_interval") for row in ordered], "strict F1"
    )
    return page.figures([Picture(bars, "Strict F1 per label, with its interval.")])


def _tile(figures: Mapping[str, Any], name: str, label: str) -> Tile:
    interval = figures.get(f"{name}_interval")
    detail = "" if interval is None else f"{interval[0]:.3f} – {interval[1]:.3f}"
    return Tile(label, interval_text(figures[name], None), detail)


def _interval(row: Mapping[str, Any], name: str) -> str:
    return interval_text(row[name], row.get(f"{name}_interval"))
