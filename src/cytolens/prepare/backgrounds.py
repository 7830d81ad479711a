"""Fields without their cell: what a detector learns "nothing is here" from.

The one cell of an image is covered with the colour of the empty background. Source of the method: the
winning entry of the CytologIA challenge (MPWARE-TEAM/Cytologia, MIT), whose margin left the image at a
border; here it is clipped. A background keeps the fold, the split and the group of the image it is made
from, so none is learnt from where its source is tested.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolens import boxes as box
from cytolens import match
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.formats.export import file_names, output_folder
from cytolens.images import Images, Pixels, load_image
from cytolens.prepare import stain
from cytolens.problems import DatasetError, ImageError, Problem, Problems, written

# Why there is no background of an image.
Reason = Literal["no-cell", "several-cells", "other-cell", "no-area", "no-background", "no-contour"]
_WHY: dict[Reason, str] = {
    "no-cell": "there is no cell to cover.",
    "several-cells": "there is more than one cell, and the others would be taught as background.",
    "other-cell": "what was found is not the annotated cell, which would be taught as background.",
    "no-area": "the box of the cell has no area inside the image.",
    "no-background": "no pixel outside the cells is bright enough to give the colour.",
    "no-contour": "no outline reaches across the box, so the cell, or a part of it, would remain.",
}

_DARKER = 0.93  # of the background: below it a channel shows a cell, above it noise, uneven light, out of focus
Place = NDArray[np.floating] | Reason


class BackgroundSettings(BaseModel):
    """How a cell is found in its box and covered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    margin_px: int = Field(default=16, ge=0, description="the box is grown by it on each side, inside the image")
    mask: Literal["background", "otsu"] = Field(
        default="background",
        description="what is cell: all that is darker than the empty background; or the dark side of Otsu's threshold, "
        "as in the source, which in many fields is only the nuclei",
    )
    method: Literal["fill", "inpaint"] = Field(
        default="fill",
        description="fill: one colour with noise; inpaint: continued from what surrounds the cell, also with noise, "
        "so that red cells that touch it do not end in straight lines",
    )
    reach: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="share of the box that the outline's bounds must cover, else it is not the cell",
    )
    bright: int = Field(
        default=150, ge=0, lt=255, description="background is brighter than this in every channel, up to 255"
    )
    halo_px: int = Field(default=24, ge=1, description="this near (half of it) to a cell nothing counts as background")
    rim_px: int = Field(default=8, ge=1, description="what is covered reaches beyond the cell's outline by half of it")
    noise: int = Field(default=8, ge=0, le=255, description="largest change of a value of the fill")
    noise_share: float = Field(default=0.1, ge=0, le=1, description="share of the covered pixels that change")


def background(
    pixels: Pixels, cell_box: ArrayLike, settings: BackgroundSettings | None = None, rng: Generator | None = None
) -> Pixels | Reason:
    """An image without the cell in a box, or the reason why there is none.

    What is cell is told by `settings.mask`. Of that the largest outline inside the grown box is filled, widened
    and covered.

    Args:
        pixels: uint8 RGB, shape (H, W, 3).
        cell_box: edges in px, shape (4,).
        settings: how; None: the defaults, which are those of the source but for the mask.
        rng: chance of the noise; None: always the same.

    Returns:
        uint8 RGB of the same shape; or "no-area", "no-background", "no-contour".
    """
    settings = settings or BackgroundSettings()
    window = _window(cell_box, (pixels.shape[1], pixels.shape[0]), settings.margin_px)
    if window is None:
        return "no-area"
    dark = _otsu(pixels) if settings.mask == "otsu" else _unlike_background(pixels)
    colour = _background_colour(pixels, dark, settings)
    if colour is None:
        return "no-background"
    cell = _outline(dark, window)
    if cell is None or _reached(cell, cell_box) < settings.reach:
        return "no-contour"
    cover = _widened(cell, settings.rim_px) > 0
    return _painted(pixels, cover, colour, settings, rng or np.random.default_rng(0))


