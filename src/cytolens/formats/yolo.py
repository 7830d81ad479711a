"""YOLO text: one file per image, one line per cell, ``class x_centre y_centre width height`` as fractions.

A sixth number is a confidence; six or more coordinates after the class are a polygon. Class names
come from ``data.yaml`` or ``classes.txt``. An empty or absent text file beside others means "no cell
here".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens.cells import BOX_COLUMNS, Cells
from cytolens.dataset import Dataset
from cytolens.formats import outlines
from cytolens.formats.assembly import Imported, assemble, rows
from cytolens.formats.export import copy_images, distinct, file_names, folder_name, output_folder
from cytolens.formats.intake import Intake, Reference, as_number
from cytolens.formats.options import ReadOptions, WriteOptions
from cytolens.formats.sources import (
    IMAGE_FOLDER,
    ImageIndex,
    Picture,
    walk,
    without_image_suffix,
)
from cytolens.formats.yolo_classes import CLASS_FILES, Description, Parts, describe, description_texts
from cytolens.labels import AttributeSchema
from cytolens.problems import FormatError, Problems, listing, written

CANNOT_KEEP = (
    "cells without a label",
    "cells below the threshold",
    "probabilities",
    "masks",
    "attributes",
    "ignore flags",
    "referral flags",
    "cell ids",
    "sources",
    "groups",
    "folds",
    "pixel sizes in µm",
    "stains, scanners and magnifications",
    "what the annotation is complete for",
    "label trees",
)
_DECIMALS = range(6, 13)  # of a fraction that is written
More = Callable[[Cells], list[list[str]]]  # the cells of an image → the words behind the box of each


class Numbers(NamedTuple):
    """What one line says; edges and polygon are fractions of the image, codes those of attributes."""

    class_id: int
    edges: tuple[float, float, float, float]
    score: float | None = None
    polygon: list[float] | None = None
    codes: tuple[str, ...] = ()


class Line(NamedTuple):
    """One line of a label file: the position of its image, its place, and the fields of `Numbers`."""

    image: int
    where: str
    class_id: int
    edges: tuple[float, float, float, float]
    score: float | None
    polygon: list[float] | None
    codes: tuple[str, ...]


@dataclass(frozen=True)
class Dialect:
    """Files of YOLO's layout whose lines say more than YOLO's.

    Attributes:
        format: the format's name.
        numbers: the words of a line and its place → what it says; a ValueError is collected, a FormatError stops.
        standard: class names where no file gives them.
        schema: the attributes that cells carry.
        values: lines and their labels → attribute column → values.
        described: references → the same, with what the images' names say.
    """

    format: str
    numbers: Callable[[Sequence[str], str], Numbers]
    standard: Sequence[str] | None = None
    schema: tuple[AttributeSchema, ...] = ()
    values: Callable[[Intake, Sequence[Line], Sequence[str | None]], Mapping[str, Sequence[str | None]]] | None = None
    described: Callable[[Intake, Sequence[Reference]], list[Reference]] | None = None


def read(source: Path, options: ReadOptions) -> Imported:
    """Read a folder (or its ``data.yaml``): images and labels in two folders, per split or not, or side by side.

    Raises:
        FormatError: there is no list of class names, or no image is found.
    """
    return read_with(Dialect("yolo", lambda words, _: _numbers(words)), source, options)


def read_with(dialect: Dialect, source: Path, options: ReadOptions) -> Imported:
    """Read as `read` does, in a dialect.

    Raises:
        FormatError: as of `read`, or as the dialect has it.
    """
    intake = Intake(dialect.format, source if source.is_dir() else source.parent, options)
    index = intake.index(IMAGE_FOLDER)
    files = [(name, Path(entry.path)) for name, entry in walk(intake.root)]
    description = describe(intake, source, files, dialect.standard)
    paths = {_image_name(name): path for name, path in _label_files(files, index).items()}
    meant = index.resolve(paths)
    parts = Parts(intake, description.splits, index, dict(files), {*paths, *index.ids})
    references: list[Reference] = []
    lines: list[Line] = []
    for name, path in paths.items():
        found = _parse(intake, path, len(references), dialect)
        if found is not None:
            lines += found
            references.append(Reference(name, intake.place(path), meant[name], parts.of(name, meant[name])))
    folders = {_folder(name) for name in [*paths, *(i for i in meant.values() if i is not None)]}
    for image_id in index.others(set(meant.values())):
        known = _folder(image_id) in folders
        references.append(Reference(image_id, image_id, image_id, parts.of(image_id, image_id), annotated=known))
    references = references if dialect.described is None else dialect.described(intake, references)
    pictures = intake.locate(references, index)
    cells = _cells(intake, lines, pictures, description, dialect)
    return assemble(intake, references, pictures, cells, description.names, dialect.schema)


# -- which files ------------------------------------------------------------------------------------


def _label_files(files: Sequence[tuple[str, Path]], index: ImageIndex) -> dict[str, Path]:
    """Relative name → label file: every text file in a folder "labels"; where there is none, those beside images."""
    texts = {
        name: path for name, path in files if path.suffix.lower() == ".txt" and path.name.casefold() not in CLASS_FILES
    }
    in_labels = {name: path for name, path in texts.items() if "labels" in name.casefold().split("/")[:-1]}
    if in_labels:
        return in_labels
    return {n: path for n, path in texts.items() if index.candidates(_image_name(n)) or looks_like_labels(path)}


def looks_like_labels(path: Path) -> bool:
    """Whether a text file starts with a class number and four or more fractions."""
    try:
        with path.open("rb") as stream:
            first = stream.readline(4096).split()
    except OSError:
        return False
    numbers = [as_number(word.decode("latin-1")) for word in first]
    return len(numbers) >= 5 and numbers[0] == numbers[0] // 1 and bool(np.isfinite(numbers).all())


def _image_name(name: str) -> str:
    """A label file's image, without suffix: the last folder "labels" is called "images" there."""
    steps = name.removesuffix(Path(name).suffix).split("/")
    for at in range(len(steps) - 2, -1, -1):
        if steps[at].casefold() == "labels":
            steps[at] = IMAGE_FOLDER
            break
    return "/".join(steps)


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


