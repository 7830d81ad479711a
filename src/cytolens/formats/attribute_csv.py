"""Findings with their attributes as a CSV file: in the columns of the original LeukemiaAttri program, or in ours.

The original's file has six attributes as codes (the cell size is left out), 0 for all of them at artefacts, and whole
pixels. Ours has every attribute of the cells by the names of its values, each with the probability of what was said,
and nothing where an attribute does not apply or was not said.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import polars as pl

from cytolens.cells import BOX_COLUMNS, Cells
from cytolens.formats.export import number_text
from cytolens.formats.leukemia_codes import SCHEMA, SIZE, is_artefact
from cytolens.labels import AttributeSchema
from cytolens.problems import FormatError, Problems, listing, written

# The six attributes of the original's files, in its order.
ORIGINAL: tuple[AttributeSchema, ...] = tuple(attribute for attribute in SCHEMA if attribute.name != SIZE)
_TITLES = {"nucleolus": "Nucleus"}  # what the original calls it


def title(attribute: AttributeSchema) -> str:
    """What the column of an attribute is called, such as "Nuclear Chromatin"."""
    own = _TITLES.get(attribute.name) if attribute.schema == SCHEMA[0].schema else None
    return own or attribute.name.replace("_", " ").title()


def code(attribute: AttributeSchema, value: str | None) -> str:
    """A value as the original writes it: its place among the attribute's values; empty where there is none."""
    return "" if value is None else str(attribute.values.index(value))


def require_original(cells: Cells, what: str) -> None:
    """See that cells carry the original's six attributes.

    Raises:
        FormatError: they do not.
    """
    own = {attribute.column for attribute in cells.labels.attributes}
    if missing := [attribute.column for attribute in ORIGINAL if attribute.column not in own]:
        raise FormatError(f"{what} have not all attributes of LeukemiaAttri: {listing(missing)} are missing")


def write_predictions(found: Cells, path: Path, *, original: bool) -> Problems:
    """Write the counted findings, in the order of the table.

    Args:
        found: the findings; cells without a label are left out, which is a problem.
        path: of the CSV file.
        original: whether in the original's columns.

    Raises:
        FormatError: (original) the findings have not its attributes.
    """
    problems = Problems()
    if original:
        require_original(found, "the findings")
    counted = found.filter(pl.col("counted"))
    named = counted.filter(pl.col("label").is_not_null())
    if len(named) < len(counted):
        what = f"{len(counted) - len(named)} cells without a label are left out."
        problems.add("not-kept", "cells without a label", what)
    rows = _original_rows(named) if original else _own_rows(named)
    header = _original_header() if original else _own_header(named)
    with written(path) as part, part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    return problems


def _original_header() -> list[str]:
    return ["Image Name", "Prediction", "Confidence", *map(title, ORIGINAL), *BOX_COLUMNS]


def _original_rows(cells: Cells) -> list[list[str]]:
    columns = [cells.attribute_values(attribute.column) for attribute in ORIGINAL]
    # Halves go up, on every side alike.
    edges = np.floor(cells.boxes().astype(np.float64) + 0.5).astype(int).tolist()
    rows = []
    for at, (name, label, score) in enumerate(_named(cells)):
        values = zip(ORIGINAL, columns, strict=True)
        told = ["0" if is_artefact(label) else code(attribute, column[at]) for attribute, column in values]
        rows.append([name, label, f"{score:.2f}", *told, *map(str, edges[at])])
    return rows


def _own_header(cells: Cells) -> list[str]:
    attributes = cells.labels.attributes
    names = [title(attribute) for attribute in attributes]
    # Two schemas may have an attribute of the same name.
    names = [t if names.count(t) == 1 else f"{a.schema} {t}" for t, a in zip(names, attributes, strict=True)]
    told = [column for name in names for column in (name, f"{name} Probability")]
    return ["Image Name", "Prediction", "Confidence", *told, *BOX_COLUMNS]


def _own_rows(cells: Cells) -> list[list[str]]:
    attributes = cells.labels.attributes
    columns = [cells.attribute_values(attribute.column) for attribute in attributes]
    shares = [cells.attribute_probabilities(attribute.column) for attribute in attributes]
    edges = cells.boxes().tolist()
    rows = []
    for at, (name, label, score) in enumerate(_named(cells)):
        told: list[str] = []
        for attribute, column, table in zip(attributes, columns, shares, strict=True):
            value = None if is_artefact(label) else column[at]
            share = float("nan") if value is None else float(table[at, attribute.values.index(value)])
            told += [value or "", "" if np.isnan(share) else f"{share:.4f}"]
        rows.append([name, label, f"{score:.4f}", *told, *map(number_text, edges[at])])
    return rows


def _named(cells: Cells) -> list[tuple[str, str, float]]:
    """File name (without folders), label and score of each cell."""
    ids = [image_id.rsplit("/", 1)[-1] for image_id in cells.frame["image_id"]]
    return list(zip(ids, map(str, cells.label_names()), cells.scores().tolist(), strict=True))
