"""Morphometry: size, form and colour of every outlined cell, one row each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens import masks
from cytolens.cells import Cells
from cytolens.formats.regions import open_regions
from cytolens.images import Images, load_image
from cytolens.labels import LabelSet, folded
from cytolens.problems import DatasetError, ImageError, Problems, written

SCHEMA: dict[str, Any] = {
    "cell_id": pl.String,
    "image_id": pl.String,
    "label": pl.String,
    "score": pl.Float64,
    "centroid_x_px": pl.Float64,
    "centroid_y_px": pl.Float64,
    "area_px": pl.Int64,
    "area_um2": pl.Float64,
    "perimeter_px": pl.Float64,
    "perimeter_um": pl.Float64,
    "equivalent_diameter_px": pl.Float64,
    "equivalent_diameter_um": pl.Float64,
    "circularity": pl.Float64,
    "eccentricity": pl.Float64,
    "solidity": pl.Float64,
    "mean_red": pl.Float64,
    "mean_green": pl.Float64,
    "mean_blue": pl.Float64,
    "inside": pl.String,  # of a nucleus: the cell_id of its cell
    "nucleus_area_px": pl.Int64,
    "nucleus_to_cytoplasm": pl.Float64,
}
_NUCLEUS = frozenset({"nucleus", "nuclei", "cell nucleus"})
_WITHOUT_NUCLEUS = frozenset({"erythrocyte", "platelet"})  # roles of labels
_MOST = 0.5  # a nucleus belongs to a cell that holds more of it
ReadPart = Callable[[int, int, int, int], NDArray[np.uint8]]  # x, y, width, height → pixels


@dataclass(frozen=True, eq=False)
class Outline:
    """The part (h, w) of a mask inside its bounds, and its left and top in px of the image."""

    part: masks.Mask
    x: int
    y: int

    @property
    def area(self) -> int:
        """Number of its pixels."""
        return int(self.part.sum())

    def within(self, other: Outline) -> masks.Mask:
        """The pixels that it shares with another outline, in the frame of the other's part."""
        shared = np.zeros_like(other.part)
        x0, y0 = max(self.x, other.x), max(self.y, other.y)
        x1 = min(self.x + self.part.shape[1], other.x + other.part.shape[1])
        y1 = min(self.y + self.part.shape[0], other.y + other.part.shape[0])
        if x0 < x1 and y0 < y1:
            place = np.s_[y0 - other.y : y1 - other.y, x0 - other.x : x1 - other.x]
            shared[place] = other.part[place] & self.part[y0 - self.y : y1 - self.y, x0 - self.x : x1 - self.x]
        return shared


def write_morphometry(cells: Cells, images: Images, path: Path) -> Problems:
    """Write the table of `morphometry` as CSV; errors and problems as there."""
    table, problems = morphometry(cells, images)
    with written(path) as part:
        table.with_columns(pl.col(pl.Float64).round(4)).write_csv(part)
    return problems


def morphometry(cells: Cells, images: Images) -> tuple[pl.DataFrame, Problems]:
    """Size, form and colour of every counted cell that has an outline.

    Lengths are in px of the image, and in µm where its scale is known. The perimeter is `masks.perimeter`, circularity
    is 4π · area / perimeter², at most 1; the equivalent diameter is that of the disc of the same area. Centroids are in
    the frame in which pixel (0, 0) has its centre at (0.5, 0.5). Colours are means over the outline, 0 … 255.

    A nucleus, a row labelled "nucleus", belongs to the outlined cell that holds the most of it, if that is more than
    half of its pixels. The nucleus-to-cytoplasm ratio of a cell is the area of its nuclei over that of the rest of it.

    Returns:
        The table with the columns of `SCHEMA`, in the order of the cells; and what stands in the way: images that
        cannot be read (their cells have no colour) and cells without an outline (they are left out).

    Raises:
        DatasetError: the size of an image with outlines is not known, or a mask is not of that size.
    """
    problems = Problems()
    shown = cells.filter(pl.col("counted"))
    drawn = shown.filter(np.array([bool(code and masks.area(code)) for code in shown.masks()], bool))
    if missing := len(shown) - len(drawn):
        what = f"{missing} of {len(shown)} counted cells have no outline; they are left out."
        problems.add("cells-without-outline", "cells", what, "Take a model that outlines cells.")
    rows: list[dict[str, Any]] = []
    for image_id, own in drawn.by_image():
        rows += _rows(own, images.row(image_id), problems)
    return pl.DataFrame(rows, schema=SCHEMA, orient="row"), problems


def _rows(cells: Cells, row: Mapping[str, Any], problems: Problems) -> list[dict[str, Any]]:
    """The rows of one image's outlined cells."""
    outlines = _outlines(cells, row)
    colours = _colours(outlines, row, problems)
    nuclei = _nuclei(cells, outlines)
    inner: dict[int, list[masks.Mask]] = {}
    for nucleus, host in nuclei.items():
        inner.setdefault(host, []).append(outlines[nucleus].within(outlines[host]))
    cell_ids, names, scores = (cells.frame[name].to_list() for name in ("cell_id", "label", "score"))
    told = []
    for number, (outline, colour) in enumerate(zip(outlines, colours, strict=True)):
        own = inner.get(number)
        told.append(
            {
                "cell_id": cell_ids[number],
                "image_id": row["image_id"],
                "label": names[number],
                "score": scores[number],
                **_form(outline, row["um_per_px"]),
                **dict(zip(("mean_red", "mean_green", "mean_blue"), colour, strict=True)),
                "inside": cell_ids[nuclei[number]] if number in nuclei else None,
                **(_nucleus(outline.area, np.logical_or.reduce(own)) if own else {}),
            }
        )
    return told


