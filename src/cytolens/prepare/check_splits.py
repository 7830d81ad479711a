"""What would leak from one side of a split to the other, and images that nobody annotated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import polars as pl

from cytolens.dataset import Dataset
from cytolens.prepare.check_findings import Finding, finding, image_finding
from cytolens.problems import listing


def split_findings(dataset: Dataset) -> list[Finding]:
    """Groups and equal files that stand on several sides; repeated images; images without cells."""
    return [*_straddling(dataset), *_same_bytes(dataset), *_without_cells(dataset)]


def _straddling(dataset: Dataset) -> Iterator[Finding]:
    for column in ("split", "fold"):
        for group, sides, count in _on_several_sides(dataset.images.frame, "group", column).iter_rows():
            what = f"its {count} images stand in several {column}s: {listing(sides, 6)}. What is learnt leaks."
            fix = "Run cytolens split: it keeps a group on one side."
            yield finding("group-straddles", f'group "{group}"', what, fix, "error")


def _on_several_sides(frame: pl.DataFrame, key: str, column: str) -> pl.DataFrame:
    """Values of `key` whose rows have several values of `column`: key, the values, number of rows."""
    known = frame.select(key, pl.col(column).cast(pl.String)).drop_nulls()
    sides = known.group_by(key).agg(pl.col(column).unique().sort().alias("sides"), pl.len())
    return sides.filter(pl.col("sides").list.len() > 1).sort(key)


def _same_bytes(dataset: Dataset) -> Iterator[Finding]:
    images = dataset.images.frame
    apart = {c: set(_on_several_sides(images, "sha256", c)["sha256"].to_list()) for c in ("split", "fold")}
    repeated = images.filter(pl.col("sha256").is_not_null() & pl.col("sha256").is_duplicated()).sort("image_id")
    said = _labels_of_images(dataset, repeated)
    for (sha256,), frame in repeated.group_by(["sha256"], maintain_order=True):
        ids = frame["image_id"].to_list()
        labels = sorted({said.get(image_id, "no cells") for image_id in ids})
        differ = f" They are annotated differently: {'; '.join(labels[:4])}." if len(labels) > 1 else ""
        columns = [column for column, hashes in apart.items() if sha256 in hashes]
        if columns:
            values = frame[columns[0]].drop_nulls().cast(pl.String).unique().sort().to_list()
            what = f"is the same file as {listing(ids[1:], 4)}, in several {columns[0]}s: {listing(values, 6)}.{differ}"
            fix = "Keep one of them, or give them one group."
            found = image_finding("image-in-several-splits", ids[0], what, fix, "error")
        else:
            what = f"is the same file as {listing(ids[1:], 4)}.{differ}"
            found = image_finding(
                "image-repeated", ids[0], what, "Keep one of them; cytolens duplicates lists them all."
            )
        yield replace(found, weight=float(bool(differ)))


def _labels_of_images(dataset: Dataset, images: pl.DataFrame) -> dict[str, str]:
    """What the cells of these images are called, as "2 lymphocyte, 1 monocyte"."""
    own = dataset.cells.frame.join(images.select("image_id"), on="image_id", how="semi")
    label = pl.col("label").cast(pl.String).fill_null("(no label)")
    counts = own.group_by("image_id", label.alias("name")).len().sort("image_id", "name")
    texts = counts.with_columns(text=pl.format("{} {}", "len", "name"))
    return dict(texts.group_by("image_id").agg(pl.col("text").str.join(", ")).iter_rows())


def _without_cells(dataset: Dataset) -> Iterator[Finding]:
    empty = dataset.images.frame.join(dataset.cells.frame.select("image_id"), on="image_id", how="anti")
    for image_id, complete_for in empty.select("image_id", "complete_for").iter_rows():
        nobody = complete_for is not None and not complete_for
        what = "has no cells, and nobody looked for any." if nobody else "has no cells."
        fix = "Annotate it." if nobody else "Right where there are none; otherwise annotate it."
        yield image_finding("image-without-cells", image_id, what, fix, "note")
