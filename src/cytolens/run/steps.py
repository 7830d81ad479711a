"""What a recipe's steps can do: one settings model each, whose `run` fills a folder.

A step is a pure function of its settings and of the folders and files that they name; whatever else could matter (time,
other processes, the order of files) must not. Where it has to give another result for the same settings, its `version`
goes up, so that results of the old one are not taken for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.problems import DatasetError, SettingError, listing

Notify = Callable[[str], None]


class Step(BaseModel, ABC):
    """One thing that can be done.

    Attributes:
        version: of what it does with the same settings.
        outside: settings that name files which no step made ("a.b" is one inside a table); their content is part of
            the key.
        resumes: whether a second attempt goes on with what a stopped one left in the folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: ClassVar[int] = 1
    outside: ClassVar[tuple[str, ...]] = ()
    resumes: ClassVar[bool] = False

    @classmethod
    def place(cls, name: str, given: str) -> Path | None:
        """The file or folder that a setting of `outside` means; None: it is a name that stands for itself."""
        return Path(given)

    def check(self) -> None:
        """Look at what the types of the settings do not say, before anything is done.

        Raises:
            CytolensError: a setting is not allowed.
        """

    @abstractmethod
    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """Fill the folder; what it returns is shown beside the step, and kept in ``done.json``."""


# -- data -----------------------------------------------------------------------------------------


class ImportStep(Step):
    """Read annotations of a foreign format; see `cytolens import`."""

    outside = ("source", "images")
    _taken: ClassVar[tuple[str, ...]] = ("stain", "scanner", "magnification")
    source: Path
    format: str = Field(default="auto", description="of `cytolens import`; dataset: a dataset of ours, as it is")
    images: Path | None = None
    labels: str | None = Field(default=None, description="a shipped label set, such as cytologia")
    flat: bool = Field(default=False, description="labels exclude each other, even where one is the other's kind")
    name: str | None = None
    split: str | None = None
    group_pattern: str | None = None
    columns: dict[str, str] | None = None
    complete_for: tuple[str, ...] | None = None
    where: str | None = Field(default=None, description="a condition on the images, such as width_px < 500")
    allow_missing_images: bool = False
    size_two: Literal["large", "ignore"] = "large"
    sample_group: Literal["well", "vessel"] = Field(default="well", description="the group that a sample id gives")
    unsqueeze: str = Field(default="", description="W:H, the proportion that squeezed images had; empty: none were")
    licence: str = ""
    stain: str | None = None
    scanner: str | None = Field(default=None, description="microscope, with its camera, of all images")
    magnification: str | None = None

    def check(self) -> None:
        """The proportion is one."""
        from cytolens.formats.unsqueeze import parsed_proportion

        if self.unsqueeze:
            parsed_proportion(self.unsqueeze)

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """A dataset."""
        from cytolens.formats.unsqueeze import parsed_proportion, unsqueezed

        given, problems = self._given()
        given = given.taken_with(**self.model_dump(include=set(self._taken)))
        dataset = given if self.where is None else given.select(self.where)
        if self.where is not None and not len(dataset.images):
            raise DatasetError(f'no image of {self.source} meets "{self.where}"')
        if problems:
            notify(f"{problems} problems in {self.source}; cytolens check shows them")
        if self.unsqueeze:
            dataset = unsqueezed(dataset, parsed_proportion(self.unsqueeze), folder / "images")
        dataset.write(folder)
        return sizes(dataset) | {"problems": problems}

    def _given(self) -> tuple[Dataset, int]:
        """What the source holds, and how many problems were seen in it."""
        from cytolens import formats
        from cytolens.labels import LabelSet

        if self.format == "dataset":
            return Dataset.read(self.source), 0
        options = self.model_dump(exclude={"source", "format", "labels", "flat", "where", "unsqueeze", *self._taken})
        labels = None if self.labels is None else LabelSet.shipped(self.labels)
        labels = labels.flat() if labels is not None and self.flat else labels
        given = formats.read(self.source, self.format, formats.ReadOptions(labels=labels, **options))
        return given.dataset, len(given.problems)


