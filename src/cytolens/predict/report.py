"""The report of a prediction: one page that a person understands without knowing the program."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from cytolens.bundle import Bundle
from cytolens.cells import Cells
from cytolens.evaluate.page import Page, Picture, Tile
from cytolens.evaluate.pictures import ImageFiles, crop, jpeg
from cytolens.labels import LabelSet
from cytolens.predict.blasts import BlastSettings
from cytolens.predict.differential import ALL, without_parts
from cytolens.predict.fields import Prediction
from cytolens.predict.group_differential import blasts_by_group
from cytolens.predict.overlays import colour, overlay
from cytolens.predict.report_attributes import ABOUT_VOICES, attribute_sections, blast_section, spoken_for_names
from cytolens.predict.report_groups import group_section
from cytolens.predict.sentences import sentence

_FIELDS_SHOWN = 24
_CELLS_PER_LABEL = 8
_REFERRED_SHOWN = 24
_ROWS_SHOWN = 200
_THUMB_PX = 560

ABOUT_INTERVALS = (
    "Intervals (95 %) cover counting error: how much the figures could differ if other fields or cells of the same "
    "sample had been looked at. They do not cover cells that the model names wrongly."
)


def write_report(
    prediction: Prediction,
    bundle: Bundle,
    table: pl.DataFrame,
    path: Path,
    blasts: BlastSettings | None = None,
    by_group: pl.DataFrame | None = None,
) -> None:
    """Write the page as one self-contained file.

    Args:
        prediction: what was found.
        bundle: by which model.
        table: the differential of the prediction.
        path: where the page goes.
        blasts: what counts as one; None: the defaults.
        by_group: the differential of each group of images; None: is not shown.
    """
    total = table.filter(pl.col("image_id") == ALL)
    files = ImageFiles(prediction.images)
    labels = prediction.cells.labels
    of_blood = any(labels.role(name) is not None for name in labels.names)
    page = Page(
        "Blood smear report" if of_blood else "Cells found",
        f"{len(prediction.images)} images, looked at with {bundle.name} ({bundle.hash})",
    )
    page = page.tiles(list(_tiles(prediction, total)))
    page = page.notes([problem_line(problem) for problem in prediction.failed[:20]], "error")
    page = page.notes(list(_warnings(prediction)), "warning")
    leukocytes = total.filter((pl.col("part") == "leukocytes") & (pl.col("count") > 0))
    if len(leukocytes):
        page = page.section("Differential", "White cells by kind, in percent of all that could be named.")
        page = page.figure(
            differential_plot(leukocytes, prediction.cells), "Share of each kind with its 95 % interval."
        )
        page = page.table(
            ["kind", "cells", "percent", "95 % interval"],
            [_differential_row(row) for row in leukocytes.iter_rows(named=True)],
        )
        page = page.notes([ABOUT_INTERVALS])
    blasts = blasts or BlastSettings()
    page = blast_section(page, prediction.cells, blasts)
    if by_group is not None:
        page = group_section(page, by_group, blasts_by_group(prediction.cells, prediction.images, blasts))
    others = total.filter((pl.col("part") != "leukocytes") & (pl.col("count") > 0) & (pl.col("depth") == 0))
    if len(others):
        page = page.section("Other cells").table(
            ["kind", "cells", "per 100 leukocytes"],
            [[row["label"], row["count"], row["per_100_leukocytes"]] for row in others.iter_rows(named=True)],
        )
    spoken = spoken_for_names(prediction.cells, prediction.concepts, bundle)
    page = _galleries(page, prediction, files, spoken)
    if spoken:
        page = page.notes([ABOUT_VOICES])
    page = attribute_sections(
        page, prediction.cells, bundle, lambda row: _portrait(row, files, prediction.cells.labels, {})
    )
    page = _fields(page, prediction, files)
    page = _per_image(page, table, prediction)
    page = _about(page, bundle)
    page.write(path)


def problem_line(problem: Any) -> str:
    """A problem as one line of the page, with the file's name instead of its whole path."""
    return f"{Path(problem.where).name}: {problem.what} {problem.fix}".strip()


def _tiles(prediction: Prediction, total: pl.DataFrame) -> Iterator[Tile]:
    count = {
        part: int(total.filter((pl.col("part") == part) & (pl.col("depth") == 0))["count"].sum())
        for part in total["part"].unique()
    }
    yield Tile(
        "images",
        f"{len(prediction.images):,}",
        f"{len(prediction.failed)} could not be read" if prediction.failed else "",
    )
    if (total["part"] == "leukocytes").any():
        yield Tile("white cells", f"{count.get('leukocytes', 0):,}", "named")
    for part, called in (("erythroblasts", "erythroblasts"), ("red cells", "red cells"), ("platelets", "platelets"),
                         ("other", "cells")):  # fmt: skip
        if count.get(part):
            yield Tile(called, f"{count[part]:,}")
    yield Tile("referred", f"{count.get('referred', 0):,}", "for a person to look at")


def _warnings(prediction: Prediction) -> Iterator[str]:
    if not len(prediction.images):
        yield "No image could be read, so there is nothing to count."
    for reason, number in sorted(prediction.reasons.items()):
        yield f"{number} cell{'s' if number != 1 else ''} referred: {reason}."
    strange = list(prediction.remarks.items())
    if strange:
        yield (
            f"{len(strange)} of {len(prediction.images)} fields are unlike everything seen in training; "
            "their cells are referred."
        )
    for image_id, said in strange[:10]:
        yield f"{image_id}: {'; '.join(said)}"


def _differential_row(row: dict[str, Any]) -> list[object]:
    interval = None if row["low"] is None else f"{row['low']:.1f} – {row['high']:.1f}"
    return ["\u2003" * max(row["depth"], 0) + row["label"], row["count"], f"{row['percent']:.1f}", interval]


