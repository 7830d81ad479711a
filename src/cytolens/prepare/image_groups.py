"""Groups for sets that name no patient, slide or plate: images that look as if they were taken together.

Images of one kind (their commonest label) and one size are joined by colour, and so are copies of one picture. It is a
guess: what was taken together and looks different is parted, and what looks alike without belonging together is joined.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolens.dataset import Dataset
from cytolens.images import load_image
from cytolens.prepare.duplicates import DuplicateSettings, Progress, find_duplicates, with_groups
from cytolens.problems import ImageError, Problems, SettingError

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_MOST_ALIKE = 20_000  # images of one kind and size; every pair of them is compared
Kind = tuple[str | None, int | None, int | None]  # label, width and height in px


class LookSettings(BaseModel):
    """How alike images of one group are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    distance: float = Field(
        default=5.0, gt=0, description="largest difference of colour between two images of a group, in units of CIELAB"
    )
    copies: bool = Field(default=True, description="also join images that show one picture, whatever their size")
    jobs: int = Field(default=0, ge=0, description="files read at a time; 0: one per core")


@dataclass(frozen=True, eq=False)
class LookGroups:
    """What was found.

    Attributes:
        dataset: with its images' groups filled in.
        per_kind: the images' commonest label (None: no cell has one) → how many groups have such images.
        problems: images that could not be read; they stand alone.
    """

    dataset: Dataset
    per_kind: dict[str | None, int]
    problems: Problems


def grouped_by_look(
    dataset: Dataset, settings: LookSettings | None = None, progress: Progress | None = None
) -> LookGroups:
    """A dataset whose images are grouped by kind, size and colour.

    The colour of an image is five quantiles of each channel of CIELAB; two images differ by the root mean square over
    the quantiles of the distance in that space. Groups are clusters of complete linkage, so no two images of one differ
    by more than `settings.distance`, copies aside. Nothing is left to chance, and the order of the images says nothing
    about who is together.

    Raises:
        SettingError: an image stands in a group already, or too many images are of one kind and size to be compared.
    """
    settings = settings or LookSettings()
    if known := dataset.images.frame["group"].drop_nulls().len():
        raise SettingError(
            f"{known} of {len(dataset.images)} images stand in a group already (patient, slide, plate); grouping by "
            "look is for sets that name none. Leave it out."
        )
    problems = Problems()
    kinds = _kinds(dataset)
    colours = _colours(dataset, settings.jobs, problems, progress)
    members: dict[Kind, list[str]] = {}
    for image_id in sorted(colours):
        members.setdefault(kinds[image_id], []).append(image_id)
    names: dict[str, str] = {}
    for kind, image_ids in members.items():
        for image_id, number in zip(
            image_ids, _clusters(np.array([colours[i] for i in image_ids]), kind, settings.distance), strict=True
        ):
            names[image_id] = f"look {_said(kind)} {number}"
    step = {"step": "groups", "by": "look", "distance": settings.distance, "groups": len(set(names.values()))}
    images = dataset.images.with_columns(group=[names.get(image_id) for image_id in dataset.images.ids])
    grouped = replace(dataset, images=images, provenance=(*dataset.provenance, step))
    if settings.copies:
        grouped = with_groups(grouped, find_duplicates(grouped.images, DuplicateSettings(jobs=settings.jobs)))
    own = dict(grouped.images.frame.select("image_id", "group").iter_rows())
    # An image without a group is one of its own.
    pairs = {(kinds[image_id][0], group or image_id) for image_id, group in own.items()}
    return LookGroups(grouped, dict(Counter(label for label, _ in sorted(pairs, key=str))), problems)


def _kinds(dataset: Dataset) -> dict[str, Kind]:
    """Image id → its commonest label (of equals, the first in the label set) and its size."""
    order = {name: place for place, name in enumerate(dataset.labels.names)}
    cells = dataset.cells.frame.filter(~pl.col("ignore") & pl.col("label").is_not_null())
    tally = cells.group_by("image_id", pl.col("label").cast(pl.String)).len().rows()
    best: dict[str, tuple[int, int, str]] = {}
    for image_id, label, count in tally:
        best[image_id] = min(best.get(image_id, (0, 0, "")), (-count, order[label], label))
    sizes = dataset.images.frame.select("image_id", "width_px", "height_px").iter_rows()
    return {i: (best[i][2] if i in best else None, width, height) for i, width, height in sizes}


def _colours(
    dataset: Dataset, jobs: int, problems: Problems, progress: Progress | None
) -> dict[str, NDArray[np.float64]]:
    """Image id → its quantiles of L, a and b, shape (15,); images that cannot be read are problems."""
    rows = dataset.images.rows()
    found: dict[str, NDArray[np.float64]] = {}
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        for done, (row, answer) in enumerate(zip(rows, pool.map(_look, rows), strict=True), start=1):
            if isinstance(answer, ImageError):
                problems.extend([answer.problem])
            elif answer is None:
                problems.add("image-missing", row["image_id"], "the dataset knows no file for it.", "", "error")
            else:
                found[row["image_id"]] = answer
            if progress is not None:
                progress(done, len(rows))
    return found


def _look(row: dict[str, Any]) -> NDArray[np.float64] | ImageError | None:
    if row["path"] is None:
        return None
    try:
        return colour_of(load_image(row["path"]).pixels)
    except ImageError as error:
        return error


def colour_of(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What `grouped_by_look` takes for the colour of an image (H, W, 3): shape (15,), quantile by quantile L, a, b."""
    import cv2

    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).reshape(-1, 3)
    return np.quantile(lab, _QUANTILES, axis=0).astype(np.float64).ravel()


def _clusters(colours: NDArray[np.float64], kind: Kind, distance: float) -> list[int]:
    """The number of each image's cluster, from 1 in the order of the images (N)."""
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(colours) > _MOST_ALIKE:
        raise SettingError(
            f"{len(colours)} images are {_said(kind)}; grouping by look compares each with each, and takes up to "
            f"{_MOST_ALIKE} of one kind and size. Name groups with --group-pattern at import."
        )
    if len(colours) == 1:
        return [1]
    tree = linkage(colours / np.sqrt(len(_QUANTILES)), method="complete")
    raw = fcluster(tree, distance, criterion="distance").tolist()
    numbers: dict[int, int] = {}
    return [numbers.setdefault(one, len(numbers) + 1) for one in raw]


def _said(kind: Kind) -> str:
    label, width, height = kind
    return f"{label or 'unlabelled'} {width or '?'}x{height or '?'}"
