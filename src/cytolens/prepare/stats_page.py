"""The page that shows what is in a dataset: the tables of `stats`, plots of them, and cells of every label."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

import cytolens
from cytolens import boxes as box
from cytolens import views
from cytolens.cells import BOX_COLUMNS
from cytolens.dataset import Dataset
from cytolens.evaluate.page import Page, Picture, Tile
from cytolens.evaluate.pictures import ImageFiles, Outline, outlined
from cytolens.evaluate.plots import ACCENT, FAINT, GRID, INK, RIGHT
from cytolens.prepare.stats import (
    DIGITS,
    DOMAINS,
    NO_LABEL,
    QUANTILE_COLUMNS,
    Stats,
    StatsSettings,
    usable,
    whole_images,
)
from cytolens.problems import written

_CROP_PX = 168
_AROUND = 1.3  # how much longer than a usual box a picture of the sample sheet is
_ROWS = 60  # rows of a table that the page shows; the CSV file has all
_FEW = 15  # different numbers that are listed beside their plot
_BARS = 60


def write_stats_page(dataset: Dataset, found: Stats, path: str | os.PathLike[str], settings: StatsSettings) -> None:
    """Write the page as one self-contained HTML file; pictures tell what they show when pointed at.

    Args:
        dataset: what was described.
        found: what `stats` gave for it.
        path: the file.
        settings: how many cells are shown, and the seed of their draw.
    """
    html = re.sub(r'(<img [^>]*alt="([^"]*)")>', r'\1 title="\2">', stats_page(dataset, found, settings).render())
    with written(path) as part:
        part.write_text(html, encoding="utf-8")


def stats_page(dataset: Dataset, found: Stats, settings: StatsSettings) -> Page:
    """The page of a dataset as a `Page`."""
    subtitle = f"{found.name} · {found.summary['images']:,} images · {found.summary['cells']:,} cells"
    page = Page("What is in the dataset", subtitle, f"Made with Cytolens {cytolens.__version__}.")
    page = page.tiles(_tiles(found)).notes(found.warnings, "warning").notes(found.notes)
    for section in (_labels, _subsets, _per_image, _sizes, _co_occurrence, _colours):
        page = section(page, found)
    return _samples(page, usable(dataset), settings)


def _tiles(found: Stats) -> list[Tile]:
    of = found.summary
    looked = f", {of['images_not_annotated']:,} of them not annotated" if of["images_not_annotated"] else ""
    left_out = f"{of['ignored']:,} of them ignored" if of["ignored"] else "none ignored"
    never = len(of["labels_that_never_occur"])
    groups = f"{of['images_without_group']:,} images in none" if of["groups"] else "patients and slides not known"
    return [
        Tile("images", f"{of['images']:,}", f"{of['images_without_cells']:,} without cells{looked}"),
        Tile("cells", f"{of['cells']:,}", left_out),
        Tile("cells without a label", f"{of['without_label']:,}"),
        Tile("labels", f"{of['labels']:,}", f"{never:,} more never occur" if never else "all of the label set"),
        Tile("groups", f"{of['groups']:,}", groups),
    ]


# -- sections -------------------------------------------------------------------------------------


def _labels(page: Page, found: Stats) -> Page:
    table = found.tables["labels"]
    page = page.section("Labels")
    if not len(table):
        return page.text("There are no cells.")
    shown = table.with_columns(share=pl.Series([f"{100 * share:.1f} %" for share in table["share"]]))
    page = _table(page, shown.select("label", "cells", "share", "images", "groups", "ignored"))
    if len(table) > 1:
        page = page.figure(_bars_across(table["label"].to_list(), table["cells"].to_list()), "Cells of each label.")
    never = found.summary["labels_that_never_occur"]
    return page.notes([f"Labels of the set that never occur: {', '.join(never)}."] if never else [])


def _subsets(page: Page, found: Stats) -> Page:
    table = found.tables["subsets"]
    if not len(table):
        return page
    page = page.section("Parts and domains", "What belongs where, and how the labels are spread.")
    page = _table(page, table.select(pl.format("{} {}", "by", "value").alias("subset"), pl.exclude("by", "value")))
    for by in dict.fromkeys(table["by"]):
        values, rows = found.spread(by)
        page = page.text(f"Cells of each label by {by}:").table(["label", *values], rows) if rows else page
    return page


def _table(page: Page, table: pl.DataFrame) -> Page:
    """A table without the columns of figures that are nowhere more than 0, such as groups that are not known."""
    kept = [name for name in table.columns if not table[name].dtype.is_integer() or (table[name] != 0).any()]
    return page.table([name.replace("_", " ") for name in kept], [list(row) for row in table.select(kept).rows()])


def _per_image(page: Page, found: Stats) -> Page:
    boxes, names = found.tables["boxes_per_image"], found.tables["labels_per_image"]
    if not len(boxes):
        return page
    page = page.section("Cells per image")
    if len(boxes) == 1:
        return page.text(f"Every image has {boxes['boxes'][0]}.")
    counts = np.repeat(boxes["boxes"].to_numpy(), boxes["images"].to_numpy())
    several = f"{int((counts > 1).sum()):,} of {len(counts):,} images have more than one cell"
    page = page.figure(
        _histogram(boxes), f"Cells per image: median {np.median(counts):g}; {several}; the most is {counts.max():,}."
    )
    for table, heading in ((boxes, "cells in the image"), (names, "different labels in the image")):
        if len(table) <= _FEW:
            page = page.table([heading, "images"], [[str(number), images] for number, images in table.rows()])
    return page


def _sizes(page: Page, found: Stats) -> Page:
    quantiles = "Half of the boxes are below the median, 98 of 100 lie between the columns 1 % and 99 %."
    page = page.section("Sizes", quantiles if len(found.tables["box_sizes"]) else "")
    heads = ["smallest", "1 %", "25 %", "median", "75 %", "99 %", "largest"]
    for (quantity, unit), part in found.tables["box_sizes"].group_by("quantity", "unit", maintain_order=True):
        digits = DIGITS[str(unit)]
        rows = [[r["label"], r["cells"], *(f"{r[q]:,.{digits}f}" for q in QUANTILE_COLUMNS)] for r in _dicts(part)]
        page = page.text(f"Box {quantity}, {unit}:").table(["label", "cells", *heads], rows)
    sizes = found.tables["image_sizes"]
    if len(sizes):
        rows = [[_image_size(r), _scale(r["um_per_px"]), r["images"]] for r in _dicts(sizes.head(_ROWS))]
        more = f" (the {_ROWS} commonest of {len(sizes):,})" if len(sizes) > _ROWS else ""
        page = page.text(f"Image width × height{more}:").table(["image, px", "µm per px", "images"], rows)
    return page


def _co_occurrence(page: Page, found: Stats) -> Page:
    pairs, table = found.tables["co_occurrence"], found.tables["labels"]
    if not len(pairs):
        return page
    page = page.section("Labels that occur together", "Images in which both labels occur.")
    table = table.filter((pl.col("label") != NO_LABEL) & (pl.col("images") > 0))
    names, alone = table["label"].to_list(), table["images"].to_list()
    caption = (
        "Images with both labels; on the diagonal (grey) all images with the label. Darker: a larger share of the "
        "images of the rarer label."
    )
    page = page.figure(_heat_map(names, _matrix(names, alone, pairs)), caption)
    rows = [[f"{first} with {second}", images] for first, second, images in pairs.head(10).rows()]
    return page.table(["strongest pairs", "images"], rows)


def _colours(page: Page, found: Stats) -> Page:
    table = found.tables["colours"].filter(pl.col("looked_at") > 0)
    if not len(table):
        return page
    text = (
        "Of a random sample of images, in grey values from 0 (black) to 255. Background and stain are estimates for "
        "stained films on a light background; stain strength is the optical density that the darkest hundredth of an "
        "image exceeds; ± is the standard deviation from image to image."
    )
    page = page.section("Colours", text)
    rows = []
    for r in _dicts(table):
        mean, deviation = (
            " / ".join(f"{r[f'{c}_{f}']:.0f}" for c in ("red", "green", "blue")) for f in ("mean", "std")
        )
        light = f"{r['background_brightness']:.0f} ± {r['background_spread']:.0f}"
        stain = f"{r['stain_strength']:.2f} ± {r['stain_spread']:.2f}"
        name = "all images" if r["by"] not in DOMAINS else f"{r['by']} {r['value']}"
        looked = f"{r['looked_at']:,} of {r['images']:,}"
        rows.append([name, looked, r["unreadable"], mean, deviation, light, stain])
    heads = ["images", "looked at", "unreadable", "mean R / G / B", "std R / G / B", "background", "stain strength"]
    return page.table(heads, rows)


# -- cells of every label -------------------------------------------------------------------------


def _samples(page: Page, dataset: Dataset, settings: StatsSettings) -> Page:
    """A sheet of cells per label, drawn with the seed, each sheet at one scale."""
    cells = _with_places(dataset)
    if not settings.crops or not len(cells):
        return page
    generator = np.random.default_rng(settings.seed)
    text = (
        f"Drawn at random (seed {settings.seed}). All pictures of a label have one scale; the thin line is the box, "
        "white lies outside the image. Point at a picture for its image and box."
    )
    page = page.section("Cells of each label", text)
    sheets: list[tuple[str, float, bool, pl.DataFrame]] = []
    for (label,), own in cells.sort("order", "cell_id", nulls_last=True).group_by("label", maintain_order=True):
        drawn = own[np.sort(generator.permutation(len(own))[: settings.crops])]
        scaled = drawn["um_per_px"].null_count() == 0
        drawn = drawn.with_columns(unit_px=1 / pl.col("um_per_px") if scaled else pl.lit(1.0))
        # Most cells fit; one huge box must not make all others specks.
        needed = own.select(pl.col("need") * pl.col("um_per_px") if scaled else pl.col("need")).to_series()
        sheets.append((str(label), max(8.0 if not scaled else 1.0, float(needed.quantile(0.95) or 0)), scaled, drawn))
    pictures = _pictures(dataset, sheets)
    for label, side, scaled, drawn in sheets:
        shown = [pictures[i] for i in drawn["cell_id"] if i in pictures]
        total = int((cells["label"] == label).sum())
        unread = f" {len(drawn) - len(shown)} more cannot be read." if len(shown) < len(drawn) else ""
        width = f"{side:.3g} µm" if scaled else f"{side:.0f} px"
        page = page.text(f"{label}: {len(shown)} of {total:,} cells; a picture is {width} wide.{unread}").grid(shown)
    return page


def _with_places(dataset: Dataset) -> pl.DataFrame:
    """The cells that can be shown, with the side in px (`need`) of the picture that each needs."""
    corners = dataset.cells.boxes().astype(np.float64)
    whole = whole_images(dataset)
    longer = box.sizes_wh(np.where(np.isfinite(corners), corners, 0)).max(axis=1, initial=0)
    cells = dataset.cells.frame.select(
        "cell_id", "image_id", pl.col("label").to_physical().alias("order"),
        pl.col("label").cast(pl.String).fill_null(NO_LABEL), *BOX_COLUMNS,
        pl.Series("whole", whole), pl.Series("need", np.where(whole, longer, _AROUND * longer)),
    )  # fmt: skip
    images = dataset.images.frame.select("image_id", "path", "um_per_px").drop_nulls("path")
    finite = pl.all_horizontal(pl.col(BOX_COLUMNS).is_finite())
    return cells.filter(finite).join(images, on="image_id", maintain_order="left")


def _pictures(dataset: Dataset, sheets: Sequence[tuple[str, float, bool, pl.DataFrame]]) -> dict[str, Picture]:
    """cell_id → its picture, for those whose image can be read; each image is read once."""
    drawn = [row | {"side": side * row["unit_px"]} for _, side, _, cells in sheets for row in _dicts(cells)]
    files, pictures = ImageFiles(dataset.images), {}
    for row in sorted(drawn, key=lambda row: row["image_id"]):
        pixels = files.read(row["image_id"])
        if isinstance(pixels, str):
            continue
        corners = np.array([row[name] for name in BOX_COLUMNS], np.float64)
        middle, half = box.centres(corners)[0], row["side"] / 2
        size_wh = (pixels.shape[1], pixels.shape[0])
        view = views.crop(size_wh, [*(middle - half), *(middle + half)], _CROP_PX)
        outline = [] if row["whole"] else [Outline(view.forward_boxes(corners)[0], ACCENT, width_px=1)]
        width, height = box.sizes_wh(corners)[0]
        told = f"{row['image_id']}, box {', '.join(f'{edge:.0f}' for edge in corners)}"
        data = outlined(view.pixels(pixels, border=255), outline, _CROP_PX)
        pictures[row["cell_id"]] = Picture(data, f"{width:.0f} × {height:.0f} px", alt=told)
    return pictures


# -- plots ----------------------------------------------------------------------------------------


def _axes(width_in: float, height_in: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=8)
    axes.set_axisbelow(True)
    return figure, axes


def _png(figure: Any, dpi: int = 160) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def _bars_across(names: Sequence[str], values: Sequence[int]) -> bytes:
    """One horizontal bar per name, with its number."""
    figure, axes = _axes(10.8, 0.6 + 0.24 * max(2, len(names)))
    rows, most = np.arange(len(names)), max(values)
    axes.barh(rows, values, 0.66, color=ACCENT, linewidth=0)
    for row, value in enumerate(values):
        axes.text(value + 0.01 * most, row, f"{value:,}", va="center", fontsize=8, color=INK)
    axes.set_yticks(rows, labels=list(names), parse_math=False, fontsize=8, color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.1 * max(most, 1))
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_xlabel("cells", color=INK, fontsize=9)
    return _png(figure)


def _histogram(table: pl.DataFrame) -> bytes:
    """Images by their number of cells; many different numbers are put together, large differences are logarithmic."""
    figure, axes = _axes(10.8, 3.2)
    counts, images = table["boxes"].to_numpy(), table["images"].to_numpy()
    step = max(1, -(-(int(counts.max()) + 1) // _BARS))
    heights = np.bincount(counts // step, weights=images)
    axes.bar(np.arange(len(heights)) * step + (step - 1) / 2, heights, 0.86 * step, color=ACCENT, linewidth=0)
    if heights.max() > 100 * heights[heights > 0].min():
        axes.set_yscale("log")
        axes.set_ylim(0.7, 2 * heights.max())
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_xlabel("cells in the image" + (f", {step} numbers to a bar" if step > 1 else ""), color=INK, fontsize=9)
    axes.set_ylabel("images", color=INK, fontsize=9)
    return _png(figure)


def _matrix(names: Sequence[str], alone: Sequence[int], pairs: pl.DataFrame) -> NDArray[np.int64]:
    """Images with both labels, shape (K, K); images with the label on the diagonal."""
    at = {name: index for index, name in enumerate(names)}
    table = np.diag(np.array(alone, np.int64))
    for first, second, images in pairs.rows():
        table[at[first], at[second]] = table[at[second], at[first]] = images
    return table


def _heat_map(names: Sequence[str], table: NDArray[np.int64]) -> bytes:
    """Counts as a coloured table; the colour is the share of the rarer label's images, its root to lift small ones."""
    from matplotlib.colors import LinearSegmentedColormap

    alone = np.diag(table)
    share = np.sqrt(table / np.maximum(np.minimum(alone[:, None], alone[None]), 1))
    colours = LinearSegmentedColormap.from_list("share", list(RIGHT))(share)
    colours[np.eye(len(names), dtype=bool)] = (0.9, 0.91, 0.92, 1)
    cell = 0.3 + 0.05 * len(str(table.max(initial=0)))
    side = max(2.2, cell * len(names)) + 0.4 + 0.07 * min(max(map(len, names)), 30)
    figure, axes = _axes(side, side)
    axes.imshow(colours, aspect="equal")
    for row, column in zip(*np.nonzero(table), strict=True):
        dark = row != column and share[row, column] > 0.7
        text = f"{table[row, column]}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color="white" if dark else INK)
    axes.set_xticks(np.arange(len(names)), labels=list(names), parse_math=False, fontsize=8, color=INK)
    axes.set_yticks(np.arange(len(names)), labels=list(names), parse_math=False, fontsize=8, color=INK)
    for label in axes.get_xticklabels():
        label.set(rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xticks(np.arange(-0.5, len(names)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(names)), minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    return _png(figure, 120)


# -- values ---------------------------------------------------------------------------------------


def _dicts(table: pl.DataFrame) -> list[dict[str, Any]]:
    return table.to_dicts()


def _scale(um_per_px: float | None) -> str | None:
    return None if um_per_px is None else f"{um_per_px:.4g}"


def _image_size(row: dict[str, Any]) -> str:
    known = row["width_px"] is not None and row["height_px"] is not None
    return f"{row['width_px']} × {row['height_px']}" if known else "not known"