def backgrounds(
    dataset: Dataset,
    folder: str | os.PathLike[str],
    settings: BackgroundSettings | None = None,
    seed: int = 0,
    found: Cells | None = None,
) -> tuple[Dataset, Problems]:
    """A dataset folder of the backgrounds of all images with exactly one cell.

    Each keeps fold, split, group, scale, stain, scanner and magnification of its source. Where images have
    no group, a split that is made later can part a background from its source: split first.

    Args:
        dataset: the annotations; an ignored one is a cell, too.
        folder: gets ``images/`` and the dataset's files; new or empty.
        settings: how; None: the defaults.
        seed: of the noise. An image gives the same background whatever else is in the dataset.
        found: what a detector found in the same images; its counted cells then say what is one cell, and
            where. Kinds that the dataset's labels have no word for, such as red cells, do not count.

    Returns:
        a dataset "<name>-backgrounds" without cells, and why the other images have no background, one `Problem`
        each. A background is complete for what its source is, as a rule for all labels; where `found` stands in
        for missing annotations, for the labels that the detector has a word for.

    Raises:
        FormatError: the folder is not empty, or an image id is no path below a folder.
        DatasetError: `found` is about other images.
    """
    settings = settings or BackgroundSettings()
    places, names = _places(dataset, found), file_names(dataset.images.ids)
    told = None if found is None else _told(found, dataset)
    target = output_folder(Path(folder))
    problems, rows = Problems(), []
    for row in dataset.images.rows():
        made = _made(row, places[row["image_id"]], settings, seed)
        if isinstance(made, Problem):
            problems.extend([made])
        else:
            known = row | ({} if found is None or row["complete_for"] is None else {"complete_for": told})
            rows.append(_stored(known, made, target / "images" / f"{names[str(row['image_id'])]}.png"))
    step = {
        "step": "backgrounds",
        "of": {"name": dataset.name, "fingerprint": dataset.fingerprint},
        "found_by": [] if found is None else sorted(found.frame["source"].unique().to_list()),
        "settings": settings.model_dump(mode="json"),
        "seed": seed,
        "made": len(rows),
        "skipped": dict(sorted(problems.counts().items())),
    }
    made_of = {"name": f"{dataset.name}-backgrounds", "provenance": (*dataset.provenance, step)}
    result = replace(dataset, images=Images.of(rows), cells=Cells.empty(dataset.labels), **made_of)
    result.write(target)
    return result, problems


# -- one image ------------------------------------------------------------------------------------


def _window(cell_box: ArrayLike, size_wh: tuple[int, int], margin_px: int) -> tuple[int, int, int, int] | None:
    """The grown box as whole pixels inside the image, or None where it has no area there."""
    if not box.valid(cell_box, *size_wh)[0]:
        return None
    grown = box.clip(box.grow(box.as_boxes(cell_box), margin_px), *size_wh)[0]
    x_min, y_min = np.floor(grown[:2]).astype(int).tolist()
    x_max, y_max = np.ceil(grown[2:]).astype(int).tolist()
    return x_min, y_min, x_max, y_max


def _otsu(pixels: Pixels) -> NDArray[np.uint8]:
    """1 on the dark side of Otsu's threshold of the grey image, shape (H, W)."""
    import cv2

    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)[1], np.uint8)


def _unlike_background(pixels: Pixels) -> NDArray[np.uint8]:
    """1 where some channel is clearly darker than the empty background, shape (H, W); specks are left out."""
    import cv2

    darker = np.asarray((pixels < _DARKER * stain.measure(pixels).background).any(axis=2), np.uint8)
    return np.asarray(cv2.morphologyEx(darker, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)), np.uint8)


def _background_colour(
    pixels: Pixels, dark: NDArray[np.uint8], settings: BackgroundSettings
) -> NDArray[np.float64] | None:
    """Mean of the bright pixels away from all cells, shape (3,), or None where there is none."""
    usable = (_widened(dark, settings.halo_px) == 0) & (pixels > settings.bright).all(axis=2)
    return pixels[usable].mean(axis=0) if usable.any() else None


def _outline(dark: NDArray[np.uint8], window: tuple[int, int, int, int]) -> NDArray[np.uint8] | None:
    """The largest outline in the window, filled, shape (H, W), or None where there is none."""
    import cv2

    x_min, y_min, x_max, y_max = window
    inside = np.ascontiguousarray(dark[y_min:y_max, x_min:x_max])
    outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not outlines:
        return None
    cell = np.zeros_like(dark)
    cv2.drawContours(cell, [max(outlines, key=cv2.contourArea)], 0, 1, cv2.FILLED, offset=(x_min, y_min))
    return cell


def _reached(cell: NDArray[np.uint8], cell_box: ArrayLike) -> float:
    """The share of the box, as far as it lies in the image, that the bounds of a mask (H, W) cover."""
    height, width = cell.shape
    rows, columns = np.flatnonzero(cell.any(axis=1)), np.flatnonzero(cell.any(axis=0))
    bounds = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    return float(box.overlap_share(box.clip(cell_box, width, height), bounds)[0, 0])


def _widened(mask: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """A mask dilated by an ellipse of this side."""
    import cv2

    return np.asarray(cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side_px, side_px))), np.uint8)


