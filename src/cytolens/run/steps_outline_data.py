"""The steps of a recipe that prepare outlined cells: images left out, groups by look, corrected and pseudo-labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from cytolens.dataset import Dataset
from cytolens.problems import DatasetError, listing
from cytolens.run.steps import Notify, Step, sizes


class LeaveOutStep(Step):
    """A dataset without some of its images: those known to be wrong, or too near to what is to be judged."""

    dataset: Path
    words: tuple[str, ...] = Field(
        default=(), description="an image goes whose id, or the label of one of its cells, holds one of these"
    )

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """A smaller dataset."""
        import polars as pl

        from cytolens.images import Images

        dataset = Dataset.read(self.dataset)
        words = [word.casefold() for word in self.words if word]
        named: dict[str, set[str]] = {image_id: {image_id} for image_id in dataset.images.ids}
        for image_id, label in dataset.cells.frame.select("image_id", pl.col("label").cast(pl.String)).iter_rows():
            named[image_id].add(label or "")
        gone = [i for i, said in named.items() if any(word in one.casefold() for one in said for word in words)]
        if len(gone) == len(named):
            raise DatasetError(f'all {len(gone)} images of "{dataset.name}" hold one of {listing(self.words)}')
        kept = dataset.of_images(Images(dataset.images.frame.filter(~pl.col("image_id").is_in(gone))))
        kept.write(folder)
        return sizes(kept) | {"left_out": len(gone)}


class GroupsStep(Step):
    """Groups by look, where the data name none; see `cytolens split --group-by look`."""

    dataset: Path
    distance: float = Field(default=5.0, gt=0, description="largest difference of colour, in units of CIELAB")

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """A dataset whose images stand in groups; as it was, where some do already."""
        from cytolens.prepare.image_groups import LookSettings, grouped_by_look

        dataset = Dataset.read(self.dataset)
        given = dataset.images.frame["group"].drop_nulls().len() > 0
        if not given:
            looks = grouped_by_look(dataset, LookSettings(distance=self.distance))
            for problem in looks.problems:
                notify(str(problem))
            dataset = looks.dataset
        dataset.write(folder)
        return sizes(dataset) | {
            "by": "the data" if given else "look",
            "groups": dataset.images.frame["group"].n_unique(),
        }


class MasksOfStep(Step):
    """Corrected outlines in the images that both datasets have; see `cytolens repair --masks-of`."""

    dataset: Path
    corrected: Path | None = Field(default=None, description="a dataset of outlines; none: all stays as it is")
    where: str | None = Field(default=None, description="only some images, such as \"split = 'train'\"")

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """A dataset, and the changes."""
        from cytolens.prepare.mask_overrides import with_masks_of
        from cytolens.prepare.repair import write_changes

        dataset = Dataset.read(self.dataset)
        if self.corrected is None:
            dataset.write(folder)
            return sizes(dataset) | {"corrected": 0}
        mended, changes = with_masks_of(dataset, Dataset.read(self.corrected), self.where)
        write_changes(changes, folder)
        mended.write(folder)
        return sizes(mended) | {"corrected": len(changes)}


class PseudoOutlinesStep(Step):
    """Images without annotations, outlined by a teacher, as a dataset to learn from.

    Every cell keeps its score; training takes those below `extra.score_min` neither for cells nor for background. The
    teacher of a fold is what did not learn from it, and teaches only the student of that fold: the student is given
    the source that its pseudo-labels must have as `extra.teacher`.
    """

    found: Path = Field(description="cells with outlines, that `clean-outlines` or `predict` left")
    teacher: str = Field(description="source that the cells are given, such as teacher-0")
    score_min: float = Field(default=0.5, ge=0, le=1, description="images without a cell of this score are left out")
    name: str = "pseudo"

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """A dataset of images that stand in no fold and no part."""
        import polars as pl

        from cytolens.evaluate import read_found
        from cytolens.images import Images

        cells, images = read_found(self.found)
        if images is None:
            raise DatasetError(f"{self.found}: there is no images.parquet beside the cells")
        drawn = cells.filter(pl.col("mask").is_not_null() & pl.col("score").is_not_null())
        sure = drawn.frame.filter(pl.col("score") >= self.score_min)["image_id"].unique()
        if not len(sure):
            raise DatasetError(
                f"{self.found}: no outlined cell has a score of {self.score_min:g} or more; lower score_min"
            )
        some = Images(images.frame.filter(pl.col("image_id").is_in(sure.implode())))
        some = some.with_columns(fold=[None] * len(some), split=[None] * len(some))
        kept = drawn.filter(pl.col("image_id").is_in(sure.implode())).with_columns(
            source=self.teacher, counted=True, refer=False
        )
        step = {"step": "pseudo-outlines", "teacher": self.teacher, "score_min": self.score_min, "images": len(some)}
        Dataset(some, kept, self.name, (step,)).write(folder)
        return {"images": len(some), "of": len(images), "cells": int((kept.frame["score"] >= self.score_min).sum())}
