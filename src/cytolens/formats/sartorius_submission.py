"""The answer to Sartorius' cell instance segmentation: a CSV file ``id,predicted`` with one row per counted cell.

Codes number pixels row by row from 1. An image without cells has one row with an empty code, and no pixel may belong
to two cells of an image.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cytolens import masks
from cytolens.cells import Cells
from cytolens.formats import run_lengths
from cytolens.formats.sources import without_image_suffix
from cytolens.images import Images
from cytolens.problems import FormatError, Problems, written

HEADER = ("id", "predicted")


def write_submission(found: Cells, images: Images, path: Path) -> Problems:
    """Write the answer for all images, in their order; the cells of an image stay in the order of the table.

    Args:
        found: the findings; those that do not count are left out.
        images: all images that are asked for, with their sizes.
        path: of the file to write.

    Returns:
        Counted cells without a pixel, which are left out.

    Raises:
        FormatError: cells of an image overlap, a mask is not of its image's size or that size is not known, or two
            images have one file name.
    """
    problems = Problems()
    ids = {image_id: without_image_suffix(image_id.rsplit("/", 1)[-1]) for image_id in images.ids}
    seen: dict[str, str] = {}
    for image_id, name in ids.items():
        if (other := seen.setdefault(name, image_id)) != image_id:
            raise FormatError(f'the images "{other}" and "{image_id}" would both have the id "{name}". Rename one.')
    cells_of = dict(found.filter(pl.col("counted")).by_image())
    if strangers := [image_id for image_id in cells_of if image_id not in ids]:
        raise FormatError(f'there are cells of "{strangers[0]}", which is not among the images. Predict them anew.')
    lines: list[tuple[str, str]] = []
    for row in images.rows():
        cells = cells_of.get(row["image_id"])
        codes = [] if cells is None else _codes(cells, row, problems)
        lines += [(ids[row["image_id"]], code) for code in codes or [""]]
    with written(path) as part, part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(lines)
    return problems


def _codes(cells: Cells, row: dict[str, Any], problems: Problems) -> list[str]:
    """The codes of one image's cells."""
    drawn = cells.filter(np.array([bool(code and masks.area(code)) for code in cells.masks()], bool))
    if missing := len(cells) - len(drawn):
        what = f"{missing} of {len(cells)} counted cells have no outline; they are left out."
        problems.add("cells-without-outline", row["image_id"], what, "Take a model that outlines cells.")
    if not len(drawn):
        return []
    size_wh = (row["width_px"], row["height_px"])
    try:
        if not all(size_wh):
            raise ValueError("its size is not known, and run-length codes count its pixels")
        _refuse_overlaps(drawn, row["image_id"], size_wh)
        return [run_lengths.text_of_code(code or b"", size_wh, "row") for code in drawn.masks()]
    except ValueError as error:
        raise FormatError(f'a mask of "{row["image_id"]}" cannot be written: {error}. Predict it anew.') from error


def _refuse_overlaps(cells: Cells, image_id: str, size_wh: tuple[int, int]) -> None:
    """Raise FormatError for the first two cells that share pixels."""
    owner = np.full(size_wh[0] * size_wh[1], -1, np.int32)
    names = cells.frame["cell_id"].to_list()
    for number, code in enumerate(cells.masks()):
        places = run_lengths.positions_of_code(code or b"", size_wh)
        taken = owner[places]
        if (taken >= 0).any():
            first = int(taken[taken >= 0][0])
            shared = int((taken == first).sum())
            raise FormatError(
                f'the cells {names[first]} and {names[number]} of "{image_id}" overlap in {shared} px, and the '
                "submission allows no overlap. Let the model's cleaning give each pixel to one cell (the better one)."
            )
        owner[places] = number
