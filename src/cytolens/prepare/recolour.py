"""Copies of a dataset's images as another laboratory would have stained and photographed them.

The change is the same for every image and known exactly, so it shows what a change of colour alone costs a model.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from cytolens.dataset import Dataset
from cytolens.images import Images, load_image
from cytolens.prepare import stain
from cytolens.prepare.stain import StainSettings
from cytolens.prepare.stain_colour import Triple, restained
from cytolens.problems import DatasetError, listing, written


class Recolour(BaseModel):
    """How images are changed, by Beer and Lambert."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mixing: tuple[Triple, Triple, Triple] = Field(
        default=((0.7, 0.15, 0.0), (0.05, 0.8, 0.1), (0.1, 0.2, 1.1)),
        description="new optical densities of R, G, B from the old ones, a row each",
    )
    lamp: Triple = Field(default=(225.0, 205.0, 190.0), description="R, G, B of the new background")


def recoloured(dataset: Dataset, folder: Path, settings: Recolour, name: str) -> Dataset:
    """The dataset with copies of its images, as PNG in `folder`; cells stay where they are.

    Args:
        dataset: its own files stay as they are.
        folder: where the copies go.
        settings: what is changed, after the background was brought to white.
        name: of the new dataset, and its scanner.

    Raises:
        DatasetError: an image has no file.
        ImageError: a file cannot be read.
    """
    from PIL import Image

    if missing := dataset.images.frame.filter(pl.col("path").is_null())["image_id"].to_list():
        raise DatasetError(f"{len(missing)} images have no file to copy: {listing(missing, 3)}")
    folder.mkdir(parents=True, exist_ok=True)
    matrix, lamp = np.array(settings.mixing), np.array(settings.lamp)
    rows = []
    for number, row in enumerate(dataset.images.rows()):
        pixels = load_image(row["path"]).pixels
        level = stain.normalise(pixels, stain.change(stain.measure(pixels), StainSettings()))
        path = folder / f"{number:06d}.png"
        with written(path) as part:
            Image.fromarray(restained(level, matrix, lamp)).save(part, "PNG")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        size = {"width_px": pixels.shape[1], "height_px": pixels.shape[0]}
        rows.append({**row, **size, "path": str(path.absolute()), "sha256": digest, "scanner": name})
    step = {"step": "recolour", "settings": settings.model_dump(mode="json")}
    return replace(dataset, images=Images.of(rows), name=name, provenance=(*dataset.provenance, step))