class ImagesStep(Step):
    """Images without annotations, such as those of a test."""

    outside = ("folder", "listed")
    folder: Path
    listed: Path | None = Field(default=None, description="CSV with the file names that are wanted; None: all")
    column: str = "NAME"
    most: int | None = Field(default=None, ge=1, description="so many of them, the first; None: all")
    name: str = "images"

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """A dataset of images without cells."""
        import polars as pl

        from cytolens.images import find_images
        from cytolens.labels import LabelSet

        paths = {path.relative_to(self.folder).as_posix(): path for path in find_images([self.folder])}
        if self.listed is not None:
            table = pl.read_csv(self.listed, infer_schema=False)
            if self.column not in table.columns:
                raise DatasetError(f'{self.listed}: no column "{self.column}"; its columns: {listing(table.columns)}')
            wanted = table[self.column].unique(maintain_order=True).to_list()
            if lost := [name for name in wanted if name not in paths]:
                raise DatasetError(
                    f"{self.folder}: {len(lost)} images that {self.listed} names are not there: {listing(lost, 5)}"
                )
            paths = {name: paths[name] for name in wanted}
        images = Images.of(
            [{"image_id": name, "path": str(path.resolve())} for name, path in paths.items()][: self.most]
        )
        dataset = Dataset(images, Cells.empty(LabelSet.of(["cell"])), self.name)
        dataset.write(folder)
        return sizes(dataset)


class RepairStep(Step):
    """Mend what can be mended without a person; see `cytolens repair`."""

    dataset: Path

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """A dataset, and the changes."""
        from cytolens.prepare.repair import repair, write_changes

        mended, changes = repair(Dataset.read(self.dataset))
        write_changes(changes, folder)
        mended.write(folder)
        return sizes(mended) | {"changes": len(changes)}


class DuplicatesStep(Step):
    """Put images that show one picture into one group; see `cytolens duplicates`."""

    dataset: Path
    drop: bool = Field(default=False, description="keep the first of each group only")

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """A dataset, and the groups."""
        import polars as pl

        from cytolens.prepare.duplicates import DuplicateSettings, find_duplicates, with_groups

        dataset = Dataset.read(self.dataset)
        found = find_duplicates(dataset.images, DuplicateSettings(), None)
        grouped = with_groups(dataset, found)
        copies = [image for group in found.groups for image in sorted(group)[1:]]
        if self.drop:
            grouped = grouped.of_images(Images(grouped.images.frame.filter(~pl.col("image_id").is_in(copies))))
        grouped.write(folder)
        return sizes(grouped) | {"duplicates": len(copies)}


class SplitStep(Step):
    """Balanced, grouped folds or parts, or parts as a data set was published with; see `cytolens split`."""

    dataset: Path
    folds: int | None = Field(default=None, ge=2)
    shares: dict[str, float] = Field(default_factory=dict, description="parts, such as { train = 0.8, test = 0.2 }")
    published: str = Field(default="", description="a published division by patient, such as leukemia_attri")
    seed: int = 0

    def check(self) -> None:
        """Exactly one of them is asked for."""
        if sum(map(bool, (self.folds, self.shares, self.published))) != 1:
            raise SettingError("a split has one of folds = 4, shares = { train = 0.8, … }, published = leukemia_attri")

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """A dataset with folds or parts."""
        from cytolens.prepare import split

        dataset = Dataset.read(self.dataset)
        if self.published:
            done = split.published(dataset, self.published)
        elif self.folds is None:
            done = split.parts(dataset, self.shares, self.seed)
        else:
            done = split.folds(dataset, self.folds, self.seed)
        done.dataset.write(folder)
        done.balance.write_csv(folder / "balance.csv")
        if not done.grouped:
            notify("no image stands in a group: patients and slides may stand on both sides of a fold")
        return sizes(done.dataset) | {"worst_deviation": round(done.worst(), 4)}