# -- lines ------------------------------------------------------------------------------------------


def _parse(intake: Intake, path: Path, image: int, dialect: Dialect) -> list[Line] | None:
    """A file's lines; None, and a problem, where one of them cannot be read."""
    place = intake.place(path)
    lines: list[Line] = []
    where = place
    try:
        text = _text_of(intake, path)
        for number, line in enumerate(text.splitlines(), 1):
            where = f"{place}:{number}"
            if words := line.split():
                lines.append(Line(image, where, *dialect.numbers(words, where)))
    except ValueError as error:
        what = f"cannot be read ({error}); the file and its image are left out."
        intake.problems.add("annotation-unreadable", where, what, "Correct the file.", "error")
        return None
    return lines


def _text_of(intake: Intake, path: Path) -> str:
    try:
        return intake.read_text(path)
    except FormatError as error:  # of this file only
        raise ValueError(str(error)) from error


def box_numbers(words: Sequence[str]) -> Numbers:
    """What five words say: class number and box.

    Raises:
        ValueError: they are no such numbers.
    """
    return _numbers(words)


def _numbers(words: Sequence[str]) -> Numbers:
    """Class number, edges, score and polygon of a line.

    Raises:
        ValueError: it is neither a box, a box with confidence, nor a polygon.
    """
    class_id, *values = (float(word) for word in words)
    if not class_id.is_integer() or abs(class_id) > 1e9:
        raise ValueError(f"the class {words[0]} is not a whole number")
    if len(values) in (4, 5):
        x, y, width, height = values[:4]
        edges = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return Numbers(int(class_id), edges, values[4] if len(values) == 5 else None)
    if len(values) >= 10 and not all(map(float.is_integer, values[:4])) and all(map(float.is_integer, values[4:])):
        raise ValueError(
            f"{len(words)} numbers, and those after the box are whole: these are attributes, not the points of a "
            "polygon. Name their profile: leukemia_attri, leukemia_attri_11 or lld"
        )
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"{len(words)} numbers, wanted 5 (box), 6 (with confidence), or a class and 3 or more points")
    points = np.array(values).reshape(-1, 2)  # unlike Python's, its minimum keeps what is not a number
    (x_min, y_min), (x_max, y_max) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return Numbers(int(class_id), (x_min, y_min, x_max, y_max), None, values)


def _cells(
    intake: Intake,
    lines: Sequence[Line],
    pictures: Sequence[Picture | None],
    description: Description,
    dialect: Dialect,
) -> pl.DataFrame:
    """The lines as `ROWS`, in px of their images."""
    _check_classes(intake, lines, description.classes)
    known = [line for line in lines if (picture := pictures[line.image]) is not None]
    sized = [(line, picture.size_wh) for line in known if (picture := pictures[line.image]) and picture.size_wh]
    intake.note_unplaced(len(known) - len(sized), "YOLO gives fractions of it")
    scale = np.array([(*size_wh, *size_wh) for _, size_wh in sized], np.float64).reshape(-1, 4)
    edges = np.array([line.edges for line, _ in sized], np.float64).reshape(-1, 4) * scale
    labels = [description.classes.get(line.class_id) for line, _ in sized]
    more = {} if dialect.values is None else dialect.values(intake, [line for line, _ in sized], labels)
    return rows(
        {
            "image": [line.image for line, _ in sized],
            "where": [line.where for line, _ in sized],
            "label": labels,
            **{name: edges[:, i] for i, name in enumerate(BOX_COLUMNS)},
            "score": [line.score for line, _ in sized],
            "mask": [_mask(intake, line, size_wh) for line, size_wh in sized],
        }
    ).with_columns(pl.Series(name, list(values), pl.String) for name, values in more.items())


