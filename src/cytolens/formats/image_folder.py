"""Images of one cell each: a folder per class, or a CSV file ``image,label[,split][,group]``.

Each image is one cell whose box is the whole image; a row without a label is an image without a
cell. Written as ``labels.csv``, where images are to be copied with a folder per class beside it.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from cytolens.dataset import Dataset
from cytolens.formats import tables
from cytolens.formats.assembly import Imported, assemble, rows
from cytolens.formats.export import copy_images, file_names, folder_name, output_file, output_folder
from cytolens.formats.intake import Intake, Reference
from cytolens.formats.options import ReadOptions, WriteOptions
from cytolens.formats.sources import SPLIT_NAMES, Picture
from cytolens.problems import FormatError, Problems, written

CANNOT_KEEP = (
    "boxes other than the whole image",
    "images with several cells",
    "cells without a label",
    "cells below the threshold",
    "scores",
    "probabilities",
    "masks",
    "attributes",
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


def read(source: Path, options: ReadOptions) -> Imported:
    """Read a CSV file of image labels, a folder that holds exactly one, or a folder of class folders.

    Raises:
        FormatError: the CSV is not proper or lacks columns, or there is neither a CSV nor an image.
    """
    if source.is_file() or options.columns or _tables_in(source):
        return _read_table(tables.find_table(source, tables.is_image_labels, "image labels", options), source, options)
    return _read_folders(source, options)


def _tables_in(folder: Path) -> bool:
    files = (path for path in folder.iterdir() if path.suffix.lower() in tables.SUFFIXES)
    return any(tables.is_image_labels(tables.header_of(path)) for path in files)


def _read_table(path: Path, source: Path, options: ReadOptions) -> Imported:
    intake = Intake("image_folder", path.parent, options, source.stem if source == path else source.name)
    table = tables.read_table(intake, path, ("image", "label"), ("split", "group"))
    references, of_row, index = tables.image_references(table, intake, path)
    pictures = intake.locate(references, index)
    named = [row for row, text in enumerate(table.columns["label"]) if text and of_row[row] >= 0]
    note_several(intake, references, [of_row[row] for row in named])
    where = [f"{intake.place(path)}:{table.lines[row]}" for row in named]
    labels = [table.columns["label"][row] for row in named]
    cells = whole_images(intake, [of_row[row] for row in named], where, labels, pictures)
    return assemble(intake, references, pictures, cells)


def _read_folders(source: Path, options: ReadOptions) -> Imported:
    intake = Intake("image_folder", source, options)
    index = intake.index()
    if not len(index):
        raise FormatError(
            f"{source}: wanted a CSV file with the columns image and label, or one folder of images per class; "
            "found neither."
        )
    paths = [image_id.removeprefix(index.base).split("/") for image_id in index.ids]
    tops = {steps[0] for steps in paths if len(steps) > 1}
    depth = 1 if tops and all(top.casefold() in SPLIT_NAMES for top in tops) else 0
    labels = [steps[depth] if len(steps) > depth + 1 else None for steps in paths]
    if not any(labels):
        raise FormatError(f"{source}: {len(index)} images, but no folder per class and no CSV file of image labels.")
    intake.remember(f"{image_id}\t{label}" for image_id, label in zip(index.ids, labels, strict=True))
    references = [
        Reference(
            name=image_id,
            where=image_id,
            image_id=image_id,
            splits=(steps[0],) if depth and len(steps) > 1 else (),
            annotated=label is not None,
        )
        for image_id, steps, label in zip(index.ids, paths, labels, strict=True)
    ]
    pictures = intake.locate(references, index)
    named = [(i, image_id, label) for i, (image_id, label) in enumerate(zip(index.ids, labels, strict=True)) if label]
    cells = whole_images(intake, [i for i, _, _ in named], [w for _, w, _ in named], [n for _, _, n in named], pictures)
    return assemble(intake, references, pictures, cells)


def note_several(intake: Intake, references: Sequence[Reference], image: Sequence[int]) -> None:
    """Say which images have several rows, each of which becomes a cell; `image` is the position of each row."""
    for position, count in Counter(image).items():
        if count > 1:
            what = f'the image "{references[position].name}" has {count} labels; each becomes a cell.'
            intake.problems.add("image-several-labels", references[position].where, what, "Keep one of them.")


def whole_images(
    intake: Intake,
    image: Sequence[int],
    where: Sequence[str],
    label: Sequence[str | None],
    pictures: Sequence[Picture | None],
    more: Mapping[str, Sequence[str | None]] | None = None,
) -> pl.DataFrame:
    """One cell per row of `image`, as large as its picture; where that has no known size, there can be no cell.

    Args:
        intake: the import; cells without a place are a problem.
        image: positions among the references (N).
        where: file and line of each row, for problems (N).
        label: what each is called (N).
        pictures: what `Intake.locate` gave for the references.
        more: further columns of text, such as attributes (N each).
    """
    sizes = [None if (picture := pictures[i]) is None else picture.size_wh for i in image]
    lost = sum(size is None and pictures[i] is not None for i, size in zip(image, sizes, strict=True))
    intake.note_unplaced(lost, "The box is the whole image")
    width, height = ([None if size is None else size[axis] for size in sizes] for axis in (0, 1))
    frame = rows(
        {
            "image": list(image),
            "where": list(where),
            "label": list(label),
            "x_min": [0.0] * len(image),
            "y_min": [0.0] * len(image),
            "x_max": width,
            "y_max": height,
        }
    ).with_columns(pl.Series(name, list(values), pl.String) for name, values in (more or {}).items())
    nowhere = pl.Series(
        [picture is not None and picture.size_wh is None for picture in map(pictures.__getitem__, image)],
        dtype=pl.Boolean,
    )
    return frame.filter(~nowhere)


def write(data: Dataset, path: Path, options: WriteOptions) -> Problems:
    """Write ``labels.csv`` (or the CSV file `path`); images with several cells are left out.

    With `options.copy_images` the folder `path` gets the images in a folder per class, below one per
    split where every image has one, and ``labels.csv`` beside them.

    Raises:
        FormatError: the folder is not empty, a label cannot name a folder, or two images have the same name.
    """
    problems = Problems()
    counts = Counter(data.cells.frame["image_id"].to_list())
    label_of = dict(zip(data.cells.frame["image_id"].to_list(), data.cells.label_names(), strict=True))
    kept = [row for row in data.images.rows() if counts[row["image_id"]] < 2]
    names = file_names(data.images.ids)
    target = output_file(path, ".csv", "labels.csv")
    if options.copy_images:
        by_split = all(row["split"] is not None for row in kept)
        for row in kept:
            names[row["image_id"]] = _folders(row, label_of.get(row["image_id"]), by_split) + names[row["image_id"]]
        target = output_folder(path) / "labels.csv"
        copy_images(data.images, {row["image_id"]: path / names[row["image_id"]] for row in kept}, problems)
    extra = [name for name in ("split", "group") if any(row[name] is not None for row in kept)]
    with written(target) as part, part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["image", "label", *extra])
        for row in kept:
            label = label_of.get(row["image_id"])
            writer.writerow([names[row["image_id"]], label, *(row[name] for name in extra)])
    return problems


def _folders(row: Mapping[str, Any], label: str | None, by_split: bool) -> str:
    """The folders of an image: its split and its class, as far as there are any."""
    steps = [folder_name(row["split"], "split")] if by_split else []
    return "".join(f"{step}/" for step in [*steps, *([folder_name(label, "label")] if label else [])])
