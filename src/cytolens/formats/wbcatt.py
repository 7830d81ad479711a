"""WBCAtt's tables: one CSV row per image of one white cell, with its type and eleven morphological attributes.

The columns are ``img_name``, ``label``, the eleven of the schema "wbcatt", ``path``; ``split`` and ``group`` follow
only where the dataset has any. "nil" is a value like others; an empty field is not annotated. The published files
divide the images into parts by file name (``pbc_attr_v1_train.csv``), and so does this reader.

Source: S. Tsutsui, W. Pang, B. Wen, "WBCAtt: A White Blood Cell Dataset Annotated with Detailed Morphological
Attributes", NeurIPS 2023.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cytolens.dataset import Dataset
from cytolens.formats import tables
from cytolens.formats.assembly import Imported, assemble
from cytolens.formats.attribute_values import Refusals
from cytolens.formats.export import copy_images, file_names, output_file
from cytolens.formats.image_folder import note_several, whole_images
from cytolens.formats.intake import Intake, Reference
from cytolens.formats.options import ReadOptions, WriteOptions
from cytolens.formats.sources import IMAGE_FOLDER, split_in_file_name
from cytolens.labels import AttributeSchema, attribute_schema
from cytolens.problems import FormatError, Problems, listing, written

CANNOT_KEEP = (
    "boxes other than the whole image",
    "images with several cells",
    "cells without a label",
    "cells below the threshold",
    "scores",
    "probabilities",
    "masks",
    "attributes other than WBCAtt's",
    "probabilities of attributes",
    "ignore flags",
    "referral flags",
    "cell ids",
    "sources",
    "folds",
    "pixel sizes in µm",
    "stains, scanners and magnifications",
    "what the annotation is complete for",
    "label trees",
    "labels without cells",
)
SCHEMA: tuple[AttributeSchema, ...] = attribute_schema("wbcatt")
NAMES: tuple[str, ...] = tuple(attribute.name for attribute in SCHEMA)
_SYNONYMS = {
    "image": ("img name",),
    "label": ("label",),
    "split": ("split",),
    "group": ("group",),
    **{name: (name.replace("_", " "),) for name in NAMES},
}
# Granularity says whether there are granules; where there are none, their type and colour are "nil".
_NONE_OF = {"granule_type": "nil", "granule_colour": "nil"}


@dataclass(frozen=True)
class _Row:
    """One row of a table: its image's position among all references, and what is said of it."""

    image: int
    where: str
    label: str | None
    values: tuple[str | None, ...]


def is_wbcatt(path: Path) -> bool:
    """Whether a CSV file has WBCAtt's columns: the image, the type and all eleven attributes."""
    return path.suffix.lower() in tables.SUFFIXES and {"image", "label", *NAMES} <= tables.header_of(path, _SYNONYMS)


def read(source: Path, options: ReadOptions) -> Imported:
    """Read one of WBCAtt's CSV files, or all of a folder's top.

    Raises:
        FormatError: there is none, one is no proper CSV, or no image is found.
    """
    files = [source] if source.is_file() else [path for path in sorted(source.iterdir()) if is_wbcatt(path)]
    if not files:
        there = [path.name for path in sorted(source.iterdir()) if path.suffix.lower() in tables.SUFFIXES]
        raise FormatError(
            f"{source}: wanted CSV files with the columns img_name, label and {listing(NAMES)}; "
            f"CSV files there: {listing(there) or 'none'}."
        )
    root = source if source.is_dir() else source.parent
    intake = Intake("wbcatt", root, options, source.stem if source.is_file() else source.name)
    references: list[Reference] = []
    rows: list[_Row] = []
    index = intake.index(IMAGE_FOLDER)
    for path in files:
        table = tables.read_table(intake, path, ("image", "label", *NAMES), ("split", "group"), _SYNONYMS)
        named, of_row, index = tables.image_references(table, intake, path, IMAGE_FOLDER)
        part = split_in_file_name(path.name)
        rows += _rows(intake, table, of_row, len(references), intake.place(path))
        references += [one if one.splits or part is None else replace(one, splits=(part,)) for one in named]
    _note_contradictions(intake, rows)
    pictures = intake.locate(references, index)
    note_several(intake, references, [row.image for row in rows])
    cells = whole_images(
        intake,
        [row.image for row in rows],
        [row.where for row in rows],
        [row.label for row in rows],
        pictures,
        {attribute.column: [row.values[i] for row in rows] for i, attribute in enumerate(SCHEMA)},
    )
    return assemble(intake, references, pictures, cells, attributes=SCHEMA)