def _mask(intake: Intake, line: Line, size_wh: tuple[int, int]) -> bytes | None:
    if line.polygon is None:
        return None
    points = np.array(line.polygon).reshape(-1, 2) * size_wh
    try:
        return outlines.from_polygons([points.ravel().tolist()], size_wh)
    except ValueError as error:
        intake.problems.add(
            "mask-unreadable", line.where, f"{error}; only the box is kept.", "Correct the line.", "error"
        )
        return None


def _check_classes(intake: Intake, lines: Sequence[Line], classes: Mapping[int, str]) -> None:
    """Note class numbers without a name, and numbers that seem to be counted from 1."""
    counts = Counter(line.class_id for line in lines)
    first = {line.class_id: line.where for line in reversed(lines)}
    for number in sorted(set(counts) - set(classes)):
        intake.problems.add(
            "class-id-out-of-range",
            first[number],
            f"there is no class number {number} (numbers: {listing(map(str, sorted(classes)))}); "
            f"{counts[number]} cells are kept without a label.",
            "Correct the list of classes or the files.",
            "error",
        )
    if counts and min(counts) == 1 and max(counts) == len(classes) and 0 in classes:
        what = f"class numbers run from 1 to {len(classes)} and none is 0; they seem to be counted from 1."
        intake.problems.add(
            "class-id-off-by-one", intake.name, what, "Look at some images; subtract 1 from all numbers if so."
        )


# -- writing ----------------------------------------------------------------------------------------


def write(data: Dataset, path: Path, options: WriteOptions, more: More | None = None) -> Problems:
    """Write ``labels/[<split>/]<image>.txt``, ``data.yaml`` and ``classes.txt`` into the new folder `path`.

    With `options.copy_images` the images go to ``images/[<split>/]``. Fractions have six decimals; those of a
    box that would not be read again as it is have more. `more` gives what else stands in the line of each cell,
    in place of its score.

    Raises:
        FormatError: the folder is not empty, an image with cells has no known size, two images would
            share one label file, or a label or split has an impossible name.
    """
    problems = Problems()
    names = file_names(data.images.ids, by_stem=True)
    splits = {i: s for i, s in data.images.frame.select("image_id", "split").iter_rows() if s is not None}
    for image_id, split in splits.items():
        names[image_id] = f"{folder_name(split, 'split')}/{names[image_id]}"
    distinct(names, by_stem=True)
    cells_of = dict(data.cells.filter(pl.col("label").is_not_null()).by_image())
    texts = {
        f"labels/{without_image_suffix(names[row['image_id']])}.txt": _text(cells_of.get(row["image_id"]), row, more)
        for row in data.images.rows()
    } | description_texts(data.labels.names, sorted(set(splits.values())))
    target = output_folder(path)
    for name, text in texts.items():
        with written(target / name) as part:
            part.write_text(text, encoding="utf-8")
    if options.copy_images:
        copy_images(data.images, {i: target / "images" / name for i, name in names.items()}, problems)
    return problems


def _text(cells: Cells | None, image: Mapping[str, Any], more: More | None) -> str:
    """The lines of one label file; None: the image has no cell."""
    if cells is None:
        return ""
    width, height = image["width_px"], image["height_px"]
    if not width or not height:
        raise FormatError(
            f'the size of "{image["image_id"]}" is not known, and YOLO gives fractions of it. Import it with its image.'
        )
    scale = np.array([width, height, width, height], np.float64)
    fractions = box.to_centre_size(cells.boxes().astype(np.float64)) / scale
    decimals = _decimals(fractions, cells.boxes(), scale)
    scores = [[] if score is None else [f"{score:.6f}"] for score in cells.frame["score"].to_list()]
    behind = scores if more is None else more(cells)
    lines = []
    for label, numbers, places, rest in zip(cells.label_names(), fractions.tolist(), decimals, behind, strict=True):
        words = [f"{number:.{places}f}" for number in numbers] + rest
        lines.append(f"{cells.labels.index(str(label))} {' '.join(words)}\n")
    return "".join(lines)


def _decimals(fractions: NDArray[np.float64], edges: box.Boxes, scale: NDArray[np.float64]) -> list[int]:
    """How many decimals the fractions (N, 4) of each box need, so that reading gives its edges (N, 4) in px again."""
    wanted = np.full(len(fractions), _DECIMALS[-1])
    for places in reversed(_DECIMALS):
        again = (box.from_centre_size(np.round(fractions, places)) * scale).astype(np.float32)
        wanted[np.asarray((again == edges).all(axis=1))] = places
    return wanted.tolist()