class FractionStep(Step):
    """A balanced part of a dataset, as `cytolens split --fractions` draws it."""

    dataset: Path
    share: float = Field(gt=0, le=1)
    seed: int = 0

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """A smaller dataset."""
        from cytolens.prepare import split

        part = split.fractions(Dataset.read(self.dataset), [self.share], self.seed)[self.share]
        part.write(folder)
        return sizes(part)


class BackgroundsStep(Step):
    """Fields whose one cell is painted over; each stays in the fold of its source."""

    version: ClassVar[int] = 2

    dataset: Path
    found: tuple[Path, ...] = Field(default=(), description="what detectors found there; none: annotated boxes count")
    seed: int = 0

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """A dataset of images without cells."""
        import shutil

        from cytolens.prepare.backgrounds import backgrounds

        dataset = Dataset.read(self.dataset)
        # In the detector's own words: without a name, red cells would be cells of the dataset's kinds.
        found = findings(self.found, dataset, relabel=False)[0] if self.found else None
        place = folder / "dataset"
        shutil.rmtree(place, ignore_errors=True)
        made, problems = backgrounds(dataset, place, seed=self.seed, found=found)
        made.write(folder)
        return {"images": len(made.images), "skipped": len(problems)}


class NoiseStep(Step):
    """Find annotations that out-of-fold findings contradict; see `cytolens noise`."""

    dataset: Path
    found: tuple[Path, ...]
    how: Literal["ignore", "leave out", "keep"] = "ignore"
    kinds: tuple[str, ...] = ("box", "not found", "not annotated")
    most: float = Field(default=0.02, gt=0, le=1, description="share of the annotations that each kind may doubt")
    confident: float = 0.5

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """A dataset, the doubts, and the edits that would mend them."""
        from cytolens.prepare.noise import NoiseSettings, cleaned, find_noise

        dataset = Dataset.read(self.dataset)
        found, seen = findings(self.found, dataset)
        doubts = find_noise(dataset, found, NoiseSettings(most=self.most, confident=self.confident), seen)
        doubts.frame.write_csv(folder / "doubts.csv")
        doubts.edits(dataset).write_csv(folder / "edits.csv")
        result = dataset if self.how == "keep" else cleaned(dataset, doubts, self.how, self.kinds)
        result.write(folder)
        return sizes(result) | {"doubts": doubts.counts}


class CropsStep(Step):
    """The boxes that detectors found, each with the name of the cell that it is."""

    dataset: Path
    found: tuple[Path, ...]
    background: str | None = Field(default=None, description="label of findings that are no cell; none: left out")

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """A dataset whose cells are the findings."""
        from cytolens.prepare.crops import labelled

        dataset = Dataset.read(self.dataset)
        if self.background is not None:
            dataset = with_label(dataset, self.background)
        made = labelled(dataset, findings(self.found, dataset, relabel=False)[0], background=self.background)
        made.write(folder)
        return sizes(made) | {"annotated": len(dataset.cells)}


class NameLabelStep(Step):
    """The same dataset in labels that have one more name, such as that of what is no cell."""

    dataset: Path
    label: str

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """A dataset."""
        made = with_label(Dataset.read(self.dataset), self.label)
        made.write(folder)
        return sizes(made)