def _painted(
    pixels: Pixels, cover: NDArray[np.bool_], colour: NDArray[np.float64], settings: BackgroundSettings, rng: Generator
) -> Pixels:
    """The image with what is covered painted, and noise on it."""
    import cv2

    if settings.method == "inpaint":
        result = np.asarray(cv2.inpaint(pixels, cover.astype(np.uint8), 5, cv2.INPAINT_TELEA), np.uint8)
    else:
        result = pixels.copy()
        result[cover] = np.rint(colour)
    noise = rng.integers(-settings.noise, settings.noise, (int(cover.sum()), 3), endpoint=True)
    noise[rng.random(len(noise)) >= settings.noise_share] = 0
    result[cover] = np.clip(result[cover] + noise, 0, 255)
    return result


# -- a dataset ------------------------------------------------------------------------------------


def _places(dataset: Dataset, found: Cells | None) -> dict[str, Place]:
    """For each image the box of its one cell, or why it has none."""
    annotated = dict(dataset.cells.by_image())
    if found is None:
        return {image_id: _only(annotated.get(image_id)) for image_id in dataset.images.ids}
    if not set(found.frame["image_id"]) & set(dataset.images.ids):
        raise DatasetError("the findings are about other images than the dataset; predict the dataset itself")
    seen = dict(_of_these_kinds(found, dataset).by_image())
    places: dict[str, Place] = {}
    for image_id, width, height in dataset.images.frame.select("image_id", "width_px", "height_px").iter_rows():
        place = _only(seen.get(image_id))
        truth = annotated.get(image_id)
        if isinstance(place, np.ndarray) and truth is not None:
            place = _agreed(truth, seen[image_id], (width, height))
        places[image_id] = place
    return places


def _only(cells: Cells | None) -> Place:
    if cells is None:
        return "no-cell"
    return cells.boxes()[0] if len(cells) == 1 else "several-cells"


def _agreed(truth: Cells, seen: Cells, size_wh: tuple[int | None, int | None]) -> Place:
    """The box of the one finding, if it is the one annotated cell."""
    if len(truth) > 1:
        return "several-cells"
    none_ignored = np.zeros(1, bool)
    table = box.iou(seen.boxes(), truth.boxes())
    pairs, _ = match.partners(truth.boxes(), seen.boxes(), seen.scores(), table, none_ignored, size_wh)
    return seen.boxes()[0] if len(pairs) else "other-cell"


def _of_these_kinds(found: Cells, dataset: Dataset) -> Cells:
    """The counted findings without a name, or of a kind that is wider or narrower than a label of the dataset.

    Where the detector knows none of these kinds, it tells none apart, and all of its findings count.
    """
    narrower = {name for name, label in found.labels.mapping_to(dataset.labels).items() if label is not None}
    wider = {name for name in dataset.labels.mapping_to(found.labels).values() if name is not None}
    if not narrower | wider:  # it says "cell", whatever the kind
        return found.filter(pl.col("counted"))
    kinds = pl.col("label").cast(pl.String)
    return found.filter(pl.col("counted") & (kinds.is_null() | kinds.is_in(sorted(narrower | wider))))


def _told(found: Cells, dataset: Dataset) -> list[str] | None:
    """The labels that a detector's labels have a word for; None: all of them."""
    names = [name for name, word in dataset.labels.mapping_to(found.labels).items() if word is not None]
    return None if len(names) == len(dataset.labels) else names


def _made(row: dict[str, Any], place: Place, settings: BackgroundSettings, seed: int) -> Pixels | Problem:
    """The background of one image, or why it has none."""
    if isinstance(place, str):
        return Problem(place, row["image_id"], _WHY[place], severity="note")
    if row["path"] is None:
        return Problem("image-missing", row["image_id"], "it is not known where the file is.", severity="error")
    try:
        pixels = load_image(row["path"]).pixels
    except ImageError as error:
        return error.problem
    made = background(pixels, place, settings, _chance(seed, row["image_id"]))
    return Problem(made, row["image_id"], _WHY[made], severity="note") if isinstance(made, str) else made


def _chance(seed: int, image_id: str) -> Generator:
    """The generator of one image: it depends on nothing but the seed and the image's id."""
    digest = hashlib.sha256(image_id.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])


def _stored(row: dict[str, Any], pixels: Pixels, path: Path) -> dict[str, Any]:
    """Write one background; its row in the table of images, with what it has from its source."""
    from PIL import Image

    with written(path) as part:
        Image.fromarray(pixels).save(part)
    return row | {
        "image_id": f"backgrounds/{row['image_id']}.png",
        "path": str(path),
        "width_px": pixels.shape[1],
        "height_px": pixels.shape[0],
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