def _rows(intake: Intake, table: tables.Table, of_row: Sequence[int], offset: int, place: str) -> Iterator[_Row]:
    """The rows that name an image and say something of it; a value that is none is a problem and left empty."""
    refusals = Refusals(intake.problems)
    labels = table.texts("label")
    columns = [_checked(table, attribute, place, refusals) for attribute in SCHEMA]
    for row, line in enumerate(table.lines):
        values = tuple(column[row] for column in columns)
        if of_row[row] >= 0 and (labels[row] is not None or any(value is not None for value in values)):
            yield _Row(offset + of_row[row], f"{place}:{line}", labels[row], values)
    refusals.say()


def _checked(table: tables.Table, attribute: AttributeSchema, place: str, refusals: Refusals) -> list[str | None]:
    """The values of one column, None where there is none or it is not allowed."""
    given = table.texts(attribute.name)
    for row, value in enumerate(given):
        if value is not None and value not in attribute.values:
            where = f"{place}:{table.lines[row]}"
            refusals.add(where, table.names[attribute.name], value, attribute, attribute.values)
            given[row] = None
    return given


def _note_contradictions(intake: Intake, rows: Sequence[_Row]) -> None:
    """Rows in which granularity and what is said of the granules do not go together."""
    position = {name: i for i, name in enumerate(NAMES)}
    for row in rows:
        granular = row.values[position["granularity"]]
        for name, none in _NONE_OF.items():
            value = row.values[position[name]]
            if granular is not None and value is not None and (granular == "no") != (value == none):
                what = f'granularity is "{granular}", but {name} is "{value}"; both are kept.'
                intake.problems.add("attribute-contradiction", row.where, what, "Look at the image.")


def write(data: Dataset, path: Path, options: WriteOptions) -> Problems:
    """Write one CSV file: `path` itself where it ends in .csv, else ``attributes.csv`` in the folder `path`.

    Images with several cells are left out. With `options.copy_images` the images go to ``images`` beside it.

    Raises:
        FormatError: two images cannot be told apart by name.
    """
    problems = Problems()
    target = output_file(path, ".csv", "attributes.csv")
    counts = Counter(data.cells.frame["image_id"].to_list())
    kept = [row for row in data.images.rows() if counts[row["image_id"]] < 2]
    names = file_names(data.images.ids)
    paths = dict(names)
    if options.copy_images:
        paths = {image_id: f"{IMAGE_FOLDER}/{name}" for image_id, name in names.items()}
        copy_images(data.images, {row["image_id"]: target.parent / paths[row["image_id"]] for row in kept}, problems)
    said = _said(data)
    extra = [name for name in ("split", "group") if any(row[name] is not None for row in kept)]
    with written(target) as part, part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["img_name", "label", *NAMES, "path", *extra])
        for row in kept:
            image_id = row["image_id"]
            values = said.get(image_id, [None] * (1 + len(NAMES)))
            writer.writerow([names[image_id], *values, paths[image_id], *(row[name] for name in extra)])
    return problems


def _said(data: Dataset) -> dict[str, list[str | None]]:
    """Image id → label and values of its named cell, None where the dataset has none or not such an attribute."""
    blank: list[str | None] = [None] * len(data.cells)
    own = {attribute.column for attribute in data.labels.attributes}
    columns = [data.cells.attribute_values(a.column) if a.column in own else blank for a in SCHEMA]
    table = zip(data.cells.frame["image_id"].to_list(), data.cells.label_names(), *columns, strict=True)
    return {image_id: [label, *values] for image_id, label, *values in table if label is not None}
