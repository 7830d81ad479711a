"""Soft outlines of many images on disk, and the cells that come of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cytolens.cells import Cells
from cytolens.images import Images, load_image
from cytolens.labels import LabelSet
from cytolens.predict.soft_outlines import read_soft_outlines, soft_outline_files, write_soft_outlines
from cytolens.predict.typed_ensembles import TypedEnsembles
from cytolens.problems import DatasetError, ImageError, LabelError, Problem, SettingError, listing, written
from cytolens.tasks.mask_cleaning import cleaned
from cytolens.tasks.segment import SegmentOutput

SOFT = "soft"  # folder of the outlines in what a step leaves
_LABELS = "labels.json"


def write_predictions(
    ensembles: TypedEnsembles, rows: Sequence[dict[str, Any]], folder: Path, jobs: int = 0
) -> tuple[Images, list[Problem]]:
    """Look at images and keep what is said of each; an image that cannot be read is a problem, and the rest goes on.

    Args:
        ensembles: what looks.
        rows: of `Images`.
        folder: is given ``soft``, ``images.parquet`` (those that could be read, with their sizes) and ``labels.json``.
        jobs: images looked at at a time; 0: one per core.

    Raises:
        DatasetError: no image could be read.
    """
    labels = ensembles.labels
    (folder / SOFT).mkdir(parents=True, exist_ok=True)

    def look(row: dict[str, Any]) -> dict[str, Any] | Problem:
        image_id, path = row["image_id"], row["path"]
        if path is None:
            return Problem("image-missing", image_id, "the dataset knows no file for it.", "", "error")
        try:
            image = load_image(path)
        except ImageError as error:
            return error.problem
        write_soft_outlines(folder / SOFT, image_id, ensembles.look(image.pixels), labels.names)
        height, width = image.pixels.shape[:2]
        return row | {"sha256": image.sha256, "width_px": width, "height_px": height}

    with ThreadPoolExecutor(jobs or os.cpu_count() or 1, thread_name_prefix="cytolens") as pool:
        told = list(pool.map(look, rows))
    problems = [one for one in told if isinstance(one, Problem)]
    seen = [one for one in told if not isinstance(one, Problem)]
    if not seen:
        raise DatasetError(f"none of {len(rows)} images could be read, first: {problems[0] if problems else 'none'}")
    images = Images.of(seen)
    with written(folder / "images.parquet") as part:
        images.frame.write_parquet(part)
    with written(folder / _LABELS) as part:
        part.write_text(json.dumps(labels.to_dict(), indent=1) + "\n", encoding="utf-8")
    return images, problems


def seen_images(places: Sequence[Path]) -> Images:
    """The images that several folders hold outlines of.

    Raises:
        DatasetError: a folder holds none.
        SettingError: two hold those of the same image.
    """
    tables = []
    for place in places:
        try:
            tables.append(Images(pl.read_parquet(place / "images.parquet")))
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DatasetError(f"{place}: holds no soft outlines that a step left ({error})") from error
    ids = [image_id for table in tables for image_id in table.ids]
    if len(set(ids)) < len(ids):
        raise SettingError(f"two of {listing(map(str, places))} looked at the same image; give one per fold")
    return tables[0].concat(*tables[1:])


def cleaned_cells(
    places: Sequence[Path], images: Images, reading: Callable[[str], SegmentOutput], source: str
) -> Cells:
    """The cells of images, without overlaps.

    Args:
        places: what `write_predictions` filled.
        images: those that are wanted.
        reading: image id → how its outlines are read.
        source: of the cells.

    Raises:
        LabelError: the folders speak different labels.
        FormatError: a file of outlines is damaged.
    """
    spoken = [json.loads((place / _LABELS).read_text(encoding="utf-8")) for place in places]
    if any(one != spoken[0] for one in spoken):
        raise LabelError(
            f"the outlines of {listing(map(str, places))} have different labels; take those of one training"
        )
    labels = LabelSet.from_dict(spoken[0])
    files = soft_outline_files(*(place / SOFT for place in places))
    parts: list[Cells] = []
    for image_id, key in images.frame.select("image_id", "sha256").iter_rows():
        found = cleaned(read_soft_outlines(files[image_id]).spoken(labels), labels, reading(image_id))
        count = len(found.masks)
        parts.append(
            Cells.of(
                labels,
                image_id=[image_id] * count,
                image_key=[key] * count,
                boxes=np.asarray(found.boxes, np.float32).reshape(-1, 4),
                label=[labels.names[kind] for kind in found.classes.tolist()],
                source=source,
                score=found.scores,
                mask=found.masks,
                counted=found.counted,
            )
        )
    return parts[0].concat(*parts[1:])
