"""The files of the CytologIA challenge: what it asks for (``test.csv``), and the answer that is handed in.

``test.csv`` has one row ``trustii_id,NAME`` per *expected* box, so it gives away how many cells an image
has; the answer has a box and a class in each of these rows: ``trustii_id,NAME,x1,y1,x2,y2,class``.
Corners are whole pixels from 0 to width − 1 and height − 1.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens.cells import Cells
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.problems import FormatError, Problems, listing, written

ASKED = {"trustii_id": pl.String, "NAME": pl.String}
SUBMISSION = ASKED | {"x1": pl.Int64, "y1": pl.Int64, "x2": pl.Int64, "y2": pl.Int64, "class": pl.String}


@dataclass(frozen=True, slots=True)
class _Answer:
    """One image's boxes, the surest first, shape (n, 4), and their classes."""

    boxes: NDArray[np.float64]
    classes: list[str]


def read_test(path: Path) -> pl.DataFrame:
    """The rows that are asked for, in order: columns of `ASKED`.

    Raises:
        FormatError: the file is missing, is no such table, or an id repeats.
    """
    return _read(path, ASKED)


def read_submission(path: Path) -> pl.DataFrame:
    """The rows that were handed in, in order: columns of `SUBMISSION`.

    Raises:
        FormatError: the file is missing, is no such table, or an id repeats.
    """
    return _read(path, SUBMISSION)


def expected_counts(path: Path) -> dict[str, int]:
    """Image name → how many boxes ``test.csv`` expects; errors as of `read_test`."""
    return dict(Counter(read_test(path)["NAME"].to_list()))


def _read(path: Path, columns: Mapping[str, pl.DataType | type[pl.DataType]]) -> pl.DataFrame:
    try:
        frame = pl.read_csv(path, infer_schema=False)
        if missing := [name for name in columns if name not in frame.columns]:
            raise FormatError(f"{path}: no column {listing(missing)}; columns there: {listing(frame.columns, 20)}")
        frame = frame.select([pl.col(name).cast(dtype) for name, dtype in columns.items()])
    except FileNotFoundError:
        raise FormatError(f"{path}: there is no such file") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise FormatError(f"{path}: is not a table of the challenge ({str(error).splitlines()[0]})") from error
    if nulls := [name for name in columns if frame[name].has_nulls()]:
        raise FormatError(f"{path}: empty fields in {listing(nulls)}; every row needs them")
    if repeated := frame.filter(pl.col("trustii_id").is_duplicated())["trustii_id"].unique().sort().to_list():
        raise FormatError(f"{path}: trustii_id is given twice: {listing(repeated, 5)}")
    return frame


def challenge_names(found: Cells) -> list[str | None]:
    """The challenge's abbreviation of each cell; None where it has no word for it.

    Where the cell's own label has none (it is unnamed, or too wide), the likeliest of its kinds that has one.
    """
    names = LabelSet.shipped("cytologia").names
    mapping = found.labels.mapping_to(LabelSet.shipped("cytologia"))
    transfer = np.array([[mapping[leaf] == name for name in names] for leaf in found.labels.leaves], np.float64)
    mass = np.nan_to_num(found.probabilities()).astype(np.float64) @ transfer.reshape(-1, len(names))
    likeliest = [names[i] if row[i] > 0 else None for row, i in zip(mass, mass.argmax(axis=1), strict=True)]
    own = [None if label is None else mapping[label] for label in found.label_names()]
    return [label or other for label, other in zip(own, likeliest, strict=True)]


