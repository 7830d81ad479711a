"""Duplicates: images that show one picture, the same file or a turned, flipped, re-encoded or slightly cropped copy.

Two stages. Hashes that differ in few bits propose pairs (`picture_hashes`, `near_hashes`); then the pictures themselves
decide: the middle of one is looked for in the other, at several scales, by normalised cross-correlation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolens.dataset import Dataset
from cytolens.image_files import load_grey
from cytolens.images import Images
from cytolens.prepare.near_hashes import near_across, near_pairs
from cytolens.prepare.picture_hashes import SIDE, SYMMETRIES, hashes, small, symmetry
from cytolens.problems import ImageError, Problems

SCHEMA: dict[str, Any] = {
    "first": pl.String,
    "second": pl.String,
    "kind": pl.String,  # same file, or alike
    "distance": pl.Int32,  # bits in which the hashes differ
    "likeness": pl.Float64,  # correlation of the aligned pictures, up to 1
    "turn": pl.String,  # what makes the second look like the first
    "first_split": pl.String,
    "second_split": pl.String,
}
_CLEAR_PX = 96  # side of the pictures that decide
_MIDDLE = 0.85  # of a picture is looked for in the other
_SCALES = (0.94, 0.97, 1.0, 1.03, 1.06)
_COARSE_PX = 16  # coarse enough that a crop of a few percent does not shift edges apart
_WORTH_A_LOOK = 0.85  # correlation of the coarse pictures as they lie
_WORTH_READING = 0.9  # correlation of the small pictures, aligned
_BLOCK = 20_000  # pairs correlated at once
_AT_ONCE = 16  # files that a thread reads before it asks for more
Grey = NDArray[np.uint8]
Progress = Callable[[int, int], None]


class DuplicateSettings(BaseModel):
    """How alike two pictures must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    distance: int | None = Field(
        default=None,
        ge=0,
        le=20,
        description="bits in which the hashes of a proposed pair may differ; none: 14 up to 20,000 images, 6 up to "
        "200,000, 3 beyond",
    )
    likeness: float = Field(default=0.95, gt=0, le=1, description="correlation from which two pictures are one")
    turned: bool = Field(default=True, description="also look for flipped and turned copies")
    jobs: int = Field(default=0, ge=0, description="files read at a time; 0: one per core")

    def distance_for(self, images: int) -> int:
        """The distance for so many images."""
        if self.distance is not None:
            return self.distance
        return 14 if images <= 20_000 else 6 if images <= 200_000 else 3


@dataclass(frozen=True, eq=False)
class Duplicates:
    """What was found.

    Attributes:
        pairs: one row per pair, with the columns of `SCHEMA`, the most alike first.
        groups: image ids that belong together, each group and the list sorted.
        looked_at: how many images could be read.
        distance: the distance of hashes that was used.
        problems: images that could not be read.
    """

    pairs: pl.DataFrame
    groups: tuple[tuple[str, ...], ...]
    looked_at: int
    distance: int
    problems: Problems

    @property
    def across_splits(self) -> pl.DataFrame:
        """The pairs whose images stand in different parts."""
        return self.pairs.filter(pl.col("first_split") != pl.col("second_split"))


@dataclass(frozen=True, eq=False)
class _Read:
    """The images that could be read, as the first stage needs them."""

    rows: list[dict[str, Any]]
    digests: list[str]
    pictures: Grey


def find_duplicates(
    images: Images, settings: DuplicateSettings | None = None, progress: Progress | None = None
) -> Duplicates:
    """All pairs of images that show one picture.

    Args:
        images: with their files.
        settings: how alike; the defaults where None.
        progress: is told the images read and in all.
    """
    settings = settings or DuplicateSettings()
    problems = Problems()
    read = _read(images, settings, problems, progress)
    distance = settings.distance_for(len(read.rows))
    pairs = _same_files(read) + _alike(read, settings, distance)
    frame = pl.DataFrame(pairs, schema=SCHEMA, orient="row").sort(
        [pl.col("likeness"), pl.col("first"), pl.col("second")], descending=[True, False, False]
    )
    groups = joined_groups(list(frame.select("first", "second").iter_rows()))
    return Duplicates(frame, groups, len(read.rows), distance, problems)