def _outlines(cells: Cells, row: Mapping[str, Any]) -> list[Outline]:
    width, height = row["width_px"], row["height_px"]
    if not width or not height:
        raise DatasetError(f'the size of "{row["image_id"]}" is not known, and its outlines need it. Predict it anew.')
    try:
        return [Outline(*masks.crop(code or b"", (height, width))) for code in cells.masks()]
    except ValueError as error:
        raise DatasetError(f'a mask of "{row["image_id"]}" cannot be measured: {error}. Predict it anew.') from error


def _form(outline: Outline, um_per_px: float | None) -> dict[str, Any]:
    """Size and form of one outline."""
    rows, columns = np.nonzero(outline.part)
    area, around = outline.area, masks.perimeter(outline.part)
    diameter = float(np.sqrt(4 * area / np.pi))
    scale = um_per_px or None
    return {
        "centroid_x_px": outline.x + float(columns.mean()) + 0.5,
        "centroid_y_px": outline.y + float(rows.mean()) + 0.5,
        "area_px": area,
        "area_um2": scale and area * scale**2,
        "perimeter_px": around,
        "perimeter_um": scale and around * scale,
        "equivalent_diameter_px": diameter,
        "equivalent_diameter_um": scale and diameter * scale,
        # The outline of a few pixels is estimated so short that the ratio would exceed that of a disc.
        "circularity": min(1.0, 4 * np.pi * area / around**2),
        "eccentricity": masks.eccentricity(outline.part),
        "solidity": masks.solidity(outline.part),
    }


# -- nuclei -----------------------------------------------------------------------------------------


def _nucleus(area: int, nuclei: masks.Mask) -> dict[str, Any]:
    """The nuclei of one cell against the rest of it; no ratio where there is no rest."""
    inner = int(nuclei.sum())
    return {"nucleus_area_px": inner, "nucleus_to_cytoplasm": inner / (area - inner) if area > inner else None}


def _nuclei(cells: Cells, outlines: Sequence[Outline]) -> dict[int, int]:
    """Row of each nucleus that lies in a cell → row of that cell."""
    kinds = [_kind(name, cells.labels) for name in cells.label_names()]
    inner = [n for n, kind in enumerate(kinds) if kind == "nucleus"]
    hosts = np.array([n for n, kind in enumerate(kinds) if kind == "cell"], np.intp)
    if not inner or not len(hosts):
        return {}
    bounds = np.array([[o.x, o.y, o.x + o.part.shape[1], o.y + o.part.shape[0]] for o in outlines], np.float64)
    meeting = box.intersections(bounds[inner], bounds[hosts]) > 0
    found = {}
    for n, near in zip(inner, meeting, strict=True):
        shared = {int(host): int(outlines[n].within(outlines[host]).sum()) for host in hosts[near]}
        best = max(shared, key=lambda host: shared[host], default=None)
        if best is not None and shared[best] > _MOST * outlines[n].area:
            found[n] = best
    return found


def _kind(name: str | None, labels: LabelSet) -> str:
    if name is not None and folded(name) in _NUCLEUS:
        return "nucleus"
    return "other" if name is not None and labels.role(name) in _WITHOUT_NUCLEUS else "cell"


# -- colours ----------------------------------------------------------------------------------------


def _colours(outlines: Sequence[Outline], row: Mapping[str, Any], problems: Problems) -> list[Sequence[float | None]]:
    """Mean red, green and blue of each outline; None where the image cannot be read."""
    if row["path"] is None:
        what = "it is not known where the image file is; its cells have no colour."
        problems.add("image-missing", row["image_id"], what, "Predict it anew.")
        return [(None, None, None)] * len(outlines)
    try:
        return list(_means(outlines, Path(row["path"])))
    except ImageError as error:
        what = f"{error.problem.what} Its cells have no colour."
        problems.add(error.problem.kind, row["image_id"], what, error.problem.fix)
        return [(None, None, None)] * len(outlines)


def _means(outlines: Sequence[Outline], path: Path) -> Iterator[Sequence[float | None]]:
    if (regions := open_regions(path)) is not None:
        with regions:
            yield from (_mean(outline, regions.read) for outline in outlines)
        return
    pixels = load_image(path, max_pixels=2**40).pixels  # it was looked at before
    yield from (_mean(outline, lambda x, y, w, h: pixels[y : y + h, x : x + w]) for outline in outlines)


def _mean(outline: Outline, read: ReadPart) -> Sequence[float | None]:
    height, width = outline.part.shape
    part = read(outline.x, outline.y, width, height)
    if part.shape[:2] != outline.part.shape:  # the file is another than the one that was looked at
        return (None, None, None)
    return part[outline.part].mean(axis=0, dtype=np.float64).tolist()