def differential_plot(leukocytes: pl.DataFrame, cells: Cells) -> bytes:
    """Horizontal bars with intervals, one per kind, as SVG."""
    from matplotlib.figure import Figure

    rows = [row for row in leukocytes.iter_rows(named=True) if row["depth"] > 0] or leukocytes.rows(named=True)
    figure = Figure(figsize=(8.5, 0.6 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        shade = tuple(value / 255 for value in colour(cells.labels, row["label"]))
        axes.barh(place, row["percent"], color=shade, height=0.62, alpha=0.9)
        low, high = max(row["percent"] - row["low"], 0), max(row["high"] - row["percent"], 0)
        axes.errorbar(row["percent"], place, xerr=[[low], [high]], color="#334155", capsize=3, lw=1.2)
    axes.set_yticks(range(len(rows)), ["   " * (row["depth"] - 1) + row["label"] for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel="percent of the named white cells", xlim=(0, 100))
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _galleries(page: Page, prediction: Prediction, files: ImageFiles, spoken: Mapping[str, str]) -> Page:
    """Examples of each kind, the surest first, and the referred cells; `spoken`: cell_id → what spoke for its name."""
    labels = prediction.cells.labels
    counted = prediction.cells.frame.filter("counted")
    nucleated = [n for n in labels.names if labels.role(n) in ("leukocyte", "erythroblast", "lysed")]
    named = counted.filter(~pl.col("refer") & pl.col("label").cast(pl.String).is_in(nucleated))
    if len(named):
        page = page.section("White cells, kind by kind", "The surest of each kind.")
        for name in [n for n in nucleated if n in set(named["label"].cast(pl.String).to_list())]:
            sure = pl.col("probabilities").arr.max().fill_null(0)
            rows = named.filter(pl.col("label") == name).sort(sure, descending=True).head(_CELLS_PER_LABEL)
            page = page.text(name).grid([_portrait(row, files, labels, spoken) for row in rows.iter_rows(named=True)])
    referred = counted.filter("refer")
    if len(referred):
        text = "The model is not sure of these, or has seen nothing like them. Their names are guesses."
        page = page.section("Referred cells", text)
        rows = referred.head(_REFERRED_SHOWN)
        page = page.grid([_portrait(row, files, labels, spoken) for row in rows.iter_rows(named=True)])
        if len(referred) > _REFERRED_SHOWN:
            page = page.notes(
                [f"{_REFERRED_SHOWN} of {len(referred)} shown; all stand in cells.csv with refer = true."]
            )
    return page


def _portrait(row: dict[str, Any], files: ImageFiles, labels: LabelSet, spoken: Mapping[str, str]) -> Picture:
    """One cell's picture with its name, the two most probable kinds, its looks, and what spoke for the name."""
    pixels = files.read(row["image_id"])
    corners = [row["x_min"], row["y_min"], row["x_max"], row["y_max"]]
    data = None if isinstance(pixels, str) else crop(pixels, corners, 132)
    probable = ""
    if row["probabilities"] is not None:
        best = sorted(zip(row["probabilities"], labels.leaves, strict=True), reverse=True)[:2]
        probable = ", ".join(f"{leaf} {100 * share:.0f} %" for share, leaf in best if share >= 0.01)
    looks = sentence({a.column: row[a.column] for a in labels.attributes}, labels.attributes)
    return Picture(
        data, row["label"] or "not named", "; ".join(filter(None, (probable, looks, spoken.get(row["cell_id"]))))
    )


def _fields(page: Page, prediction: Prediction, files: ImageFiles) -> Page:
    by_image = dict(prediction.cells.by_image())
    empty = Cells.empty(prediction.cells.labels)
    pictures = []
    for row in prediction.images.rows()[:_FIELDS_SHOWN]:
        pixels = files.read(row["image_id"])
        cells = by_image.get(row["image_id"], empty)
        drawn = None if isinstance(pixels, str) else jpeg(overlay(pixels, cells, _THUMB_PX))
        pictures.append(Picture(drawn, row["image_id"], f"{_cells_said(cells)} cells"))
    if pictures:
        page = page.section("Fields", "Every counted cell is framed; red cells without a name, referred cells dashed.")
        page = page.figures(pictures)
        if len(prediction.images) > _FIELDS_SHOWN:
            page = page.notes(
                [f"{_FIELDS_SHOWN} of {len(prediction.images)} fields shown; the others are in overlays/."]
            )
    return page


def _cells_said(cells: Cells) -> int:
    return int(without_parts(cells).frame["counted"].sum())


def _per_image(page: Page, table: pl.DataFrame, prediction: Prediction) -> Page:
    each = table.filter((pl.col("image_id") != ALL) & (pl.col("depth") == 0))
    if not len(each):
        return page
    wide = each.group_by(["image_id", "part"], maintain_order=True).agg(pl.col("count").sum())
    wide = wide.pivot("part", index="image_id", values="count", maintain_order=True)
    parts = [name for name in wide.columns[1:] if wide[name].sum() > 0]
    rows = wide.select("image_id", *parts).head(_ROWS_SHOWN).rows()
    page = page.section("Image by image").table(["image", *parts], rows)
    if len(wide) > _ROWS_SHOWN:
        page = page.notes([f"{_ROWS_SHOWN} of {len(wide)} images listed; all stand in differential.csv."])
    return page


def _about(page: Page, bundle: Bundle) -> Page:
    lines = [
        f"{m.name} ({m.hash}): {m.info.description}" for m in (bundle, *bundle.members.values()) if m.info.description
    ]
    lines.append("For research only. Not a medical device; a person must confirm every result before it is acted on.")
    return page.section("About the model").notes(lines)