def joined_groups(pairs: Sequence[tuple[str, str]]) -> tuple[tuple[str, ...], ...]:
    """Names that are joined by pairs, directly or through others."""
    leader: dict[str, str] = {}

    def lead(name: str) -> str:
        while (above := leader.setdefault(name, name)) != name:
            leader[name] = leader[above]
            name = above
        return name

    for first, second in pairs:
        leader[lead(first)] = lead(second)
    members: dict[str, list[str]] = {}
    for name in leader:
        members.setdefault(lead(name), []).append(name)
    return tuple(sorted(tuple(sorted(group)) for group in members.values()))


def with_groups(dataset: Dataset, duplicates: Duplicates) -> Dataset:
    """The dataset with duplicates in one group, so that no split parts them.

    A group that is known (a patient, a slide) stays whole, too: what a duplicate joins becomes one group.
    """
    known = dict(dataset.images.frame.select("image_id", "group").iter_rows())
    by_group: dict[str, list[str]] = {}
    for image_id, group in known.items():
        if group is not None:
            by_group.setdefault(group, []).append(image_id)
    chains = [(a, b) for members in by_group.values() for a, b in pairwise(members)]
    chains += [(group[0], other) for group in duplicates.groups for other in group[1:]]
    names = dict(known)
    for members in joined_groups(chains):
        old = sorted({group for member in members if (group := known[member]) is not None})
        for member in members:
            names[member] = "+".join(old) if old else f"duplicates of {members[0]}"
    step = {"step": "duplicates", "groups": len(duplicates.groups), "distance": duplicates.distance}
    images = dataset.images.with_columns(group=[names[i] for i in dataset.images.ids])
    return replace(dataset, images=images, provenance=(*dataset.provenance, step))


# -- the two stages -------------------------------------------------------------------------------


def _read(images: Images, settings: DuplicateSettings, problems: Problems, progress: Progress | None) -> _Read:
    rows = images.rows()
    pictures = np.zeros((len(rows), SIDE, SIDE), np.uint8)

    def look(place: int) -> str | ImageError:
        path = rows[place]["path"]
        if path is None:
            return ""
        try:
            loaded = load_grey(path, SIDE)
        except ImageError as error:
            return error
        pictures[place] = small(loaded.pixels)
        return loaded.sha256

    def look_at_some(start: int) -> list[str | ImageError]:
        return [look(place) for place in range(start, min(start + _AT_ONCE, len(rows)))]

    kept, digests = [], []
    with ThreadPoolExecutor(settings.jobs or os.cpu_count() or 1) as pool:
        answers = chain.from_iterable(pool.map(look_at_some, range(0, len(rows), _AT_ONCE)))
        for place, answer in enumerate(answers):
            if isinstance(answer, ImageError):
                problems.extend([answer.problem])
            elif not answer:
                problems.add("image-missing", rows[place]["image_id"], "the dataset knows no file for it.", "", "error")
            else:
                kept.append(place)
                digests.append(answer)
            if progress is not None:
                progress(place + 1, len(rows))
    return _Read([rows[place] for place in kept], digests, pictures[kept])


def _row(read: _Read, a: int, b: int, kind: str, distance: int, likeness: float, turn: str) -> tuple[Any, ...]:
    first, second = sorted((read.rows[a], read.rows[b]), key=lambda row: row["image_id"])
    ids, splits = (first["image_id"], second["image_id"]), (first["split"], second["split"])
    return (*ids, kind, distance, round(likeness, 4), turn, *splits)


def _same_files(read: _Read) -> list[tuple[Any, ...]]:
    """Pairs of equal bytes: each file with the first of its kind."""
    first: dict[str, int] = {}
    pairs = []
    for place, digest in enumerate(read.digests):
        before = first.setdefault(digest, place)
        if before != place:
            pairs.append(_row(read, before, place, "same file", 0, 1.0, "as it is"))
    return pairs


