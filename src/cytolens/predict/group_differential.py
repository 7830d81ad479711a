"""The differential of each group of images: of each patient, slide or sample, where it is known which is which."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from cytolens.cells import Cells
from cytolens.images import Images
from cytolens.predict.blasts import Blasts, BlastSettings, blasts
from cytolens.predict.differential import ALL, SCHEMA, differential

GROUP_SCHEMA = {"group": pl.String, "images": pl.Int64} | {k: v for k, v in SCHEMA.items() if k != "image_id"}


def folders_as_groups(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `Images` whose group is the folder that the image lies in; a group that is known already stays."""
    return [row | {"group": row.get("group") or _folder_of(row)} for row in rows]


def _folder_of(row: dict[str, Any]) -> str | None:
    inside = PurePosixPath(row["image_id"]).parent.as_posix()  # two folders of one name differ by what is above them
    if inside not in (".", "/"):
        return inside
    return Path(row["path"]).parent.name if row.get("path") else None


def groups_of(images: Images) -> list[str]:
    """The groups in the order they come; none where each is a single image, which has rows of its own anyway."""
    known = images.frame["group"].drop_nulls()
    names = known.unique(maintain_order=True).to_list()
    return names if len(names) < len(known) else []


def of_group(cells: Cells, images: Images, group: str) -> tuple[Cells, Images]:
    """The cells and images of one group; the images stand for themselves in it."""
    frame = images.frame.filter(pl.col("group") == group)
    chosen = cells.filter(cells.frame["image_id"].is_in(frame["image_id"].to_list()).to_numpy())
    return chosen, Images(frame.with_columns(group=pl.lit(None, images.frame.schema["group"])))


def differential_by_group(cells: Cells, images: Images, seed: int = 0) -> pl.DataFrame:
    """The table of `GROUP_SCHEMA`: what `differential` says of all images of a group, group by group.

    Intervals come from a bootstrap over the images of the group, and reach at least as far as Wilson's.
    """
    tables = [pl.DataFrame(schema=GROUP_SCHEMA)]
    for group in groups_of(images):
        chosen, own = of_group(cells, images, group)
        total = differential(chosen, own, seed).filter(pl.col("image_id") == ALL)
        tables.append(
            total.select(pl.lit(group).alias("group"), pl.lit(len(own), pl.Int64).alias("images"), *list(SCHEMA)[1:])
        )
    return pl.concat(tables)


def blasts_by_group(cells: Cells, images: Images, settings: BlastSettings) -> dict[str, Blasts]:
    """Group → its blasts; empty where the labels have none."""
    found = {group: blasts(of_group(cells, images, group)[0], settings) for group in groups_of(images)}
    return {group: one for group, one in found.items() if one is not None}
