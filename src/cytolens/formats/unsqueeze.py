"""Images that were squeezed into another shape, stretched back: copies of the images, with their cells.

Data sets ship fields of 16:9 as squares, in which red cells are ellipses. The copies are PNG files, so nothing is lost
but what the squeezing lost; all that reads the dataset afterwards (training, prediction, overlays) sees cells
in proportion.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from cytolens.cells import Cells, join
from cytolens.dataset import Dataset
from cytolens.formats.export import distinct, file_names
from cytolens.formats.sources import without_image_suffix
from cytolens.images import load_image
from cytolens.problems import FormatError, SettingError, listing, written
from cytolens.views import View

_MOST = 10.0  # the longest proportion that is believed


def parsed_proportion(text: str) -> tuple[float, float]:
    """Width and height of "W:H", such as "16:9" or "800:448".

    Raises:
        SettingError: it is not two positive numbers, or their ratio is above 10 or below 1/10.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*:\s*(\d+(?:\.\d+)?)\s*", text, re.ASCII)
    width, height = (0.0, 0.0) if match is None else (float(match.group(1)), float(match.group(2)))
    if not (width > 0 and height > 0 and 1 / _MOST <= width / height <= _MOST):
        raise SettingError(f'unsqueeze takes W:H, the proportion that the images had, such as 16:9; got "{text}"')
    return width, height


def unsqueezed(dataset: Dataset, proportion: tuple[float, float], folder: Path) -> Dataset:
    """The dataset with every image stretched along x to a proportion, its cells with it.

    Heights stay. A width becomes that of the proportion, rounded to whole pixels; boxes and masks are scaled by what
    the image really is, so they fit it exactly. A square is stretched by W / H.

    Args:
        dataset: what to stretch; it and its files stay as they are.
        proportion: width and height, in any unit.
        folder: where the copies go, as PNG.

    Raises:
        FormatError: an image's file is not there, or two copies would have the same name.
        ImageError: a file cannot be read.
    """
    if missing := dataset.images.frame.filter(pl.col("path").is_null())["image_id"].to_list():
        raise FormatError(
            f"{len(missing)} images have no file that could be unsqueezed: {listing(missing, 3)}. "
            "Name their folder with --images DIR, or leave out unsqueeze."
        )
    names = {i: f"{without_image_suffix(name)}.png" for i, name in file_names(dataset.images.ids).items()}
    distinct(names)
    cells_of = dict(dataset.cells.by_image())
    moved: dict[str, Cells] = {}
    rows = []
    for row in dataset.images.rows():
        image_id = row["image_id"]
        pixels = load_image(row["path"]).pixels
        height, width = pixels.shape[:2]
        view = stretch((width, height), proportion)
        path = folder / names[image_id]
        digest = _save(view.pixels(pixels), path)
        rows.append(
            {**row, "path": str(path.absolute()), "width_px": view.wh[0], "height_px": height, "sha256": digest}
        )
        if image_id in cells_of:
            moved[image_id] = view.forward(cells_of[image_id])
    cells = join(moved.values(), dataset.labels)
    # The rows keep their order, which joining by image may have changed.
    order = {cell_id: at for at, cell_id in enumerate(dataset.cells.frame["cell_id"])}
    place = np.argsort([order[cell_id] for cell_id in cells.frame["cell_id"]]) if len(cells) else []
    step = {"step": "unsqueeze", "proportion": list(proportion), "images": len(rows)}
    return replace(
        dataset,
        images=type(dataset.images).of(rows),
        cells=Cells(cells.frame[place], dataset.labels) if len(cells) else cells,
        provenance=(*dataset.provenance, step),
    )


def stretch(source_wh: tuple[int, int], proportion: tuple[float, float]) -> View:
    """The view of an image stretched along x to a proportion, to whole pixels."""
    width = max(1, round(source_wh[1] * proportion[0] / proportion[1]))
    return View(source_wh, (width, source_wh[1]), np.array([[width / source_wh[0], 0, 0], [0, 1, 0.0]]))


def _save(pixels: np.ndarray, path: Path) -> str:
    """Write a PNG; its sha256."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    with written(path) as part:
        part.write_bytes(stream.getvalue())
    return hashlib.sha256(stream.getvalue()).hexdigest()
