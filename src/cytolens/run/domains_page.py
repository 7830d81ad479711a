"""The page of a domain matrix: a heat map and a table per figure, and what was gained."""

from __future__ import annotations

from pathlib import Path

from cytolens.evaluate import plots
from cytolens.evaluate.domains import DomainMatrix
from cytolens.evaluate.page import Page, difference_text, interval_text


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
        gains = (matrix.table(figure, f"difference{end}") for end in ("", "_low", "_high"))
        gained = [
            [model, *(difference_text(d, None if a is None else [a, b]) for d, a, b in zip(*lists, strict=True))]
            for model, *lists in zip(matrix.models, *gains, strict=True)
            if model != matrix.baseline
        ]
        if gained:
            said = f'Minus "{matrix.baseline}", in the same domain, both resampled together.'
            page = page.table(columns, gained, said)
    notes = [
        "Gains have intervals of pairs: both models are resampled together. Where one holds 0, the gain may be chance.",
        "Adapted models have seen pictures of their target, and no labels of it.",
    ]
    page.notes(notes).write(path)