def write_submission(
    found: Cells, images: Images, test: Path, path: Path, *, use_expected_counts: bool = False
) -> Problems:
    """Write the answer to ``test.csv``, row by row in its order.

    Each image's cells are handed in from the surest on, as many as there are rows. Where there are fewer, the
    rows left are filled by repeating the surest, which the challenge's score drops; an image without any
    gets its whole area. A cell that the challenge has no class for is left out.

    Args:
        found: the findings.
        images: their images; the size is needed. They are found by image_id, or by file name.
        test: the challenge's ``test.csv``.
        path: of the file to write.
        use_expected_counts: an oracle: of all that was found, counted or not, take as many as are expected,
            and fill with the whole image. It uses what the challenge gave away, and no laboratory knows.

    Returns:
        What could not be handed in, and what had to be filled.

    Raises:
        FormatError: the table is not the challenge's, an image is not there or twice, or its size is not known.
    """
    asked = read_test(test)
    rows = _image_rows(images, asked["NAME"].unique(maintain_order=True).to_list(), test)
    answers, problems = _answers(found, use_expected_counts)
    commonest = Counter(name for one in answers.values() for name in one.classes).most_common(1)
    fallback = commonest[0][0] if commonest else LabelSet.shipped("cytologia").names[0]
    counts = Counter(asked["NAME"].to_list())
    filled, spare = 0, 0
    given: dict[str, Iterator[tuple[list[int], str]]] = {}
    for name, count in counts.items():
        image_id, size_wh = rows[name]
        own = answers.get(image_id, _Answer(np.zeros((0, 4)), []))
        spare += max(0, len(own.classes) - count)
        filled += max(0, count - len(own.classes))
        given[name] = iter(_fitted(own, count, size_wh, fallback, use_expected_counts))
    with written(path) as part, part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(SUBMISSION)
        for trustii_id, name in asked.iter_rows():
            corners, label = next(given[name])
            writer.writerow([trustii_id, name, *corners, label])
    if filled:
        how = "the whole image" if use_expected_counts else "the surest cell of the image, or the whole image"
        problems.add("rows-filled", Path(path).name, f"{filled} of {len(asked)} rows have no cell: filled with {how}.")
    if spare:
        problems.add("cells-too-many", Path(path).name, f"{spare} cells are more than the rows asked for: left out.")
    return problems


def _image_rows(images: Images, names: list[str], test: Path) -> dict[str, tuple[str, tuple[int, int]]]:
    """Name in the table → image id and size."""
    sizes = {i: (w, h) for i, w, h in images.frame.select("image_id", "width_px", "height_px").iter_rows()}
    by_name: dict[str, list[str]] = {}
    for image_id in sizes:
        by_name.setdefault(image_id.rsplit("/", 1)[-1], []).append(image_id)
    candidates = {name: [name] if name in sizes else by_name.get(name, []) for name in names}
    if lost := [name for name, ids in candidates.items() if len(ids) != 1]:
        raise FormatError(f"{len(lost)} of {len(names)} images of {test} are not there, or twice: {listing(lost, 5)}")
    if unknown := [name for name, ids in candidates.items() if None in sizes[ids[0]]]:
        raise FormatError(f"the size of {len(unknown)} images is not known: {listing(unknown, 5)}; predict them anew")
    return {name: (ids[0], sizes[ids[0]]) for name, ids in candidates.items()}


def _answers(found: Cells, everything: bool) -> tuple[dict[str, _Answer], Problems]:
    """Image id → its cells that the challenge has a class for, the surest first."""
    problems = Problems()
    found = found if everything else found.filter(pl.col("counted"))
    names = challenge_names(found)
    if nameless := sum(name is None for name in names):
        what = f"{nameless} cells are of no kind that the challenge knows: left out."
        problems.add("no-such-class", "labels", what)
    boxes, scores = found.boxes().astype(np.float64), found.scores()
    order = [int(row) for row in np.argsort(-scores, kind="stable") if names[row] is not None]
    rows: dict[str, list[int]] = {}
    ids = found.frame["image_id"].to_list()
    for row in order:
        rows.setdefault(ids[row], []).append(row)
    return {i: _Answer(boxes[own], [str(names[row]) for row in own]) for i, own in rows.items()}, problems


def _fitted(
    own: _Answer, count: int, size_wh: tuple[int, int], fallback: str, whole: bool
) -> list[tuple[list[int], str]]:
    """As many boxes as are asked for, in whole pixels inside the image."""
    width, height = size_wh
    most = np.array([width - 1, height - 1, width - 1, height - 1])
    # Halves go up, on every side alike.
    corners = np.clip(np.floor(own.boxes[:count] + 0.5), 0, most).astype(int).tolist()
    rows = list(zip(corners, own.classes, strict=False))
    area = ([0, 0, width - 1, height - 1], own.classes[0] if own.classes else fallback)
    filler = rows[0] if rows and not whole else area
    return rows + [filler] * (count - len(rows))
