"""The page of a comparison of outlines: what the ensemble gains, a table, and the scores drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from cytolens.evaluate import plots
from cytolens.evaluate.outline_comparison import OutlineComparison
from cytolens.evaluate.page import Page, difference_text, interval_text

_TOLD = {"score": "Sartorius score", "map": "mean precision", "ap50": "AP at .50", "boundary_f": "contour F"}


def gain_of(compared: OutlineComparison, members: Sequence[str]) -> dict[str, Any]:
    """What the baseline, an ensemble, has more than the best of its members, with paired 95 % intervals.

    The best is chosen on the same images, which favours it; the gain is rather told too small than too large.

    Args:
        compared: the comparison with the ensemble.
        members: names of its members.
    """
    frame = compared.frame
    best = frame.filter(pl.col("name").is_in(list(members))).sort("score", descending=True, maintain_order=True)
    row, own = best.row(0, named=True), frame.filter(pl.col("name") == compared.baseline).row(0, named=True)
    said: dict[str, Any] = {"score": own["score"], "score_interval": _ends(own, "score"), "better_member": row["name"]}
    for figure in _TOLD:
        difference = row[f"{figure}_difference"]
        ends = _ends(row, f"{figure}_difference")
        said[f"gain_{figure}"] = None if difference is None else -difference
        said[f"gain_{figure}_interval"] = None if ends is None else [-ends[1], -ends[0]]
    return said


def write_page(compared: OutlineComparison, gain: dict[str, Any], title: str, path: Path) -> None:
    """Write the page, answers in their order."""
    rows = compared.frame.to_dicts()
    over = f"{compared.images} images; 95 % intervals over {compared.groups} {compared.unit}s"
    page = Page(title, over)
    told = ", ".join(
        f"{words} {difference_text(gain[f'gain_{figure}'], gain[f'gain_{figure}_interval'])}"
        for figure, words in _TOLD.items()
    )
    page = page.section(f"Gain over the better member, {gain['better_member']}", told)
    table = [
        [
            row["name"],
            *(interval_text(row[figure], _ends(row, figure)) for figure in _TOLD),
            "–"
            if row["name"] == compared.baseline
            else difference_text(row["score_difference"], _ends(row, "score_difference")),
        ]
        for row in rows
    ]
    columns = ("answer", *_TOLD.values(), f"score minus {compared.baseline}")
    page = page.section("Figures", "Differences are of pairs: all answers are resampled together.")
    page = page.table(columns, table).notes(compared.notes)
    picture = plots.bars(
        [row["name"] for row in rows], [row["score"] for row in rows], [_ends(row, "score") for row in rows], "score"
    )
    page.figure(picture, "Sartorius score with its 95 % interval", "bars of the score").write(path)


def _ends(row: dict[str, Any], name: str) -> list[float] | None:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return None if low is None or high is None else [low, high]
