"""The page that shows duplicates side by side."""

from __future__ import annotations

from pathlib import Path

from cytolens.evaluate.page import Page, Picture, Tile
from cytolens.evaluate.pictures import ImageFiles, jpeg
from cytolens.images import Images
from cytolens.prepare.duplicates import Duplicates

_PAIRS = 60
_PICTURE_PX = 320


def write_page(found: Duplicates, images: Images, path: Path) -> None:
    """Write the page: how many, and the pairs; those across splits first, then the least alike."""
    copies = sum(len(group) - 1 for group in found.groups)
    page = Page("Duplicates", f"{found.looked_at} images looked at")
    page = page.tiles(
        [
            Tile("images that repeat another", str(copies), f"in {len(found.groups)} groups"),
            Tile("pairs across splits", str(len(found.across_splits)), "these inflate scores"),
            Tile("hash distance", str(found.distance), "bits of 64, for proposing pairs"),
        ]
    )
    rows = found.pairs.with_columns(across=found.pairs["first_split"] != found.pairs["second_split"])
    rows = rows.sort(["across", "likeness"], descending=[True, False], nulls_last=True).head(_PAIRS)
    page = page.section("Pairs", "Across splits first, then the least alike.")
    files = ImageFiles(images)
    pictures = []
    for row in rows.iter_rows(named=True):
        splits = " and ".join(row[side] or "no split" for side in ("first_split", "second_split"))
        told = f"{row['kind']}, likeness {row['likeness']:.3f}, {row['turn']}; {splits}"
        pictures.append(
            Picture(_side_by_side(files, row["first"], row["second"]), f"{row['first']} = {row['second']}", told)
        )
    return (page.figures(pictures) if pictures else page.text("There are none.")).write(path)


def _side_by_side(files: ImageFiles, first: str, second: str) -> bytes | None:
    """Both pictures of a pair in one, equally high; None where one cannot be read."""
    import cv2
    import numpy as np

    shown = []
    for image_id in (first, second):
        pixels = files.read(image_id)
        if isinstance(pixels, str):
            return None
        width = max(1, round(_PICTURE_PX * pixels.shape[1] / pixels.shape[0]))
        shown.append(cv2.resize(pixels, (width, _PICTURE_PX), interpolation=cv2.INTER_AREA))
    gap = np.full((_PICTURE_PX, 8, 3), 255, np.uint8)
    return jpeg(np.ascontiguousarray(np.hstack([shown[0], gap, shown[1]]), np.uint8))
