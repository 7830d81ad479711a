"""The members of an ensemble on disk: folders that predictions left, and the one that fusing them leaves."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cytolens.cells import Cells
from cytolens.evaluate.joining import read_found
from cytolens.images import Images
from cytolens.predict.fields import Prediction
from cytolens.predict.fuse import FuseSettings, fuse
from cytolens.predict.outputs import write_outputs
from cytolens.problems import DatasetError, Problems, SettingError, listing


def read_members(places: Sequence[str | os.PathLike[str]]) -> tuple[list[Cells], Images]:
    """The cells of members that looked at the same images, under the first one's image ids; and those images.

    Images are the same when they have the same bytes; where that is not known of either side, the same id.

    Raises:
        DatasetError: there is nothing of the kind, a member's images are not known, or they are others.
    """
    members: list[Cells] = []
    images: Images | None = None
    for place in places:
        cells, own = read_found(place)
        if own is None:
            raise DatasetError(
                f"{place}: there is no images.parquet beside the cells, so it is not known which images were looked "
                "at. Name a folder that cytolens predict wrote."
            )
        if images is None:
            images = own
        members.append(_renamed(cells, _partners(images, own, str(places[0]), str(place))))
    if images is None:
        raise DatasetError("there is nothing to fuse: name at least one folder that cytolens predict wrote")
    return members, images


def _partners(ours: Images, theirs: Images, our_place: str, place: str) -> dict[str, str]:
    """Their image id → ours."""
    contents: dict[str, str | None] = dict(theirs.frame.select("image_id", "sha256").iter_rows())
    by_content: dict[str, list[str]] = {}
    for image_id, sha in contents.items():
        by_content.setdefault(sha or "", []).append(image_id)
    partners: dict[str, str] = {}
    lost: list[str] = []
    for image_id, sha in ours.frame.select("image_id", "sha256").iter_rows():
        same_name = image_id in contents and None in (sha, contents[image_id])
        copies = [other for other in by_content.get(sha or "", []) if sha and other not in partners]
        if image_id in copies or same_name:
            partners[image_id] = image_id
        elif copies:
            partners[copies[0]] = image_id
        else:
            lost.append(image_id)
    spare = [image_id for image_id in contents if image_id not in partners]
    for missing, has, lacks in ((lost, our_place, place), (spare, place, our_place)):
        if missing:
            raise DatasetError(
                f"members have looked at other images: {len(missing)} of {has} are not in {lacks}: "
                f"{listing(missing, 5)}. Predict the same images with every member."
            )
    return partners


def _renamed(cells: Cells, partners: dict[str, str]) -> Cells:
    return cells.with_columns(image_id=[partners.get(i, i) for i in cells.frame["image_id"].to_list()])


def fuse_folders(
    places: Sequence[Path], out: Path, *, method: str, settings: FuseSettings, formats: Sequence[str]
) -> dict[str, Any]:
    """Fuse what predictions left on disk, and leave a folder of the same kind.

    Args:
        places: of the members.
        out: folder for the result; none of the members.
        method, settings: of `fuse`.
        formats: of `predict.outputs`, without "report".

    Returns:
        The summary, as in ``run.json``.

    Raises:
        SettingError: `out` is a member, or an argument of `fuse` is wrong.
        DatasetError: a member is no such folder, or the members have looked at other images.
        LabelError: the label sets differ.
    """
    if taken := [place for place in places if place.resolve() in (out.resolve(), out.resolve() / "cells.parquet")]:
        raise SettingError(f"--out {out}: {taken[0]} is a member and would be overwritten; name another folder")
    members, images = read_members(places)
    started = time.perf_counter()
    cells = fuse(members, method=method, settings=settings, images=images)
    prediction = Prediction(images, cells, _notes(members, cells), timings={"fuse_s": time.perf_counter() - started})
    more = {"method": method, "members": [_origin(p, m) for p, m in zip(places, members, strict=True)]}
    return write_outputs(prediction, None, out, formats, settings, more=more)


def _notes(members: Sequence[Cells], cells: Cells) -> Problems:
    """What fusing has lost."""
    problems = Problems()
    outlined = sum(len(member) - member.frame["mask"].null_count() for member in members)
    if outlined and cells.frame["mask"].null_count() == len(cells):
        what = f"the outlines of {outlined} cells are not kept: a fused box has none."
        problems.add("outlines-lost", "fuse", what, "nms and blend keep them.", "note")
    return problems


def _origin(place: Path, cells: Cells) -> dict[str, Any]:
    """What the summary says of a member."""
    sources = cells.frame["source"].drop_nulls().unique().sort().to_list()
    return {"place": place.as_posix(), "sources": sources, "cells": int(cells.frame["counted"].sum())}