def _alike(read: _Read, settings: DuplicateSettings, distance: int) -> list[tuple[Any, ...]]:
    """Pairs of different files that the second stage takes for one picture; each with its best turn."""
    if len(read.rows) < 2:
        return []
    table = hashes(read.pictures)
    flat = _coarse(read.pictures)
    best: dict[tuple[int, int], tuple[float, int, int]] = {}
    clear: dict[int, Grey | None] = {}
    for which in range(len(SYMMETRIES) if settings.turned else 1):
        a, b = _proposed(table, which, distance)
        for i, j in _worth_a_look(flat, _turned(flat, which), a, b):
            if read.digests[i] == read.digests[j]:
                continue
            if aligned_likeness(read.pictures[i], symmetry(read.pictures[j], which)) < _WORTH_READING:
                continue
            pictures = [_clear(read, place, clear) for place in (i, j)]
            if pictures[0] is None or pictures[1] is None:
                continue
            likeness = aligned_likeness(pictures[0], symmetry(pictures[1], which))
            if likeness >= settings.likeness and likeness > best.get((i, j), (0.0, 0, 0))[0]:
                best[i, j] = likeness, which, int(np.bitwise_count(table[i, 0] ^ table[j, which]))
    return [_row(read, i, j, "alike", bits, likeness, _said(which)) for (i, j), (likeness, which, bits) in best.items()]


def _proposed(table: NDArray[np.uint64], which: int, distance: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs i < j of which j, under the symmetry, has nearly the hash of i."""
    own = np.ascontiguousarray(table[:, 0])
    if which == 0:
        return near_pairs(own, distance)
    return near_across(own, np.ascontiguousarray(table[:, which]), distance, ahead=True)


def _coarse(pictures: Grey) -> NDArray[np.float32]:
    """Pictures (N, SIDE, SIDE) made coarse, as rows of mean 0 and length 1."""
    step = SIDE // _COARSE_PX
    blocks = pictures.reshape(len(pictures), _COARSE_PX, step, _COARSE_PX, step).astype(np.float32)
    flat = blocks.mean(axis=(2, 4)).reshape(len(pictures), _COARSE_PX**2)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _turned(flat: NDArray[np.float32], which: int) -> NDArray[np.float32]:
    """What `_coarse` gives of the pictures under a symmetry."""
    grid = flat.reshape(-1, _COARSE_PX, _COARSE_PX)
    # `symmetry` moves the first two axes, which are rows and columns here.
    return symmetry(grid.transpose(1, 2, 0), which).transpose(2, 0, 1).reshape(flat.shape)


def _worth_a_look(
    flat: NDArray[np.float32], turned: NDArray[np.float32], a: NDArray[np.intp], b: NDArray[np.intp]
) -> list[tuple[int, int]]:
    """The proposed pairs whose coarse pictures correlate."""
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(a), _BLOCK):
        i, j = a[start : start + _BLOCK], b[start : start + _BLOCK]
        near = np.einsum("nk,nk->n", flat[i], turned[j]) >= _WORTH_A_LOOK
        pairs += zip(i[near].tolist(), j[near].tolist(), strict=True)
    return pairs


def _clear(read: _Read, place: int, clear: dict[int, Grey | None]) -> Grey | None:
    """A picture large enough to decide, read again when it is first asked for."""
    if place not in clear:
        try:
            clear[place] = small(load_grey(Path(read.rows[place]["path"]), _CLEAR_PX).pixels, _CLEAR_PX)
        except ImageError:  # it could be read a moment ago
            clear[place] = None
    return clear[place]


def aligned_likeness(first: Grey, second: Grey) -> float:
    """The highest normalised cross-correlation, -1 to 1, of the middle of one square picture within the other."""
    import cv2

    side = len(first)
    margin = round(side * (1 - _MIDDLE) / 2)
    middle = np.ascontiguousarray(first[margin : side - margin, margin : side - margin])
    if middle.std() < 1:  # nothing to align by
        return 0.0
    best = -1.0
    for scale in _SCALES:
        shown = cv2.resize(np.ascontiguousarray(second), (round(side * scale),) * 2, interpolation=cv2.INTER_AREA)
        best = max(best, float(cv2.matchTemplate(shown, middle, cv2.TM_CCOEFF_NORMED).max()))
    return min(best, 1.0)


def _said(which: int) -> str:
    """What is done to the second picture, in words."""
    transposed, flip_y, flip_x = SYMMETRIES[which]
    if not transposed:
        return {
            (0, 0): "as it is",
            (0, 1): "flipped left to right",
            (1, 0): "flipped upside down",
            (1, 1): "half turn",
        }[int(flip_y), int(flip_x)]
    return {
        (0, 0): "transposed",
        (0, 1): "quarter turn clockwise",
        (1, 0): "quarter turn counter-clockwise",
        (1, 1): "transposed over the other diagonal",
    }[int(flip_y), int(flip_x)]
