"""What is in a dataset: counts, sizes, what occurs together, what comes from where, and colours, as tables.

Tables about cells leave out those that are ignored and findings that are not counted (`usable`). A dataset is
looked at as a whole and by its subsets: the parts of a split, folds, and domains (dataset of origin after a
merge, stain, scanner, magnification), each where it is known of any image.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolens import boxes as box
from cytolens.dataset import Dataset
from cytolens.images import load_image
from cytolens.match import is_whole_image
from cytolens.prepare.box_faults import Flags, sizes_of_cells
from cytolens.prepare.check_findings import Tell
from cytolens.prepare.stain import measure
from cytolens.problems import ImageError, listing, written

ALL, NO_LABEL, NOT_GIVEN = "(all)", "(no label)", "(not given)"
DOMAINS = ("dataset", "stain", "scanner", "magnification")
SUBSETS = ("split", "fold", *DOMAINS)
QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
DIGITS = {"px": 0, "px²": 0, "µm": 1, "µm²": 1, "%": 2}  # behind the point, where sizes are shown
QUANTILE_COLUMNS = tuple(f"q{round(100 * q)}" for q in QUANTILES)
_NAME = pl.col("label").cast(pl.String).fill_null(NO_LABEL).alias("label")
_COLOUR_COLUMNS = (
    *(f"{channel}_{figure}" for figure in ("mean", "std") for channel in ("red", "green", "blue")),
    *("background_brightness", "background_spread", "stain_strength", "stain_spread"),
)


class StatsSettings(BaseModel):
    """How much of a dataset is looked at in pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample: int = Field(default=200, ge=0, description="images per domain whose colours are measured; 0: none")
    crops: int = Field(default=24, ge=0, description="cells per label that are shown on the page")
    seed: int = Field(default=0, ge=0, description="of the draws of images and cells")