class PseudoLabelsStep(Step):
    """Images without annotations, named by a teacher where it is sure.

    The teacher of a fold is the model that did not learn from it; so no cell is judged by a model that learnt from its
    own name. What is judged with the help of the images of a test is transductive, and is to be called so.
    """

    found: Path = Field(description="named cells of a prediction of the images")
    confidence: float = Field(default=0.92, gt=0, lt=1, description="box score times largest probability, at least")
    round: int = Field(default=1, ge=1)
    name: str = "pseudo"

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """A dataset of the images with exactly one counted cell, named surely enough."""
        import polars as pl

        from cytolens.evaluate import read_found

        cells, images = read_found(self.found)
        if images is None:
            raise DatasetError(f"{self.found}: there is no images.parquet beside the cells")
        counted = cells.filter(pl.col("counted"))
        alone = counted.filter(pl.len().over("image_id") == 1)
        best = np.nan_to_num(alone.probabilities()).max(axis=1, initial=0.0)
        sure = alone.scores() * best
        kept = alone.filter(sure >= self.confidence)
        leaf = kept.probabilities().argmax(axis=1) if len(kept) else np.zeros(0, int)
        source = f"pseudo:{self.round}"
        frame = kept.frame.with_columns(
            label=pl.Series("label", [kept.labels.leaves[i] for i in leaf], kept.frame.schema["label"]),
            source=pl.lit(source),
            refer=pl.lit(False),
        )
        step = {"step": "pseudo-labels", "round": self.round, "confidence": self.confidence, "kept": len(kept)}
        some = Images(images.frame.filter(pl.col("image_id").is_in(frame["image_id"].implode())))
        bare = some.with_columns(fold=pl.Series("fold", [None] * len(some), some.frame.schema["fold"]))
        Dataset(bare, Cells(frame, kept.labels), self.name, (step,)).write(folder)
        return {"images": len(bare), "of": len(images)}


# -- what several steps need ----------------------------------------------------------------------


def findings(places: tuple[Path, ...], dataset: Dataset, relabel: bool = True) -> tuple[Cells, list[str]]:
    """What several predictions found, as one table, and the images that they looked at.

    Raises:
        SettingError: two of them looked at the same image.
    """
    from cytolens.evaluate import read_found

    parts, seen = [], []
    for place in places:
        cells, images = read_found(place)
        # A detector of cells of whatever kind says "cell", which is no kind: its findings are unnamed.
        parts.append(cells.relabel(dataset.labels, missing="null") if relabel else cells)
        seen += images.ids if images is not None else cells.frame["image_id"].unique(maintain_order=True).to_list()
    if len(set(seen)) < len(seen):
        raise SettingError("two of the predictions looked at the same image; fuse them first, or give one per fold")
    if not parts:
        return Cells.empty(dataset.labels), []
    return parts[0].concat(*parts[1:]), seen


def as_one_label(dataset: Dataset, label: str) -> Dataset:
    """The dataset with all cells under one name: for detectors that find cells whatever their kind."""
    from dataclasses import replace

    import polars as pl

    from cytolens.labels import LabelSet

    labels = LabelSet.of([label])
    frame = dataset.cells.frame.with_columns(label=pl.lit(None, pl.Enum(dataset.labels.names)))
    bare = Cells(frame, dataset.labels).relabel(labels)
    named = bare.frame.with_columns(label=pl.lit(label).cast(pl.Enum(labels.names)))
    images = dataset.images.with_columns(
        complete_for=pl.Series("complete_for", [None] * len(dataset.images), pl.List(pl.String))
    )
    return replace(dataset, cells=Cells(named, labels), images=images)


def with_label(dataset: Dataset, label: str) -> Dataset:
    """The dataset in a label set that has one more name."""
    from dataclasses import replace

    import polars as pl

    from cytolens.labels import LabelSet

    wider = dataset.relabel(dataset.labels.joined(LabelSet.of([label])))
    # The new name is that of no cell, so an image that was annotated completely still is.
    complete = [
        None if before is None else now
        for before, now in zip(
            dataset.images.frame["complete_for"].to_list(), wider.images.frame["complete_for"].to_list(), strict=True
        )
    ]
    return replace(wider, images=wider.images.with_columns(complete_for=pl.Series(complete, dtype=pl.List(pl.String))))


def sizes(dataset: Dataset) -> dict[str, Any]:
    """What a step that leaves a dataset says of it."""
    return {"images": len(dataset.images), "cells": len(dataset.cells)}
