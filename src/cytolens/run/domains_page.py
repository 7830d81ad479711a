"""The page of a domain matrix: a heat map and a table per figure, and what was gained."""

from __future__ import annotations

from pathlib import Path

from cytolens.evaluate import plots
from cytolens.evaluate.domains import DomainMatrix
from cytolens.evaluate.page import Page, interval_text


def write_page(matrix: DomainMatrix, title: str, path: Path) -> None:
    """Write the page, models and domains in their order."""
    page = Page(
        title, f"{len(matrix.models)} models, {len(matrix.domains)} domains; 95 % intervals over {matrix.unit}s"
    )
    columns = ["model", *matrix.domains]
    for figure in matrix.figures:
        values, lows, highs = (matrix.table(figure, column) for column in ("value", "low", "high"))
        picture = plots.heat_map(matrix.models, matrix.domains, values, figure)
        page = page.section(figure, "Rows are models, columns what they were tested on.")
        page = page.figure(picture, f"{figure}: darker is better", f"heat map of {figure}")
        rows = [
            [model, *(interval_text(v, None if a is None else [a, b]) for v, a, b in zip(*lists, strict=True))]
            for model, *lists in zip(matrix.models, values, lows, highs, strict=True)
        ]
        page = page.table(columns, rows, "The figure, with its 95 % interval.")
        gained = [
            [model, *("–" if d is None else f"{d:+.3f}" for d in row)]
            for model, row in zip(matrix.models, matrix.table(figure, "difference"), strict=True)
            if model != matrix.baseline
        ]
        if gained:
            page = page.table(columns, gained, f"Minus {matrix.baseline}, in the same domain.")
    notes = [
        "Each interval is of one figure by itself; a difference that is small beside them may be chance.",
        "Adapted models have seen pictures of their target, and no labels of it.",
    ]
    page.notes(notes).write(path)
