"""Masks as run-length codes in a CSV file, one row per cell: Sartorius and the Data Science Bowl 2018.

Sartorius: ``id,annotation,width,height,cell_type``, pixels numbered row by row. Data Science Bowl:
``ImageId,EncodedPixels``, column by column. A row with an image and an empty code says that the
image has no cell. The file that is written has the columns of the one or the other by its order,
with sizes and labels, followed by ``score``, ``ignore``, ``split`` and ``group`` where there are any.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from cytolens import masks
from cytolens.cells import BOX_COLUMNS
from cytolens.dataset import Dataset
from cytolens.formats import run_lengths, tables
from cytolens.formats.assembly import Imported, assemble, rows
from cytolens.formats.export import copy_images, file_names, number_text, output_file
from cytolens.formats.intake import Intake, Reference, encoding_of
from cytolens.formats.options import Order, ReadOptions, WriteOptions
from cytolens.formats.sample_ids import SampleId, parsed
from cytolens.formats.sources import Picture, without_image_suffix
from cytolens.labels import folded
from cytolens.problems import FormatError, Problems, SettingError, written

CANNOT_KEEP = (
    "cells without a mask",
    "boxes other than the mask's bounds",
    "probabilities",
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
SYNONYMS: Mapping[str, Sequence[str]] = tables.SYNONYMS | {
    "image": ("imageid", *tables.SYNONYMS["image"], "id"),
    "runs": ("annotation", "encodedpixels", "encoded pixels", "predicted", "rle"),
    "width": ("width", "width px", "image width"),
    "height": ("height", "height px", "image height"),
    "sample": ("sample id",),
}
_ORDERS: dict[str, Order] = {
    "annotation": "row", "predicted": "row", "encodedpixels": "column", "encoded pixels": "column"
}  # fmt: skip
_HEADERS: dict[Order, tuple[str, ...]] = {
    "row": ("id", "annotation", "width", "height", "cell_type"),
    "column": ("ImageId", "EncodedPixels", "Width", "Height", "cell_type"),
}
_EXTRA = ("score", "ignore", "split", "group")


class _Cell(NamedTuple):
    """One row that has a code: its number, the size its pixels are counted in, and its pixels."""

    row: int
    size_wh: tuple[int, int]
    positions: run_lengths.Positions


def is_runs(columns: set[str]) -> bool:
    """Whether columns are those of a table of run-length codes."""
    return {"image", "runs"} <= columns


def looks_like_runs(path: Path) -> bool:
    """Whether a CSV file has such columns, and numbers in the first code. For telling formats apart."""
    if not is_runs(tables.header_of(path, SYNONYMS)):
        return False
    try:
        with path.open("rb") as stream:
            encoding = encoding_of(stream.read(2))
        with path.open(encoding=encoding) as stream:
            header, first = stream.readline(65536), stream.readline(65536)
    except (OSError, UnicodeDecodeError):
        return False
    usual = any(name in _ORDERS for name in map(folded, re.split(r"[,;\t]", header.strip())))
    return bool(re.search(r'(^|[,;\t])"?\d+ \d+( |"|[,;\t]|$)', first.strip())) or (usual and not first.strip())


# -- reading ----------------------------------------------------------------------------------------


def read(source: Path, options: ReadOptions) -> Imported:
    """Read a CSV file of run-length codes, or a folder with exactly one.

    Rows whose code is wrong are left out; each becomes a problem. Where no group is named, that of a Sartorius
    ``sample_id`` is its vessel and well, or as `options.sample_group` says; the ids stay in the dataset's provenance.

    Raises:
        FormatError: there is no such file or several, it is no proper CSV, or columns are missing.
        SettingError: the column's name does not say how pixels are numbered, and `options.order` does not either.
    """
    path = tables.find_table(source, is_runs, "run-length codes", options, SYNONYMS)
    intake = Intake("rle_csv", path.parent, options, source.stem if source == path else source.name)
    optional = ("label", *_EXTRA, "width", "height", "sample")
    table = tables.read_table(intake, path, ("image", "runs"), optional, SYNONYMS)
    order = options.order or _order_of(table, path)
    found, of_row, index = tables.image_references(table, intake, path, "images")
    declared = _declared_sizes(table)
    samples = _samples(intake, table, of_row, intake.place(path))
    references = _described(
        found, of_row, declared, {i: sample.group(options.sample_group) for i, (_, sample) in samples.items()}
    )
    pictures = intake.locate(references, index)
    cells = _decoded(intake, table, order, of_row, declared, pictures, intake.place(path))
    _note_doubtful_order(intake, order, cells)
    _note_overlaps(intake, cells, of_row, references)
    imported = assemble(intake, references, pictures, _frame(table, cells, of_row, intake.place(path)))
    return _with_sample_ids(imported, {p.image_id: samples[i][0] for i, p in enumerate(pictures) if p and i in samples})


def _with_sample_ids(imported: Imported, sample_ids: Mapping[str, str]) -> Imported:
    """The same, with image id → sample id in the provenance of its dataset."""
    if not sample_ids:
        return imported
    *before, step = imported.dataset.provenance
    told = (*before, {**step, "sample_ids": dict(sample_ids)})
    return replace(imported, dataset=replace(imported.dataset, provenance=told))


def _order_of(table: tables.Table, path: Path) -> Order:
    name = table.names["runs"]
    if folded(name) not in _ORDERS:
        raise SettingError(
            f'order: {path.name} has its codes in the column "{name}", which does not say how pixels are numbered. '
            "Give the order: row (row by row) or column (column by column)."
        )
    return _ORDERS[folded(name)]


def _declared_sizes(table: tables.Table) -> list[tuple[int, int] | None]:
    """Width and height that each row names."""
    pairs = zip(table.numbers("width"), table.numbers("height"), strict=True)
    return [
        (int(width), int(height)) if width and height and 1 <= width < 2**31 and 1 <= height < 2**31 else None
        for width, height in pairs
    ]


def _samples(intake: Intake, table: tables.Table, of_row: Sequence[int], place: str) -> dict[int, tuple[str, SampleId]]:
    """Image → its sample id and what that says; ids of another form, or several of one image, are problems."""
    first: dict[int, tuple[str, int]] = {}
    for row, (image, text) in enumerate(zip(of_row, table.texts("sample"), strict=True)):
        if text is not None and image >= 0 and first.setdefault(image, (text, row))[0] != text:
            what = (
                f'the image has the sample id "{first[image][0]}" in another row, here "{text[:80]}"; the first counts.'
            )
            intake.problems.add("sample-id-wrong", f"{place}:{table.lines[row]}", what, "Correct the file.", "error")
    samples: dict[int, tuple[str, SampleId]] = {}
    for image, (text, row) in first.items():
        try:
            samples[image] = text, parsed(text)
        except FormatError as error:
            what = f"{error} The image stands in no group, so that a split may part its well."
            intake.problems.add("sample-id-wrong", f"{place}:{table.lines[row]}", what, "Correct the file.", "error")
    return samples


def _described(
    references: Sequence[Reference],
    of_row: Sequence[int],
    declared: Sequence[tuple[int, int] | None],
    groups: Mapping[int, str],
) -> list[Reference]:
    """The references with the size that their rows declare and the group of their sample."""
    sizes: dict[int, tuple[int, int]] = {}
    for image, size_wh in zip(of_row, declared, strict=True):
        if size_wh is not None:
            sizes.setdefault(image, size_wh)
    return [
        replace(reference, size_wh=sizes.get(i), group=reference.group or groups.get(i))
        for i, reference in enumerate(references)
    ]


def _decoded(
    intake: Intake,
    table: tables.Table,
    order: Order,
    of_row: Sequence[int],
    declared: Sequence[tuple[int, int] | None],
    pictures: Sequence[Picture | None],
    place: str,
) -> list[_Cell]:
    """The pixels of each row that has a code; what cannot be used is a problem."""
    cells: list[_Cell] = []
    unplaced = 0
    for row, text in enumerate(table.columns["runs"]):
        picture = pictures[of_row[row]] if of_row[row] >= 0 else None
        if picture is None or not text:
            continue
        size_wh = declared[row] or picture.size_wh
        if size_wh is None:
            unplaced += 1
            continue
        try:
            if picture.size_wh not in (None, size_wh):
                raise ValueError(f"the row counts pixels of {size_wh}, but the image is {picture.size_wh}")
            cells.append(_Cell(row, size_wh, run_lengths.positions_of_text(text, size_wh, order)))
        except ValueError as error:
            what = f"the run-length code cannot be used: {error}; the cell is left out."
            intake.problems.add("mask-unreadable", f"{place}:{table.lines[row]}", what, "Correct the file.", "error")
    intake.note_unplaced(unplaced, "Run-length codes count its pixels")
    return cells


def _note_doubtful_order(intake: Intake, order: Order, cells: Sequence[_Cell]) -> None:
    """Say so where the codes look as if their pixels were numbered the other way.

    Of a cell of several lines, starts are about one line apart: the image's width where pixels are
    numbered row by row, its height where column by column. Square images cannot tell.
    """
    own = other = 0
    for cell in cells:
        width, height = cell.size_wh
        if width == height or len(cell.positions) < 2:
            continue
        numbers = cell.positions if order == "column" else _by_rows(cell)
        first = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
        steps = np.diff(numbers[first])
        own_px, other_px = (width, height) if order == "row" else (height, width)
        nearer = np.abs(steps - own_px) < np.abs(steps - other_px)
        own, other = own + int(nearer.sum()), other + int((~nearer).sum())
    if other > own and other >= 10:
        what = f"the codes are read {order} by {order}, but look as if pixels were numbered the other way."
        fix = f"Look at some cells; give the order {'column' if order == 'row' else 'row'} if so."
        intake.problems.add("order-doubtful", intake.name, what, fix)


def _by_rows(cell: _Cell) -> run_lengths.Positions:
    width, height = cell.size_wh
    return np.sort(cell.positions % height * width + cell.positions // height)


def _note_overlaps(
    intake: Intake, cells: Sequence[_Cell], of_row: Sequence[int], references: Sequence[Reference]
) -> None:
    """Say in which images pixels belong to several cells."""
    by_image: dict[int, list[run_lengths.Positions]] = {}
    for cell in cells:
        by_image.setdefault(of_row[cell.row], []).append(cell.positions)
    for image, places in by_image.items():
        shared = sum(map(len, places)) - len(np.unique(np.concatenate(places)))
        if shared:
            what = f'cells of the image "{references[image].name}" overlap in {shared} px; all are kept as they are.'
            intake.problems.add("masks-overlap", references[image].where, what, "Look at the image with its masks.")


def _frame(table: tables.Table, cells: Sequence[_Cell], of_row: Sequence[int], place: str) -> pl.DataFrame:
    """The cells as `ROWS`."""
    boxes = [run_lengths.bounds_of_positions(cell.positions, cell.size_wh[1]).tolist() for cell in cells]
    labels, scores, flags = table.texts("label"), table.numbers("score"), table.flags("ignore")
    return rows(
        {
            "image": [of_row[cell.row] for cell in cells],
            "where": [f"{place}:{table.lines[cell.row]}" for cell in cells],
            "label": [labels[cell.row] for cell in cells],
            **{name: [box[axis] for box in boxes] for axis, name in enumerate(BOX_COLUMNS)},
            "score": [scores[cell.row] for cell in cells],
            "ignore": [flags[cell.row] for cell in cells],
            "mask": [run_lengths.code_of_positions(cell.positions, cell.size_wh) for cell in cells],
        }
    )


# -- writing ----------------------------------------------------------------------------------------


def write(data: Dataset, path: Path, options: WriteOptions) -> Problems:
    """Write one CSV file: `path` itself where it ends in .csv, else ``masks.csv`` in the folder `path`.

    Images are named without their suffix, as both challenges do; with `options.copy_images` they go to
    ``images`` beside the file. Cells without a mask are left out.

    Raises:
        FormatError: two images cannot be told apart by name, or one with masks has no known size.
    """
    problems = Problems()
    target = output_file(path, ".csv", "masks.csv")
    order = options.order or "row"
    names = file_names(data.images.ids, by_stem=True)
    if options.copy_images:
        copy_images(data.images, {i: target.parent / "images" / name for i, name in names.items()}, problems)
    images = {row["image_id"]: row for row in data.images.rows()}
    extra = [name for name in _EXTRA if _has(data, name)]
    lines: list[list[Any]] = []
    for image_id, label, code, score, ignore in _outlined(data):
        text = _text(code, images[image_id], order)
        more = {"score": "" if score is None else number_text(score), "ignore": int(ignore)} | _parts(images[image_id])
        lines.append([*_line(names, images[image_id], text, label), *(more[name] for name in extra)])
    filled = {image_id for image_id, *_ in _outlined(data)}
    for image_id in (i for i in data.images.ids if i not in filled):
        row = images[image_id]
        lines.append([*_line(names, row, "", None), *(_parts(row).get(name, "") for name in extra)])
    with written(target) as part, part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*_HEADERS[order], *extra])
        writer.writerows(lines)
    return problems


def _outlined(data: Dataset) -> list[tuple[str, str | None, bytes, float | None, bool]]:
    """Image, label, mask, score and ignore flag of each cell whose mask has pixels."""
    columns = data.cells.frame.select("image_id", "label", "mask", "score", "ignore")
    return [row for row in columns.iter_rows() if row[2] is not None and masks.area(row[2])]


def _line(names: Mapping[str, str], row: Mapping[str, Any], text: str, label: str | None) -> list[Any]:
    return [without_image_suffix(names[row["image_id"]]), text, row["width_px"], row["height_px"], label]


def _parts(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"split": row["split"], "group": row["group"]}


def _text(code: bytes, row: Mapping[str, Any], order: Order) -> str:
    width, height = row["width_px"], row["height_px"]
    try:
        if not width or not height:
            raise ValueError("its size is not known, and run-length codes count its pixels")
        return run_lengths.text_of_code(code, (width, height), order)
    except ValueError as error:
        raise FormatError(f'a mask of "{row["image_id"]}" cannot be written: {error}. Import its image.') from error


def _has(data: Dataset, column: str) -> bool:
    if column == "ignore":
        return bool(data.cells.frame["ignore"].any())
    frame = data.cells.frame if column == "score" else data.images.frame
    return frame[column].null_count() < len(frame)
