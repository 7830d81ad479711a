"""The page of a comparison: a table, and the differences drawn."""

from __future__ import annotations

from pathlib import Path

from cytolens.evaluate import plots
from cytolens.evaluate.comparison import Comparison
from cytolens.evaluate.page import Page, difference_text, interval_text


def write_page(compared: Comparison, title: str, path: Path) -> None:
    """Write the page, answers in their order."""
    rows = compared.frame.to_dicts()
    page = Page(title, f"{compared.cells} cells that all answers found; 95 % intervals over {compared.unit}s")
    table = [
        [
            row["name"],
            f"{row['accuracy']:.3f}",
            interval_text(row["macro_f1"], _ends(row, "macro_f1")),
            "–" if row["name"] == compared.baseline else difference_text(row["difference"], _ends(row, "difference")),
            row["missed"],
        ]
        for row in rows
    ]
    columns = ("answer", "accuracy", "macro-F1", f"macro-F1 minus {compared.baseline}", "cells not found")
    page = page.section("Figures", "Differences are of pairs: all answers are resampled together.")
    page = page.table(columns, table)
    values = [row["macro_f1"] for row in rows]
    picture = plots.bars([row["name"] for row in rows], values, [_ends(row, "macro_f1") for row in rows], "macro-F1")
    return page.figure(picture, "Macro-F1 with its 95 % interval", "bars of macro-F1").write(path)


def _ends(row: dict[str, float | None], name: str) -> list[float] | None:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return None if low is None or high is None else [low, high]
