"""What is wrong with image files: gone, damaged, changed, turned, or of another size than the table says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from cytolens.dataset import Dataset
from cytolens.images import MAX_PIXELS, Images, image_size_wh, load_image
from cytolens.prepare.box_faults import is_outside, sizes_of_cells
from cytolens.prepare.check_findings import Finding, Tell, finding, image_finding
from cytolens.problems import ImageError, Problem

# How a file's size compares with the table's: the table can be corrected, or the boxes belong elsewhere.
SizeVerdict = Literal["wrong", "other-version"]


@dataclass(frozen=True, slots=True)
class Seen:
    """What an image file is found to be.

    Attributes:
        size_wh: width and height in px, orientation applied; None where it cannot be read.
        sha256: of the file's bytes; None where it cannot be read.
        turned: whether its EXIF orientation turns it; known only where it was decoded.
        fault: why it cannot be read.
    """

    size_wh: tuple[int, int] | None = None
    sha256: str | None = None
    turned: bool = False
    fault: Problem | None = None


def look(
    images: Images, *, decode: bool, threads: int = 0, max_pixels: int = MAX_PIXELS, tell: Tell | None = None
) -> dict[str, Seen]:
    """Look at every image file that a table names: image id → what it is.

    Args:
        images: the table; images without a path are left out.
        decode: whether to decode the pixels, or to read the header alone.
        threads: files at a time; 0: one per core.
        max_pixels: larger images are not decoded.
        tell: called with (images done, images in all).
    """
    named = images.frame.select("image_id", "path").drop_nulls()
    ids, paths = named["image_id"].to_list(), named["path"].to_list()
    seen: dict[str, Seen] = {}
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        results = pool.map(partial(_look_at, decode=decode, max_pixels=max_pixels), paths)
        for image_id, one in zip(ids, results, strict=True):
            seen[image_id] = one
            if tell is not None:
                tell(len(seen), len(ids))
    return seen


def _look_at(path: str, *, decode: bool, max_pixels: int) -> Seen:
    try:
        if decode:
            loaded = load_image(path, max_pixels)
            height, width = loaded.pixels.shape[:2]
            return Seen((width, height), loaded.sha256, any("EXIF" in note for note in loaded.notes))
        data = Path(path).read_bytes()
        return Seen(image_size_wh(data, path, max_pixels), hashlib.sha256(data).hexdigest())
    except ImageError as error:
        return Seen(fault=error.problem)
    except (OSError, ValueError) as error:
        return Seen(fault=Problem("image-unreadable", path, f"cannot be opened ({error}).", "Check the path.", "error"))


def size_verdicts(dataset: Dataset, seen: dict[str, Seen]) -> dict[str, SizeVerdict]:
    """Which images have another size than the table says, and whether the table can be corrected.

    "wrong": the file is the one that was annotated, and its boxes fit it. "other-version": they do not, or
    width and height are exchanged, so the boxes were drawn on another version of the image. Files that changed
    since the import are left out: their size is no fact about what was annotated.
    """
    differ: dict[str, tuple[int, int]] = {}
    turned: set[str] = set()
    columns = ("image_id", "width_px", "height_px", "sha256")
    for image_id, width, height, sha256 in dataset.images.frame.select(columns).iter_rows():
        one = seen.get(image_id, Seen())
        if one.size_wh not in (None, (width, height)) and sha256 in (None, one.sha256):
            differ[image_id] = one.size_wh
            if one.size_wh == (height, width):
                turned.add(image_id)
    misfits = turned | _misfits(dataset, differ)
    return {image_id: "other-version" if image_id in misfits else "wrong" for image_id in differ}


def _misfits(dataset: Dataset, sizes: dict[str, tuple[int, int]]) -> set[str]:
    """Images with a box that lies inside the size that the table gives, but outside the size of the file."""
    if not sizes:
        return set()
    files = pl.DataFrame(
        [(image_id, *size) for image_id, size in sizes.items()],
        schema={"image_id": pl.String, "width": pl.Float64, "height": pl.Float64},
        orient="row",
    )
    own = dataset.cells.frame.select("image_id").join(files, on="image_id", how="left", maintain_order="left")
    size_wh = own.select(pl.col("width", "height").fill_null(np.inf)).to_numpy().reshape(-1, 2)
    corners = np.nan_to_num(dataset.cells.boxes(), posinf=0, neginf=0)
    table_wh = sizes_of_cells(dataset)
    said = np.isfinite(table_wh).all(axis=1)
    misfit = said & is_outside(corners, size_wh) & ~is_outside(corners, table_wh)
    return set(own.filter(pl.Series(misfit))["image_id"].to_list())


def with_file_sizes(dataset: Dataset, seen: dict[str, Seen], verdicts: dict[str, SizeVerdict]) -> Dataset:
    """The dataset with the sizes of the files where those of the table are wrong."""
    sizes = [
        seen[image_id].size_wh or (None, None) if verdicts.get(image_id) == "wrong" else (width, height)
        for image_id, width, height in dataset.images.frame.select("image_id", "width_px", "height_px").iter_rows()
    ]
    images = dataset.images.with_columns(width_px=[w for w, _ in sizes], height_px=[h for _, h in sizes])
    return replace(dataset, images=images)


def image_findings(dataset: Dataset, seen: dict[str, Seen], verdicts: dict[str, SizeVerdict]) -> list[Finding]:
    """What is wrong with the image files that were looked at."""
    return [*_without_file(dataset), *_of_files(dataset, seen, verdicts)]


def _without_file(dataset: Dataset) -> Iterator[Finding]:
    absent = dataset.images.frame.filter(pl.col("path").is_null())["image_id"]
    if len(absent):
        what = f'{len(absent)} of {len(dataset.images)} images have no file (first: "{absent[0]}").'
        yield finding("image-without-file", dataset.name, what, "Import again with --images DIR.", "note")


def _of_files(dataset: Dataset, seen: dict[str, Seen], verdicts: dict[str, SizeVerdict]) -> Iterator[Finding]:
    columns = ("image_id", "path", "width_px", "height_px", "sha256")
    for image_id, path, width, height, sha256 in dataset.images.frame.select(columns).iter_rows():
        one = seen.get(image_id)
        if one is None:
            continue
        if one.fault is not None:
            missing = one.fault.kind == "image-missing"
            what = f'the file "{path}" is not there.' if missing else one.fault.what
            fix = "Put it back, or import again." if missing else one.fault.fix
            yield image_finding(one.fault.kind, image_id, what, fix, "error")
            continue
        if sha256 not in (None, one.sha256):
            resized = "" if one.size_wh == (width, height) else f" and is now {_size(one.size_wh)}"
            what = f"the file changed since the import{resized}: other bytes than the table knows."
            yield image_finding("image-changed", image_id, what, "Put the first file back, or import again.", "error")
        if one.turned:
            what = "the EXIF orientation turns the picture; boxes drawn in a program that ignores it lie elsewhere."
            fix = "Look at the image with its boxes; store it upright."
            yield image_finding("image-turned", image_id, what, fix, "warning")
        if image_id in verdicts:
            yield _wrong_size(image_id, (width, height), one.size_wh, verdicts[image_id])


def _wrong_size(
    image_id: str,
    table_wh: tuple[int | None, int | None],
    file_wh: tuple[int, int] | None,
    verdict: SizeVerdict,
) -> Finding:
    what = f"the table says {_size(table_wh)}, the file is {_size(file_wh)}"
    if verdict == "wrong":
        return image_finding("size-mismatch", image_id, f"{what}.", "Run cytolens repair: it takes the file's.")
    what += ", and the boxes do not fit it: they were drawn on another version of the image."
    return image_finding("size-other-version", image_id, what, "Find that version, or annotate this one.", "error")


def _size(size_wh: tuple[int | None, int | None] | None) -> str:
    return "nothing" if size_wh is None or None in size_wh else f"{size_wh[0]} × {size_wh[1]} px"
