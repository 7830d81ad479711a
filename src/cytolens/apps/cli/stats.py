"""`cytolens stats`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytolens.apps.cli.console import DONE, Debug, Json, Where, answer, command, progress

if TYPE_CHECKING:
    import polars as pl

    from cytolens.prepare.stats import Stats

_SHOWN = 8  # rows of an open-ended table, and subsets that stand side by side


@command
def stats(
    dataset: Annotated[Path, typer.Argument(help="The dataset.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for stats.html, the page with pictures, and the tables as CSV.")
    ] = None,
    sample: Annotated[int, typer.Option(min=0, help="Images per domain whose colours are measured; 0: none.")] = 200,
    crops: Annotated[int, typer.Option(min=0, help="Cells per label that the page shows.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws of images and cells.")] = 0,
    where: Where = None,
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Say what is in a dataset: labels, parts, sizes, what occurs together, domains and colours.

    A domain is a stain, scanner or magnification, or after a merge the dataset that an image comes from.

    Example: cytolens stats data/pbc --out pbc-stats
    """
    from cytolens.dataset import Dataset
    from cytolens.prepare.stats import StatsSettings
    from cytolens.prepare.stats import stats as describe
    from cytolens.settings import checked

    settings = checked(StatsSettings, {"sample": sample, "crops": crops, "seed": seed}, "stats")
    data = Dataset.read(dataset)
    data = data if where is None else data.select(where)
    with progress("measuring colours", json_output) as tell:
        found = describe(data, settings, tell)
    files: list[Path] = []
    if out is not None:
        from cytolens.prepare.stats_page import write_stats_page

        write_stats_page(data, found, out / "stats.html", settings)
        files = [out / "stats.html", *found.write_csv(out)]
    lines = [f"{dataset}: {found.summary['images']:,} images, {found.summary['cells']:,} cells", *_lines(found)]
    lines += [f"open {files[0]} (tables beside it: {len(files) - 1} CSV files)"] if files else []
    summary = {"dataset": str(dataset), **found.to_json_dict(), "settings": settings.model_dump()}
    answer(summary | {"files": [str(file) for file in files]}, lines, json_output)
    return DONE


def _lines(found: Stats) -> list[str]:
    from cytolens.prepare.stats import DIGITS

    tables = found.tables
    lines = [f"  {line}" for line in _counts(found.summary)]
    labels = tables["labels"].with_columns(share=tables["labels"]["share"] * 100).rename({"share": "share %"})
    lines += _grid("labels", labels, 1)
    lines += _grid("parts and domains", tables["subsets"])
    lines += _spread(found)
    lines += _histogram("cells per image", tables["boxes_per_image"])
    lines += _histogram("different labels per image", tables["labels_per_image"])
    for (quantity, unit), part in tables["box_sizes"].group_by("quantity", "unit", maintain_order=True):
        shown = part.drop("quantity", "unit").rename(_LEVELS)
        lines += _grid(f"box {quantity}, {unit}", shown, DIGITS[str(unit)])
    lines += _grid("image sizes", tables["image_sizes"], 4)
    lines += _grid("labels that occur together", tables["co_occurrence"])
    lines += _colours(tables["colours"])
    lines += [f"WARNING: {text}" for text in found.warnings]
    return lines + [f"note: {text}" for text in found.notes]


_LEVELS = {"q0": "min", "q1": "1 %", "q25": "25 %", "q50": "50 %", "q75": "75 %", "q99": "99 %", "q100": "max"}


def _colours(table: pl.DataFrame) -> list[str]:
    """Colours of each domain that was looked at."""
    import polars as pl

    if not table["looked_at"].sum():
        return []

    def together(figure: str) -> pl.Expr:
        channels = [pl.col(f"{channel}_{figure}").round(0).cast(pl.Int64) for channel in ("red", "green", "blue")]
        return pl.format("{} {} {}", *channels).alias(f"{figure} R G B")

    shown = table.select(
        "by",
        "value",
        "images",
        "without_file",
        "looked_at",
        "unreadable",
        together("mean"),
        together("std"),
        pl.col("background_brightness").alias("background"),
        pl.col("background_spread").alias("±"),
        pl.col("stain_strength").alias("stain"),
        pl.col("stain_spread").alias("± "),
    )
    return _grid("colours of a random sample of images, from 0 to 255", shown, 2)


def _counts(of: Any) -> list[str]:
    """The figures of the whole that are not zero."""
    names = {
        "images_without_cells": "images without cells",
        "images_not_annotated": "of them not annotated",
        "groups": "groups",
        "ignored": "cells ignored",
        "without_label": "cells without a label",
    }
    told = [f"{of[key]:,} {name}" for key, name in names.items() if of[key]]
    never = of["labels_that_never_occur"]
    lines = [", ".join(told)] if told else []
    return lines + ([f"labels that never occur: {', '.join(never)}"] if never else [])


def _spread(found: Stats) -> list[str]:
    """Labels by the values of each kind of subset, where these fit beside each other."""
    lines: list[str] = []
    for by in dict.fromkeys(found.tables["subsets"]["by"]):
        values, rows = found.spread(by)
        if len(values) > _SHOWN:
            lines.append(f"cells by {by}: {len(values)} of them (--out writes the table)")
        else:
            lines += [f"cells by {by}", *_aligned([["label", *values], *([_text(c) for c in row] for row in rows)])]
    return lines


def _histogram(title: str, table: pl.DataFrame) -> list[str]:
    """Every number with its images, or the range where there are many."""
    if not len(table):
        return []
    numbers, images = table.to_dict(as_series=False).values()
    if len(table) <= 2 * _SHOWN:
        return [f"{title}: " + " · ".join(f"{n}: {count:,}" for n, count in zip(numbers, images, strict=True))]
    import numpy as np

    every = np.repeat(numbers, images)
    low, middle, high = np.quantile(every, [0.01, 0.5, 0.99])
    return [f"{title}: from {min(numbers)} to {max(numbers)}, median {middle:g}, 98 % within {low:g} to {high:g}"]


def _grid(title: str, table: pl.DataFrame, digits: int = 0) -> list[str]:
    """A table in columns, without columns of zeros; of a long open-ended one the first rows."""
    if not len(table):
        return []
    kept = [
        name
        for name in table.columns
        if not table[name].dtype.is_integer() or not (table[name].fill_null(1) == 0).all()
    ]
    open_ended = "label" not in kept and "by" not in kept
    shown = table.select(kept).head(_SHOWN if open_ended else len(table))
    rows = [[_text(cell, digits) for cell in row] for row in shown.iter_rows()]
    more = [f"  … and {len(table) - len(shown)} more"] if len(shown) < len(table) else []
    return [title, *_aligned([[name.replace("_", " ") for name in kept], *rows]), *more]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows in columns: those of numbers to the right, others to the left."""
    lines: list[list[str]] = [[] for _ in rows]
    for column in zip(*rows, strict=True):
        width = max(map(len, column))
        numbers = all(text[:1].isdigit() or text == "–" for text in column[1:])
        for line, text in zip(lines, column, strict=True):
            line.append(f"{text:>{width}}" if numbers else f"{text:<{width}}")
    return ["  " + "  ".join(line).rstrip() for line in lines]


def _text(value: object, digits: int = 0) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
