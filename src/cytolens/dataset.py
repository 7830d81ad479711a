"""Dataset: images, cells, a label set and where they come from, in a folder.

The folder holds ``dataset.json``, ``images.parquet`` and ``cells.parquet``. The image files stay
where they are; their paths are stored relative to the folder, so that both can move together.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import polars as pl

from cytolens.cells import Cells, schema
from cytolens.edits import Edits
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.problems import DatasetError, listing, written

FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and their cells.

    Attributes:
        images: the table of images.
        cells: the annotations; every `image_id` is one of `images`.
        name: a short name.
        provenance: what was done to get here, oldest first: imports, repairs, splits.
        licence: under what terms the data may be used, as far as known.

    Raises:
        DatasetError: a cell refers to an image that is not there, or a cell_id repeats.
    """

    images: Images
    cells: Cells
    name: str = "dataset"
    provenance: tuple[Mapping[str, Any], ...] = field(default=())
    licence: str = ""

    def __post_init__(self) -> None:
        strangers = self.cells.frame.select("image_id").unique().join(self.images.frame, on="image_id", how="anti")
        if len(strangers):
            names = [str(name) for name in strangers["image_id"].sort().to_list()]
            raise DatasetError(f"cells refer to {len(names)} images that are not in the table: {listing(names, 5)}")
        repeated = self.cells.frame.filter(pl.col("cell_id").is_duplicated())["cell_id"].unique().sort()
        if len(repeated):
            raise DatasetError(
                f"cell_id must be unique; repeated: {listing(map(str, repeated), 5)}. Either the same cells were "
                "joined twice, or images of the same bytes got their cells in separate calls of Cells.of"
            )

    @property
    def labels(self) -> LabelSet:
        """The label set of the cells."""
        return self.cells.labels

    def __repr__(self) -> str:
        return f'Dataset("{self.name}", {len(self.images)} images, {len(self.cells)} cells, {self.labels!r})'

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change when an image, a cell or a label changes.

        Neither file paths nor the order of the rows matter.
        """
        digest = hashlib.sha256(self.labels.hash.encode())
        images = self.images.frame.drop("path").sort("image_id")
        cells = self.cells.frame.sort("cell_id")
        for frame in (images, cells):
            digest.update(frame.write_json().encode() if not _binary(frame) else _hexed(frame).write_json().encode())
        return digest.hexdigest()[:16]

    # -- parts ----------------------------------------------------------------------------------

    def of_images(self, images: Images) -> Self:
        """The same dataset with only these images and their cells."""
        kept = self.cells.frame.join(images.frame.select("image_id"), on="image_id", how="semi")
        return replace(self, images=images, cells=Cells(kept, self.labels))

    def where(self, **equals: Any) -> Self:
        """The part whose images have these column values, such as ``where(split="train")``."""
        return self.of_images(self.images.where(**equals))

    def part(self, split: str) -> Self:
        """The part whose images have this `split`.

        Raises:
            DatasetError: there is none of that name.
        """
        have = sorted(self.images.frame["split"].drop_nulls().unique().to_list())
        if split not in have:
            raise DatasetError(f'the dataset has no part "{split}"; its parts: {listing(have) or "none"}')
        return self.where(split=split)

    def select(self, condition: str) -> Self:
        """The part whose images meet an SQL condition on their columns, such as "width_px < 500".

        Raises:
            DatasetError: it is not a condition on columns of `Images`.
        """
        try:
            kept = self.images.frame.filter(pl.sql_expr(condition))
        except pl.exceptions.PolarsError as error:
            columns = ", ".join(self.images.frame.columns)
            raise DatasetError(f'"{condition}" is not a condition on images ({error}). Columns: {columns}') from error
        return self.of_images(Images(kept))

    def taken_with(
        self, *, stain: str | None = None, scanner: str | None = None, magnification: str | None = None
    ) -> Self:
        """The same dataset with these said of all its images; None: as it was."""
        given = {"stain": stain, "scanner": scanner, "magnification": magnification}
        said = {name: value for name, value in given.items() if value is not None}
        return replace(self, images=self.images.with_columns(**said)) if said else self

    def apply(self, edits: Edits) -> Self:
        """The dataset after a review."""
        step = {"step": "edits", "count": len(edits)}
        return replace(self, cells=edits.applied_to(self.cells), provenance=(*self.provenance, step))

    def relabel(self, to: LabelSet, *, missing: str = "error") -> Self:
        """The same dataset in the words of another label set; see `Cells.relabel`.

        `complete_for` follows: a label there is complete where all labels here that become it are; a label
        that no label here becomes is not.
        """
        complete = [_complete_for(names, self.labels, to) for names in self.images.frame["complete_for"].to_list()]
        images = self.images.with_columns(complete_for=pl.Series("complete_for", complete, pl.List(pl.String)))
        return replace(self, images=images, cells=self.cells.relabel(to, missing=missing))

    # -- on disk --------------------------------------------------------------------------------

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write the dataset; ``dataset.json`` comes last, so a folder without it is unfinished."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        base = target.resolve()
        paths = [
            None if p is None else Path(os.path.relpath(p, base)).as_posix()
            for p in self.images.frame["path"].to_list()
        ]
        (target / "dataset.json").unlink(missing_ok=True)
        with written(target / "images.parquet") as part:
            self.images.frame.with_columns(pl.Series("path", paths, pl.String)).write_parquet(part)
        self.cells.write_parquet(target / "cells.parquet")
        description = {
            "format": "cytolens-dataset",
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "licence": self.licence,
            "images": len(self.images),
            "cells": len(self.cells),
            "labels": self.labels.to_dict(),
            "fingerprint": self.fingerprint,
            "provenance": [dict(step) for step in self.provenance],
        }
        with written(target / "dataset.json") as part:
            part.write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Self:
        """Read a dataset that `write` wrote.

        Raises:
            DatasetError: the folder is missing, unfinished, damaged or of another version.
        """
        source = Path(folder)
        file = source / "dataset.json"
        if not file.exists():
            raise DatasetError(
                f'"{source}" is not a dataset (no dataset.json). '
                f"Make one: cytolens import SRC --format auto --out {source.name or 'DATASET'}"
            )
        try:
            description = json.loads(file.read_text(encoding="utf-8"))
            version = description["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{file}: damaged ({error}); import the data again") from error
        if version != FORMAT_VERSION:
            raise DatasetError(
                f"{file}: format version {version}; this program reads version {FORMAT_VERSION}. "
                "Use the program that wrote it, or import the data again"
            )
        base = source.resolve()
        try:
            frame = pl.read_parquet(source / "images.parquet", glob=False)
            paths = [None if p is None else os.path.normpath(base / p) for p in frame["path"].to_list()]
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DatasetError(f"{source / 'images.parquet'}: cannot be read ({error})") from error
        return cls(
            images=Images(frame.with_columns(pl.Series("path", paths, pl.String))),
            cells=Cells.read_parquet(source / "cells.parquet"),
            name=description.get("name", source.name),
            provenance=tuple(description.get("provenance", ())),
            licence=description.get("licence", ""),
        )


def _complete_for(names: list[str] | None, labels: LabelSet, to: LabelSet) -> list[str] | None:
    """What is annotated exhaustively, in the words of `to`; None: all of its labels."""
    done = {name for name in labels.names if names is None or any(labels.is_a(name, wide) for wide in names)}
    sources: dict[str, list[str]] = {}
    for name, target in labels.mapping_to(to).items():
        if target is not None:
            sources.setdefault(target, []).append(name)
    complete = [name for name in to.names if name in sources and done.issuperset(sources[name])]
    return None if len(complete) == len(to) else complete


def _binary(frame: pl.DataFrame) -> bool:
    return pl.Binary in frame.dtypes


def _hexed(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col(pl.Binary).bin.encode("hex"))


def merge(datasets: list[Dataset], name: str, labels: LabelSet) -> Dataset:
    """One dataset from several, in the words of `labels`; image ids are kept apart by dataset name.

    Raises:
        DatasetError: two datasets have the same name.
        LabelError: a label has no counterpart in `labels`.
    """
    names = [dataset.name for dataset in datasets]
    if len(set(names)) < len(names):
        raise DatasetError(f"datasets to be joined need names of their own; got {names}")
    images, cells = Images.empty(), Cells.empty(labels)
    for dataset in datasets:
        own = dataset.relabel(labels)
        prefixed = pl.concat_str(pl.lit(dataset.name + "/"), pl.col("image_id"))
        images = images.concat(Images(own.images.frame.with_columns(prefixed.alias("image_id"))))
        frame = own.cells.frame.with_columns(prefixed.alias("image_id")).select(list(schema(labels)))
        cells = cells.concat(Cells(frame, labels))
    licences = sorted({dataset.licence for dataset in datasets if dataset.licence})
    step = {"step": "merge", "from": [{"name": d.name, "fingerprint": d.fingerprint} for d in datasets]}
    return Dataset(images, cells, name, (step,), "; ".join(licences))
