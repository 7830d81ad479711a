"""Label images: beside each image one of whole numbers, 0 the background, every other number one cell.

Read are PNG and TIFF files in a folder ``masks`` (or ``labels``, ``instances`` …), or called like the
image with ``_masks`` behind, as StarDist, Cellpose, ImageJ and QuPath write them. What the numbers are
called stands in a CSV file ``[image,]value,label`` there, or all cells have one label. Written are
``masks/<image>.png`` of 8 or 16 bits (``.tif`` of 32 where there are more cells) and ``masks/cells.csv``.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens import masks
from cytolens.cells import BOX_COLUMNS, Cells
from cytolens.dataset import Dataset
from cytolens.formats import run_lengths
from cytolens.formats.assembly import Imported, assemble, rows
from cytolens.formats.export import copy_images, file_names, number_text, output_folder
from cytolens.formats.intake import Intake, Reference
from cytolens.formats.label_files import (
    Meaning,
    Meanings,
    Values,
    find_label_files,
    label_values,
    photo_name,
    read_meanings,
)
from cytolens.formats.options import ReadOptions, WriteOptions
from cytolens.formats.sources import ImageIndex, Picture, split_in_path, without_image_suffix
from cytolens.problems import FormatError, Problems, written

CANNOT_KEEP = (
    "cells without a mask",
    "boxes other than the mask's bounds",
    "overlaps of masks",
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
_FOLDER = "masks"
_EXTRA = ("score", "ignore", "split", "group")


class _Cell(NamedTuple):
    """One number of one label image."""

    image: int
    value: int
    size_wh: tuple[int, int]
    positions: run_lengths.Positions
    meaning: Meaning | None


# -- reading ----------------------------------------------------------------------------------------


def read(source: Path, options: ReadOptions) -> Imported:
    """Read a folder with label images; their images are beside them or in `options.images`.

    Raises:
        FormatError: there is no label image, the CSV of labels is no proper one, or no image is found.
    """
    files = find_label_files(source, options.images) if source.is_dir() else None
    if files is None:
        raise FormatError(
            f"{source}: wanted a folder with label images: PNG or TIFF files in a folder called masks, or called like "
            "their image with _masks behind. Where it holds nothing else, name the images' folder with --images DIR."
        )
    intake = Intake("label_images", source, options)
    meanings = read_meanings(intake, source, files)
    index = intake.index()
    paths = {str(path) for path in files.values()}
    themselves = {image_id for image_id in index.ids if index.path(image_id) in paths}
    names = {name: photo_name(name, index, themselves) for name in files}
    found = {name: None if i in themselves else i for name, i in index.resolve(names.values()).items()}
    references: list[Reference] = []
    cells: list[_Cell] = []
    for name, path in files.items():
        if (values := _values(intake, path)) is not None:
            cells += _cells_of(intake, values, len(references), meanings, name)
            references.append(_reference(names[name], found[names[name]], intake.place(path), values, meanings, name))
    _note_meanings(intake, meanings, cells)
    references += _unlabelled(index, {*found.values(), *themselves})
    pictures = intake.locate(references, index)
    return assemble(intake, references, pictures, _frame(intake, cells, references, pictures, meanings.default))


def _values(intake: Intake, path: Path) -> Values | None:
    """The numbers of a label image; None, and a problem, where it is none."""
    try:
        return label_values(intake.read_bytes(path))
    except (ValueError, FormatError) as error:
        what = f"is no label image: {error}; it is left out with its image."
        fix = "Write it as PNG of 8 or 16 bits or as TIFF, one channel, the numbers of cells as values."
        intake.problems.add("annotation-unreadable", intake.place(path), what, fix, "error")
        return None


def _reference(
    photo: str, image_id: str | None, place: str, values: Values, meanings: Meanings, name: str
) -> Reference:
    key = meanings.key(name) or ""
    split = meanings.splits.get(key) or split_in_path(name)
    height, width = values.shape
    return Reference(photo, place, image_id, (split,) if split else (), meanings.groups.get(key), (width, height))


def _unlabelled(index: ImageIndex, meant: set[str | None]) -> list[Reference]:
    """Images beside those that have label images; nobody said what is in them."""
    splits = {image_id: split_in_path(image_id) for image_id in index.others(meant)}
    return [Reference(i, i, i, (split,) if split else (), annotated=False) for i, split in splits.items()]


def _cells_of(intake: Intake, values: Values, image: int, meanings: Meanings, name: str) -> list[_Cell]:
    """The cells of a label image in the order of their numbers."""
    height, width = values.shape
    numbers = values.T.ravel()  # column by column, as positions count
    places = np.flatnonzero(numbers)
    # A stable sort leaves the positions of each number in order.
    places = places[np.argsort(numbers[places], kind="stable")]
    sorted_numbers = numbers[places]
    first = np.flatnonzero(np.concatenate([[True], sorted_numbers[1:] != sorted_numbers[:-1]])[: len(places)])
    key = meanings.key(name)
    return [
        _Cell(image, value, (width, height), own, meanings.of(key, value))
        for value, own in zip(sorted_numbers[first].tolist(), np.split(places, first[1:]), strict=False)
    ]


def _note_meanings(intake: Intake, meanings: Meanings, cells: Sequence[_Cell]) -> None:
    """Say which numbers have no name, which names no number, and whether numbers look like kinds of pixels."""
    unnamed = sum(cell.meaning is None or cell.meaning.label is None for cell in cells)
    if unnamed and not meanings.is_table and meanings.default is None:
        what = f"nothing says what the {unnamed} cells are; they are kept without a label."
        fix = "Give all one label with --label, or write a CSV file image,value,label beside the label images."
        intake.problems.add("labels-missing", intake.name, what, fix, "note")
    strangers = [cell for cell in cells if meanings.is_table and cell.meaning is None]
    if strangers and meanings.default is None:
        what = f"{len(strangers)} numbers are not in the CSV of labels; their cells are kept without a label."
        intake.problems.add("value-unlisted", intake.name, what, "Add them to the CSV.")
    seen = {id(cell.meaning) for cell in cells}
    for meaning in meanings.rows.values():
        if id(meaning) not in seen:
            intake.problems.add("value-missing", meaning.where, "no label image has this number.", "Correct the CSV.")
    if parts := sum(_in_parts(cell) for cell in cells):
        what = (
            f"{parts} of {len(cells)} cells are in several parts. Where numbers mean kinds of pixels and not single "
            "cells, as in a semantic segmentation, these are no label images."
        )
        intake.problems.add("cells-in-parts", intake.name, what, "Look at some images.", "note")


def _in_parts(cell: _Cell) -> bool:
    """Whether the pixels of a cell do not hang together, corners counted."""
    import cv2

    height = cell.size_wh[1]
    x_min, y_min, x_max, y_max = run_lengths.bounds_of_positions(cell.positions, height).astype(int).tolist()
    part = np.zeros((y_max - y_min, x_max - x_min), np.uint8)
    part[cell.positions % height - y_min, cell.positions // height - x_min] = 1
    return cv2.connectedComponents(part, connectivity=8)[0] > 2


def _frame(
    intake: Intake,
    cells: Sequence[_Cell],
    references: Sequence[Reference],
    pictures: Sequence[Picture | None],
    default: str | None,
) -> pl.DataFrame:
    """The cells as `ROWS`; those whose label image is of another size than its image are left out."""
    wrong = {
        i
        for i, (reference, picture) in enumerate(zip(references, pictures, strict=True))
        if picture is not None and picture.size_wh not in (None, reference.size_wh)
    }
    for i in sorted(wrong & {cell.image for cell in cells}):
        size_wh = references[i].size_wh
        what = f"the label image is of {size_wh} px (width, height), not as its image; its cells are left out."
        intake.problems.add("mask-unreadable", references[i].where, what, "Write it in the image's size.", "error")
    kept = [cell for cell in cells if pictures[cell.image] is not None and cell.image not in wrong]
    boxes = [run_lengths.bounds_of_positions(cell.positions, cell.size_wh[1]).tolist() for cell in kept]
    said = [cell.meaning for cell in kept]
    return rows(
        {
            "image": [cell.image for cell in kept],
            "where": [f"{references[cell.image].where}: value {cell.value}" for cell in kept],
            "label": [(m and m.label) or default for m in said],
            **{name: [box[axis] for box in boxes] for axis, name in enumerate(BOX_COLUMNS)},
            "score": [m and m.score for m in said],
            "ignore": [m is not None and m.ignore for m in said],
            "mask": [run_lengths.code_of_positions(cell.positions, cell.size_wh) for cell in kept],
        }
    )


# -- writing ----------------------------------------------------------------------------------------


def write(data: Dataset, path: Path, options: WriteOptions) -> Problems:
    """Write ``masks/<image>.png`` (or ``.tif``) and ``masks/cells.csv`` into the new folder `path`.

    Cells are numbered 1 … N in each image. A pixel of several cells goes to the one with the highest
    score, else to the first; a cell that keeps no pixel is left out, and so is one without a mask.

    Raises:
        FormatError: the folder is not empty, two images would share a file, or one with masks has no known size.
    """
    problems = Problems()
    names = file_names(data.images.ids, by_stem=True)
    folder = output_folder(path)
    (folder / _FOLDER).mkdir()
    cells_of = dict(data.cells.by_image())
    lines: list[list[Any]] = []
    for row in data.images.rows():
        name = names[row["image_id"]]
        values, numbers = _painted(cells_of.get(row["image_id"]), row)
        if values is None:
            what = "the size of the image is not known; it gets no label image."
            problems.add("image-size-unknown", row["image_id"], what, "Import it with its image.")
            continue
        _save(values, folder / _FOLDER / without_image_suffix(name))
        _note_covered(cells_of.get(row["image_id"]), numbers, problems)
        lines += _lines(name, row, cells_of.get(row["image_id"]), numbers)
    if options.copy_images:
        copy_images(data.images, {i: folder / "images" / name for i, name in names.items()}, problems)
    with written(folder / _FOLDER / "cells.csv") as part, part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["image", "value", "label", *_EXTRA])
        writer.writerows(lines)
    return problems


def _painted(cells: Cells | None, row: Mapping[str, Any]) -> tuple[Values | None, NDArray[np.int64]]:
    """The label image of an image, and the number of each of its cells (0: it has none)."""
    width, height = row["width_px"], row["height_px"]
    codes = [] if cells is None else cells.masks()
    outlined = [i for i, code in enumerate(codes) if code is not None and masks.area(code)]
    if not width or not height:
        if outlined:
            raise FormatError(f'the size of "{row["image_id"]}" is not known, and its masks need it. Import its image.')
        return None, np.zeros(len(codes), np.int64)
    flat = np.zeros(width * height, np.int64)
    scores = np.zeros(0) if cells is None else cells.scores()
    # The best is painted last, over what others claim of its pixels.
    for i in sorted(outlined, key=lambda i: (-scores[i], i), reverse=True):
        try:
            flat[run_lengths.positions_of_code(codes[i] or b"", (width, height))] = i + 1
        except ValueError as error:
            raise FormatError(f'a mask of "{row["image_id"]}" cannot be written: {error}. Import it again.') from error
    left = np.unique(flat[flat > 0])
    numbers = np.zeros(len(codes) + 1, np.int64)
    numbers[left] = np.arange(1, len(left) + 1)
    return numbers[flat].reshape(width, height).T, numbers[1:]


def _save(values: Values, stem: Path) -> None:
    """A PNG of 8 or 16 bits, or a TIFF of 32 where there are more than 65,535 cells."""
    from PIL import Image

    most = int(values.max(initial=0))
    if most < 2**16:
        with written(stem.with_name(f"{stem.name}.png")) as part:
            Image.fromarray(values.astype(np.uint8 if most < 2**8 else np.uint16)).save(part)
        return
    import tifffile

    with written(stem.with_name(f"{stem.name}.tif")) as part:
        tifffile.imwrite(part, values.astype(np.uint32), compression="zlib")


def _note_covered(cells: Cells | None, numbers: NDArray[np.int64], problems: Problems) -> None:
    """Name the cells that other cells cover wholly."""
    for number, cell_id, code in (
        [] if cells is None else zip(numbers.tolist(), cells.frame["cell_id"], cells.masks(), strict=True)
    ):
        if code is not None and masks.area(code) and not number:
            what = "other cells cover all of its pixels; it is not written."
            problems.add("cell-covered", cell_id, what, "Look at the image with its masks.")


def _lines(name: str, row: Mapping[str, Any], cells: Cells | None, numbers: NDArray[np.int64]) -> list[list[Any]]:
    """The rows of ``cells.csv`` for one image; one without cells has a row for its split and group."""
    parts = [row["split"], row["group"]]
    if cells is None or not numbers.any():
        return [[name, "", "", "", "", *parts]]
    columns = zip(numbers.tolist(), cells.label_names(), cells.frame["score"], cells.frame["ignore"], strict=True)
    return [
        [name, number, label, "" if score is None else number_text(score), int(ignore), *parts]
        for number, label, score, ignore in columns
        if number
    ]
