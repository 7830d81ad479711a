"""Tables of boxes: one CSV row per cell with an image name, four pixel edges and a label.

Written as the CytologIA challenge's table: ``NAME,x1,y1,x2,y2,class``, followed by ``score``,
``ignore``, ``split`` and ``group`` only where the dataset has any. A row with an image name and
nothing else says that the image has no cell.
"""

from __future__ import annotations

import csv
from pathlib import Path

import polars as pl

from cytolens.cells import BOX_COLUMNS
from cytolens.dataset import Dataset
from cytolens.formats import tables
from cytolens.formats.assembly import Imported, assemble, rows
from cytolens.formats.export import copy_images, file_names, number_text, output_file
from cytolens.formats.intake import Intake
from cytolens.formats.options import ReadOptions, WriteOptions
from cytolens.problems import Problems, written

CANNOT_KEEP = (
    "probabilities",
    "masks",
    "attributes",
    "cell ids",
    "sources",
    "referral flags",
    "cells below the threshold",
    "label trees",
    "labels without cells",
    "folds",
    "pixel sizes in µm",
    "stains, scanners and magnifications",
    "what the annotation is complete for",
)
_HEADER = ("NAME", "x1", "y1", "x2", "y2", "class")
_EXTRA = ("score", "ignore", "split", "group")


def read(source: Path, options: ReadOptions) -> Imported:
    """Read a CSV file, or a folder with exactly one CSV file of boxes.

    Raises:
        FormatError: there is no such file or several, it is no proper CSV, or columns are missing.
    """
    path = tables.find_table(source, tables.is_boxes, "boxes", options)
    intake = Intake("csv_boxes", path.parent, options, source.stem if source == path else source.name)
    table = tables.read_table(intake, path, ("image", *tables.BOX), ("label", *_EXTRA))
    references, of_row, index = tables.image_references(table, intake, path)
    pictures = intake.locate(references, index)
    return assemble(intake, references, pictures, _cells(table, of_row, intake.place(path)))


def _cells(table: tables.Table, of_row: list[int], place: str) -> pl.DataFrame:
    """The rows as `ROWS`, without those that name no image or say that an image has no cell."""
    frame = rows(
        {
            **{name: table.numbers(name) for name in (*tables.BOX, "score")},
            "image": of_row,
            "where": [f"{place}:{line}" for line in table.lines],
            "label": table.texts("label"),
            "ignore": table.flags("ignore"),
        }
    )
    boxless = pl.all_horizontal(pl.col(name).is_null() for name in tables.BOX)
    return frame.filter(~(boxless & pl.col("label").is_null()) & (pl.col("image") >= 0))


def write(data: Dataset, path: Path, options: WriteOptions) -> Problems:
    """Write one CSV file: `path` itself where it ends in .csv, else ``boxes.csv`` in the folder `path`.

    With `options.copy_images` the images go to ``images`` beside it, and are named by that path.

    Raises:
        FormatError: two images cannot be told apart by name.
    """
    problems = Problems()
    target = output_file(path, ".csv", "boxes.csv")
    names = file_names(data.images.ids)
    if options.copy_images:
        names = {image_id: f"images/{name}" for image_id, name in names.items()}
        copy_images(data.images, {image_id: target.parent / name for image_id, name in names.items()}, problems)
    images = {row["image_id"]: row for row in data.images.rows()}
    extra = [name for name in _EXTRA if _has(data, name)]
    with written(target) as part, part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*_HEADER, *extra])
        columns = ["image_id", *BOX_COLUMNS, "label", "score", "ignore"]
        for image_id, *box, label, score, ignore in data.cells.frame.select(columns).iter_rows():
            own = images[image_id]
            more = {
                "score": "" if score is None else number_text(score),
                "ignore": int(ignore),
                "split": own["split"],
                "group": own["group"],
            }
            row = [names[image_id], *map(number_text, box), label]
            writer.writerow([*row, *(more[name] for name in extra)])
        filled = set(data.cells.frame["image_id"])
        for image_id in data.images.ids:
            if image_id not in filled:
                own = images[image_id]
                writer.writerow([names[image_id], *[""] * 5, *(own.get(name, "") for name in extra)])
    return problems


def _has(data: Dataset, column: str) -> bool:
    if column == "ignore":
        return bool(data.cells.frame["ignore"].any())
    frame = data.cells.frame if column == "score" else data.images.frame
    return frame[column].null_count() < len(frame)
