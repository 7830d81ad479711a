"""The report's pages on what cells look like: attributes kind by kind, cells unlike their kind, and blasts."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens.bundle import Bundle
from cytolens.cells import Cells
from cytolens.evaluate.page import Page, Picture
from cytolens.evaluate.plots import INK, PALETTE
from cytolens.evaluate.uncertainty import wilson
from cytolens.labels import AttributeSchema
from cytolens.predict.blasts import BlastSettings, blasts
from cytolens.predict.concepts import concepts_of, for_and_against
from cytolens.predict.describe import attribute_outputs, least_likely, unlike_their_kind

_OUTLIERS_SHOWN = 24
_KINDS_SHOWN = 12
ABOUT_VOICES = (
    "The names are read from the attributes alone. What an attribute says for the likeliest kind or against it is the "
    "weight of its values times how far their probabilities stand from those of the average training cell, in nats."
)
Portrait = Callable[[dict[str, Any]], Picture]

ABOUT_SHARES = (
    "Shares are of the cells whose value is given. Intervals (95 %, Wilson) cover counting error, not values that the "
    "model gives wrongly."
)


def spoken_for_names(cells: Cells, concepts: NDArray[np.floating] | None, bundle: Bundle) -> dict[str, str]:
    """cell_id → which attributes spoke for its most probable kind and which against it; of cells named that way.

    Args:
        cells: of the prediction.
        concepts: what their names were read from, shape (N, ΣV); None: not from attributes.
        bundle: that made it.
    """
    reader = concepts_of(bundle)
    if reader is None or concepts is None:
        return {}
    layer, labels = reader
    table, spoken = cells.probabilities(), {}
    ids, leaves = cells.frame["cell_id"].to_list(), cells.labels.leaves
    for row in np.flatnonzero(~np.isnan(concepts).any(axis=1) & ~np.isnan(table).any(axis=1)):
        spoken[ids[row]] = for_and_against(layer.voices(concepts[row], leaves[int(table[row].argmax())], labels))
    return {cell_id: words for cell_id, words in spoken.items() if words}


def attribute_sections(page: Page, cells: Cells, bundle: Bundle, portrait: Portrait) -> Page:
    """The page with what the attributes of the counted cells say; unchanged where none has any.

    Args:
        page: so far.
        cells: of the prediction.
        bundle: that made it.
        portrait: the picture of a cell from its row.
    """
    counted = cells.filter(pl.col("counted"))
    told = [a for a in cells.labels.attributes if counted.frame[a.column].is_not_null().any()]
    if not told:
        return page
    text = "Each bar is one kind; its parts are the shares of the values. A cell counts where its value is given."
    page = page.section("Attributes, kind by kind", text)
    page = page.figures([Picture(shares_plot(counted, a), a.name.replace("_", " "), a.schema) for a in told])
    rows = [row for attribute in told for row in _rows(counted, attribute)]
    page = page.table(["attribute", "value", "cells", "percent", "95 % interval"], rows).notes([ABOUT_SHARES])
    return _outliers(page, counted, bundle, portrait)


def _rows(cells: Cells, attribute: AttributeSchema) -> list[list[object]]:
    values = cells.frame[attribute.column].drop_nulls().cast(pl.String)
    rows: list[list[object]] = []
    for value in attribute.values:
        count = int((values == value).sum())
        low, high = wilson(count, len(values))
        interval = f"{100 * low:.1f} – {100 * high:.1f}"
        rows.append(
            [attribute.name.replace("_", " "), value, count, f"{100 * count / max(len(values), 1):.1f}", interval]
        )
    return rows


def shares_plot(cells: Cells, attribute: AttributeSchema) -> bytes:
    """Stacked bars of an attribute's values, one per label that has any, as SVG."""
    from matplotlib.figure import Figure

    told = cells.frame.filter(pl.col(attribute.column).is_not_null() & pl.col("label").is_not_null())
    seen = told["label"].cast(pl.String).value_counts(sort=True)["label"].to_list()[:_KINDS_SHOWN]
    names = [name for name in cells.labels.names if name in seen]
    figure = Figure(figsize=(6.2, 1.0 + 0.3 * max(len(names), 1)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(names))
    for index, value in enumerate(attribute.values):
        own = [told.filter(pl.col("label") == name)[attribute.column].cast(pl.String) for name in names]
        widths = np.array([100 * int((column == value).sum()) / max(len(column), 1) for column in own])
        shade = PALETTE[index % len(PALETTE)]
        axes.barh(range(len(names)), widths, 0.66, left=left, color=shade, alpha=0.85, label=value, linewidth=0)
        left = left + widths
    counts = [len(told.filter(pl.col("label") == name)) for name in names]
    ticks = [f"{name} ({count})" for name, count in zip(names, counts, strict=True)]
    axes.set_yticks(range(len(names)), labels=ticks, parse_math=False, fontsize=8, color=INK)
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="percent of the kind")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8, labelcolor=INK)
    for text in legend.get_texts():
        text.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _outliers(page: Page, counted: Cells, bundle: Bundle, portrait: Portrait) -> Page:
    outputs = attribute_outputs(bundle)
    unlike, surprise = unlike_their_kind(counted, outputs)
    if not unlike.any():
        return page
    order = np.argsort(-np.where(unlike, surprise, -np.inf), kind="stable")[: int(unlike.sum())]
    text = (
        "Their attributes together are rarer than those of 99 in 100 of the training's cells of the same name: the "
        "name, an attribute, or the cell is unusual. The value that is rarest in the kind is named, with its share."
    )
    pictures = []
    for row in counted.frame[order[:_OUTLIERS_SHOWN].tolist()].iter_rows(named=True):
        picture = portrait(row)
        pictures.append(Picture(picture.data, picture.caption, least_likely(row, counted.labels, outputs)))
    page = page.section("Cells unlike others of their kind", text).grid(pictures)
    if len(order) > _OUTLIERS_SHOWN:
        page = page.notes([f"{_OUTLIERS_SHOWN} of {len(order)} shown, the rarest first."])
    return page


def blast_section(page: Page, cells: Cells, settings: BlastSettings) -> Page:
    """The page with the share of blasts against the line; unchanged where the labels have no blasts."""
    found = blasts(cells, settings)
    if found is None:
        return page
    page = page.section("Blasts", "Blasts and their equivalents among the white cells that have a name.")
    percent = None if found.percent is None else f"{found.percent:.1f}"
    low, high = found.interval
    interval = "–" if found.percent is None else f"{low:.1f} – {high:.1f}"
    rows: list[list[object]] = [["all blasts", found.count, percent, interval]]
    rows += [[f"\u2003{name}", n, f"{100 * n / found.total:.1f}", "–"] for name, n in found.by_label.items()]
    page = page.table(["kind", "cells", "percent", "95 % interval"], rows)
    share = "Blasts" if found.percent is None else f"Blasts are {found.percent:.1f} % of {found.total} white cells"
    page = page.notes([f"{share}: {found.verdict}."], "warning" if (found.percent or 0) >= found.line else "note")
    if found.flagged:
        page = page.notes(
            [f"{found.flagged} abnormal promyelocytes: acute promyelocytic leukaemia has no line; any count matters."],
            "warning",
        )
    return page.notes(["A model's count supports and does not replace a person's review of the smear."])