@dataclass(frozen=True, eq=False)
class Stats:
    """What is in a dataset.

    Attributes:
        name: of the dataset.
        summary: figures of the dataset as a whole.
        tables: name → table; the functions of this module that are called so describe them.
        warnings: what makes a model learn the wrong thing, in sentences.
        notes: what the tables leave out, and why, in sentences.
    """

    name: str
    summary: Mapping[str, Any]
    tables: Mapping[str, pl.DataFrame]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        tables = {name: table.to_dicts() for name, table in self.tables.items()}
        told = {"warnings": list(self.warnings), "notes": list(self.notes)}
        return {"name": self.name, **self.summary, **told, "tables": tables}

    def spread(self, by: str) -> tuple[list[str], list[list[Any]]]:
        """Cells of each label in the subsets of one kind: the subsets' values, and rows of a label and its counts."""
        subset, counts = self.tables["subsets"], self.tables["labels_by_subset"].filter(pl.col("by") == by)
        values = subset.filter(pl.col("by") == by)["value"].to_list()
        cells = {(label, value): n for label, value, n in counts.select("label", "value", "cells").iter_rows()}
        there = [label for label in self.tables["labels"]["label"] if (counts["label"] == label).any()]
        return values, [[label, *(cells.get((label, value), 0) for value in values)] for label in there]

    def write_csv(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write each table as a CSV file of its name, and the summary as ``summary.csv``; gives the files."""
        texts = {k: "; ".join(v) if isinstance(v, list) else str(v) for k, v in self.summary.items()}
        summary = pl.DataFrame({"figure": list(texts), "value": list(texts.values())})
        files = []
        for name, table in {"summary": summary, **self.tables}.items():
            files.append(Path(folder) / f"{name}.csv")
            with written(files[-1]) as part:
                table.write_csv(part)
        return files


def stats(dataset: Dataset, settings: StatsSettings | None = None, tell: Tell | None = None) -> Stats:
    """All tables of a dataset.

    Args:
        dataset: what to describe.
        settings: how much is looked at.
        tell: called with (images read, images to read).
    """
    settings = settings or StatsSettings()
    own = usable(dataset)
    tables = {
        "labels": labels(dataset),
        "subsets": subsets(own),
        "labels_by_subset": labels_by_subset(own),
        "boxes_per_image": boxes_per_image(own),
        "labels_per_image": labels_per_image(own),
        "box_sizes": box_sizes(own),
        "image_sizes": image_sizes(own),
        "co_occurrence": co_occurrence(own),
        "colours": colours(own, settings, tell),
    }
    summary = _summary(dataset, own, tables["labels"])
    warnings = (*_one_domain(tables), *_missing_in_part(tables))
    return Stats(dataset.name, summary, tables, warnings, tuple(_notes(dataset, summary, tables, settings)))


def usable(dataset: Dataset) -> Dataset:
    """The dataset without cells that are ignored and findings that are not counted."""
    return replace(dataset, cells=dataset.cells.filter(pl.col("counted") & ~pl.col("ignore")))


# -- counts ---------------------------------------------------------------------------------------


def labels(dataset: Dataset) -> pl.DataFrame:
    """One row per label that occurs, the commonest first: label, cells, ignored, images, groups, share.

    `cells`, `images`, `groups` and `share` are about usable cells; `ignored` cells come on top.
    """
    cells = dataset.cells.frame.filter("counted").select(_NAME, "image_id", "ignore")
    cells = cells.join(dataset.images.frame.select("image_id", "group"), on="image_id", maintain_order="left")
    own = ~pl.col("ignore")
    table = cells.group_by("label").agg(
        own.sum().cast(pl.Int64).alias("cells"),
        pl.col("ignore").sum().cast(pl.Int64).alias("ignored"),
        pl.col("image_id").filter(own).n_unique().cast(pl.Int64).alias("images"),
        pl.col("group").filter(own).drop_nulls().n_unique().cast(pl.Int64).alias("groups"),
    )
    share = pl.col("cells") / pl.max_horizontal(pl.col("cells").sum(), 1)
    return table.with_columns(share=share).sort("cells", "label", descending=[True, False])


def membership(dataset: Dataset) -> pl.DataFrame:
    """Which image belongs to which subset: image_id, by (one of `SUBSETS`), value; in the order of showing."""
    columns = pl.col("split", "fold", "stain", "scanner", "magnification")
    frame = dataset.images.frame.select("image_id", columns, _origin(dataset).alias("dataset"))
    parts = [pl.DataFrame(schema={"image_id": pl.String, "by": pl.String, "value": pl.String})]
    for by in SUBSETS:
        if frame[by].null_count() < len(frame):
            value = pl.col(by).cast(pl.String).fill_null(NOT_GIVEN).alias("value")
            parts.append(frame.sort(by, nulls_last=True).select("image_id", pl.lit(by).alias("by"), value))
    return pl.concat(parts)


def _origin(dataset: Dataset) -> pl.Expr:
    """The dataset that an image comes from: the prefix that the last merge gave its id; null without a merge."""
    steps = [step for step in dataset.provenance if step.get("step") == "merge"]
    names = sorted((str(one["name"]) for one in steps[-1]["from"]), key=len, reverse=True) if steps else []
    home = [pl.when(pl.col("image_id").str.starts_with(f"{name}/")).then(pl.lit(name)) for name in names]
    return pl.coalesce([*home, pl.lit(None, pl.String)])


def subsets(dataset: Dataset) -> pl.DataFrame:
    """One row per subset: by, value, images, images_without_cells, cells, labels, groups."""
    here = dataset.cells.frame.group_by("image_id").agg(pl.len().alias("n"), pl.col("label").unique())
    images = dataset.images.frame.select("image_id", "group").join(here, on="image_id", how="left")
    known = pl.col("label").explode().drop_nulls().n_unique()
    return (
        membership(dataset)
        .join(images, on="image_id", maintain_order="left")
        .group_by("by", "value", maintain_order=True)
        .agg(
            pl.len().cast(pl.Int64).alias("images"),
            pl.col("n").null_count().cast(pl.Int64).alias("images_without_cells"),
            pl.col("n").sum().cast(pl.Int64).alias("cells"),
            known.cast(pl.Int64).alias("labels"),
            pl.col("group").drop_nulls().n_unique().cast(pl.Int64).alias("groups"),
        )
    )


def labels_by_subset(dataset: Dataset) -> pl.DataFrame:
    """Cells of each label in each subset, where there are any: by, value, label, cells, images."""
    cells = dataset.cells.frame.select("image_id", pl.col("label").to_physical().alias("order"), _NAME)
    # The order of showing is kept by numbering the subsets.
    member = membership(dataset)
    numbers = member.select("by", "value").unique(maintain_order=True).with_row_index("at")
    counts = (
        member.join(cells, on="image_id")
        .group_by("by", "value", "label", "order")
        .agg(
            pl.len().cast(pl.Int64).alias("cells"),
            pl.col("image_id").n_unique().cast(pl.Int64).alias("images"),
        )
    )
    ordered = counts.join(numbers, on=["by", "value"]).sort("at", "order", nulls_last=True)
    return ordered.select("by", "value", "label", "cells", "images")


def boxes_per_image(dataset: Dataset) -> pl.DataFrame:
    """How many images have how many cells: boxes, images."""
    return _per_image(dataset, pl.len(), "boxes")


def labels_per_image(dataset: Dataset) -> pl.DataFrame:
    """How many images have cells of how many different labels: labels, images; unnamed cells have none."""
    return _per_image(dataset, pl.col("label").drop_nulls().n_unique(), "labels")


def _per_image(dataset: Dataset, figure: pl.Expr, name: str) -> pl.DataFrame:
    counts = dataset.cells.frame.group_by("image_id").agg(figure.cast(pl.Int64).alias(name))
    all_images = dataset.images.frame.select("image_id").join(counts, on="image_id", how="left")
    table = all_images.group_by(pl.col(name).fill_null(0)).agg(pl.len().cast(pl.Int64).alias("images"))
    return table.sort(name)


def co_occurrence(dataset: Dataset) -> pl.DataFrame:
    """Images in which both of two labels occur, the commonest pair first: first, second, images."""
    there = dataset.cells.frame.select("image_id", "label").drop_nulls().unique()
    pairs = there.join(there, on="image_id", suffix="_2")
    pairs = pairs.filter(pl.col("label").to_physical() < pl.col("label_2").to_physical())
    counts = pairs.group_by("label", "label_2").agg(pl.len().cast(pl.Int64).alias("images"))
    ordered = counts.sort("images", "label", "label_2", descending=[True, False, False])
    return ordered.select(pl.col("label", "label_2").cast(pl.String), "images").rename(
        {"label": "first", "label_2": "second"}
    )


# -- sizes ----------------------------------------------------------------------------------------


def image_sizes(dataset: Dataset) -> pl.DataFrame:
    """Sizes and scales of images, the commonest first: width_px, height_px, um_per_px, images."""
    keys = ["width_px", "height_px", "um_per_px"]
    table = dataset.images.frame.group_by(keys).agg(pl.len().cast(pl.Int64).alias("images"))
    return table.sort("images", *keys, descending=[True, False, False, False], nulls_last=True)


def whole_images(dataset: Dataset) -> Flags:
    """Which cells (N) have the whole image for a box: their label is about the image."""
    corners, size_wh = dataset.cells.boxes(), sizes_of_cells(dataset)
    whole = np.zeros(len(corners), bool)
    for width, height in np.unique(size_wh[np.isfinite(size_wh).all(axis=1)], axis=0).tolist():
        rows = (size_wh == (width, height)).all(axis=1)
        whole[rows] = is_whole_image(corners[rows], (width, height))
    return whole


def box_sizes(dataset: Dataset) -> pl.DataFrame:
    """Quantiles of box sizes per label and of all: label, quantity, unit, cells, q0, q1, q25, q50, q75, q99, q100.

    Quantities are width and height (px, µm), area (px², µm²) and share of the image's area (%). µm need the
    image's scale, shares its size. Boxes that are the whole image or no numbers are left out. Quantiles between
    two values are interpolated linearly.
    """
    corners = dataset.cells.boxes().astype(np.float64)
    measurable = np.isfinite(corners).all(axis=1) & ~whole_images(dataset)
    corners = np.where(measurable[:, None], corners, 0)
    scales = dataset.images.frame.select("image_id", pl.col("um_per_px").cast(pl.Float64))
    cells = dataset.cells.frame.select("image_id", _NAME).join(scales, on="image_id", how="left", maintain_order="left")
    width, height = box.sizes_wh(corners).T
    measured = cells.with_columns(
        pl.Series("width", width), pl.Series("height", height), pl.Series("area", box.areas(corners)),
        pl.Series("image", sizes_of_cells(dataset).prod(axis=1)),
    )  # fmt: skip
    measured = measured.filter(pl.Series(measurable, dtype=pl.Boolean))
    both = pl.concat([measured.with_columns(label=pl.lit(ALL)), measured])
    scale = pl.col("um_per_px")
    share = pl.when(pl.col("image").is_finite() & (pl.col("image") > 0)).then(100 * pl.col("area") / pl.col("image"))
    quantities = [
        ("width", "px", pl.col("width")),
        ("height", "px", pl.col("height")),
        ("area", "px²", pl.col("area")),
        ("width", "µm", pl.col("width") * scale),
        ("height", "µm", pl.col("height") * scale),
        ("area", "µm²", pl.col("area") * scale**2),
        ("share of image", "%", share),
    ]
    return pl.concat([_quantiles(both, *quantity) for quantity in quantities])


def _quantiles(cells: pl.DataFrame, quantity: str, unit: str, value: pl.Expr) -> pl.DataFrame:
    """One row per label, `ALL` first, then the commonest."""
    known = cells.select("label", value.alias("value")).drop_nulls()
    levels = [pl.col("value").quantile(q, "linear").alias(n) for q, n in zip(QUANTILES, QUANTILE_COLUMNS, strict=True)]
    table = known.group_by("label").agg(pl.len().cast(pl.Int64).alias("cells"), *levels)
    first = (pl.col("label") == ALL).alias("first")
    table = table.with_columns(first).sort("first", "cells", "label", descending=[True, True, False])
    return table.select(
        "label", pl.lit(quantity).alias("quantity"), pl.lit(unit).alias("unit"), "cells", *QUANTILE_COLUMNS
    )


# -- colours --------------------------------------------------------------------------------------


def colours(dataset: Dataset, settings: StatsSettings, tell: Tell | None = None) -> pl.DataFrame:
    """Colours of a sample of images of each domain and of all: one row each.

    Columns: by, value, images, without_file, looked_at, unreadable, then in grey values 0 to 255 red_mean,
    green_mean, blue_mean, red_std, green_std, blue_std (of all pixels, images weighing alike),
    background_brightness and its spread from image to image, and stain_strength (optical density) and its spread;
    see `stain.measure`. Domains have their first images in one random order of all, so that they share what is read.
    """
    frame = dataset.images.frame.select("image_id", "path")
    member = membership(dataset).filter(pl.col("by").is_in(DOMAINS))
    whole = frame.select("image_id", pl.lit("all").alias("by"), pl.lit(ALL).alias("value"))
    ids = frame["image_id"].sort()
    order = pl.DataFrame({"image_id": ids, "at": np.random.default_rng(settings.seed).permutation(len(ids))})
    rows = pl.concat([whole, member]).join(frame, on="image_id", maintain_order="left")
    rows = rows.join(order, on="image_id", maintain_order="left")
    subset = rows.group_by("by", "value", maintain_order=True)
    counts = subset.agg(
        pl.len().cast(pl.Int64).alias("images"), pl.col("path").null_count().cast(pl.Int64).alias("without_file")
    )
    first = pl.int_range(pl.len()).over("by", "value") < settings.sample
    drawn = rows.drop_nulls("path").sort("at").filter(first)
    files = dict(drawn.sort("at").select("image_id", "path").unique(maintain_order=True).iter_rows())
    seen: dict[str, NDArray[np.float64] | None] = {}
    for done, (image_id, path) in enumerate(files.items(), 1):
        seen[image_id] = _colour(path)
        if tell is not None:
            tell(done, len(files))
    table = [
        {"by": by, "value": value, **_mean_colour([seen[i] for i in part["image_id"]])}
        for (by, value), part in drawn.group_by("by", "value", maintain_order=True)
    ]
    keys = {"by": pl.String, "value": pl.String, "looked_at": pl.Int64, "unreadable": pl.Int64}
    found = pl.DataFrame(table, schema=keys | dict.fromkeys(_COLOUR_COLUMNS, pl.Float64))
    joined = counts.join(found, on=["by", "value"], how="left", maintain_order="left")
    return joined.with_columns(pl.col("looked_at", "unreadable").fill_null(0))


def _colour(path: str) -> NDArray[np.float64] | None:
    """Mean and standard deviation per channel, background brightness, stain strength, shape (8,); None: unreadable."""
    import cv2

    try:
        pixels = load_image(path).pixels
    except ImageError:
        return None
    mean, deviation = cv2.meanStdDev(pixels)
    field = measure(pixels)
    return np.array([*mean.ravel(), *deviation.ravel(), field.background.mean(), field.density], np.float64)


def _mean_colour(seen: list[NDArray[np.float64] | None]) -> dict[str, Any]:
    """The colours of several images in one."""
    read = [one for one in seen if one is not None]
    counts = {"looked_at": len(read), "unreadable": len(seen) - len(read)}
    if not read:
        return counts | dict.fromkeys(_COLOUR_COLUMNS)
    figures = np.array(read)
    mean = figures[:, :3].mean(axis=0)
    # Variance of all pixels: that within images and that of their means.
    deviation = np.sqrt(np.maximum((figures[:, 3:6] ** 2 + figures[:, :3] ** 2).mean(axis=0) - mean**2, 0))
    field, spread = figures[:, 6:].mean(axis=0), figures[:, 6:].std(axis=0)
    values = [*mean, *deviation, field[0], spread[0], field[1], spread[1]]
    return counts | dict(zip(_COLOUR_COLUMNS, map(float, values), strict=True))


# -- in words -------------------------------------------------------------------------------------


def _summary(dataset: Dataset, own: Dataset, table: pl.DataFrame) -> dict[str, Any]:
    images, counted = dataset.images.frame, dataset.cells.frame.filter("counted")
    named = set(table.filter(pl.col("cells") > 0)["label"]) - {NO_LABEL}
    used = {wider for name in named for wider in (name, *dataset.labels.ancestors(name))}
    return {
        "images": len(images),
        "images_without_cells": len(images) - own.cells.frame["image_id"].n_unique(),
        "images_not_annotated": int((images["complete_for"].list.len() == 0).sum()),
        "images_without_file": images["path"].null_count(),
        "groups": images["group"].drop_nulls().n_unique(),
        "images_without_group": images["group"].null_count(),
        "cells": len(counted),
        "ignored": int(counted["ignore"].sum()),
        "not_counted": len(dataset.cells) - len(counted),
        "without_label": own.cells.frame["label"].null_count(),
        "whole_image_boxes": int(whole_images(own).sum()),
        "labels": len(named),
        "labels_that_never_occur": [name for name in dataset.labels.names if name not in used],
    }


def _one_domain(tables: Mapping[str, pl.DataFrame]) -> Iterator[str]:
    """Labels that only one of several domains has: a model can learn the domain for the label."""
    for by, values, found in _by_subset(tables, DOMAINS):
        homes: dict[str, list[str]] = {}
        for label in dict.fromkeys(found["label"]):
            own = found.filter(pl.col("label") == label)["value"].to_list()
            if len(own) == 1 and label != NO_LABEL:
                homes.setdefault(own[0], []).append(label)
        for value, names in homes.items():
            yield (
                f'only in {by} "{value}", while there are {len(values)}: {listing(names, 30)}. '
                f"A model can tell them by the {by} alone, and scores do not show it."
            )


def _missing_in_part(tables: Mapping[str, pl.DataFrame]) -> Iterator[str]:
    """Labels without a cell in a part or fold: nothing is learnt, or nothing is scored."""
    for by, values, found in _by_subset(tables, ("split", "fold")):
        names = [name for name in dict.fromkeys(found["label"]) if name != NO_LABEL]
        for value in values:
            have = set(found.filter(pl.col("value") == value)["label"])
            if value != NOT_GIVEN and (absent := [name for name in names if name not in have]):
                yield f'{by} "{value}" has no cells of: {listing(absent, 30)}.'


def _by_subset(
    tables: Mapping[str, pl.DataFrame], kinds: tuple[str, ...]
) -> Iterator[tuple[str, list[str], pl.DataFrame]]:
    """Each kind of subset that has several values: its name, the values, the labels in them."""
    for by in kinds:
        values = tables["subsets"].filter(pl.col("by") == by)["value"].to_list()
        if len(values) > 1:
            yield by, values, tables["labels_by_subset"].filter(pl.col("by") == by)


def _notes(
    dataset: Dataset, summary: Mapping[str, Any], tables: Mapping[str, pl.DataFrame], settings: StatsSettings
) -> Iterator[str]:
    if not len(dataset.images):
        yield "The dataset has no images."
        return
    if summary["images_without_file"] == summary["images"]:
        yield "No image has a file: there are no colours and no pictures."
    elif summary["images_without_file"]:
        yield f"{summary['images_without_file']:,} images have no file; colours and pictures are of the others."
    if unreadable := tables["colours"].row(0, named=True)["unreadable"]:
        yield f"{unreadable:,} images of the sample cannot be read (cytolens check says why)."
    if settings.sample == 0:
        yield "Colours were not measured (sample 0)."
    if summary["ignored"]:
        yield f"{summary['ignored']:,} cells are ignored; the tables leave them out."
    if summary["not_counted"]:
        yield f"{summary['not_counted']:,} findings are below their threshold and not counted."
    if whole := summary["whole_image_boxes"]:
        yield f"{whole:,} boxes are the whole image: their label is about the image, and box sizes leave them out."
    if summary["images_without_group"] == summary["images"]:
        yield "No image stands in a group: patients and slides are not known (--group-pattern at import)."
    if not len(set(tables["subsets"]["by"]) & set(DOMAINS)):
        yield "Where images come from is not known: no stain, scanner or magnification, and no merge of datasets."
