"""The steps of a recipe that outline cells with region networks: soft outlines, cleaning, comparison, one bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from cytolens.bundle import Bundle
from cytolens.dataset import Dataset
from cytolens.problems import DatasetError, SettingError, did_you_mean, listing, written
from cytolens.run.steps import Notify, Step, findings
from cytolens.run.tune_masks import DOMAIN
from cytolens.settings import checked, overlaid
from cytolens.tasks.segment import SegmentOutput

_TUNED = "cleaning.json"


class SoftOutlinesStep(Step):
    """What region networks together say of a dataset's images, before any pixel is decided.

    With `members` each cell type has networks of its own: all of `first` tell the type of an image, and then those of
    that type outline it.
    """

    dataset: Path
    bundles: tuple[Path, ...] = Field(min_length=1, description="trained networks, in the order of `networks`")
    networks: tuple[str, ...] = Field(
        default=(), description="what they are called; of several folds each, the folds stand together"
    )
    members: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="cell type → its networks; none: all networks outline all images"
    )
    first: tuple[str, ...] = Field(default=(), description="networks that tell the type; none: all")
    where: str | None = Field(default=None, description='only some images, such as "fold = 0"')
    weights: dict[str, float] = Field(default_factory=dict, description="network → weight, 1 where not named")
    output: dict[str, Any] = Field(default_factory=dict, description="settings of segment_output")
    output_of: dict[str, dict[str, Any]] = Field(default_factory=dict, description="cell type → other settings")
    device: str = "cpu"
    jobs: int = Field(default=0, ge=0, description="images looked at at a time; 0: one per core")

    def check(self) -> None:
        """Settings are such, and networks that are named are there."""
        checked(SegmentOutput, self.output, "output")
        for name, settings in self.output_of.items():
            checked(SegmentOutput, overlaid(self.output, settings), f"output_of.{name}")
        check_networks(self.bundles, self.networks, [*self.members.values(), self.first, tuple(self.weights)])

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """``soft`` with a file per image, ``images.parquet``, and ``labels.json``."""
        from cytolens.predict.fields import image_rows
        from cytolens.predict.region_networks import RegionEnsemble
        from cytolens.predict.typed_ensembles import TypedEnsembles
        from cytolens.run.soft_predictions import write_predictions

        loaded = by_network(self.bundles, self.networks)
        shares = {one.name: self.weights[name] for name, some in loaded.items() if name in self.weights for one in some}

        def ensemble(names: Sequence[str], settings: Mapping[str, Any]) -> RegionEnsemble:
            some = [one for name in names for one in loaded[name]]
            output = checked(SegmentOutput, settings, "output")
            return RegionEnsemble(
                some, output, {one.name: shares[one.name] for one in some if one.name in shares}, device=self.device
            )

        labels = next(iter(loaded.values()))[0].labels
        of_type = {
            name: ensemble(names, overlaid(self.output, self.output_of.get(name, {})))
            for name, names in self.members.items()
        }
        together = TypedEnsembles(ensemble(self.first or tuple(loaded), self.output), labels, of_type)
        rows = image_rows([self.dataset], where=self.where)
        images, problems = write_predictions(together, rows, folder, self.jobs)
        if problems:
            notify(f"{len(problems)} of {len(rows)} images could not be read, first: {problems[0]}")
        return {"images": len(images), "failed": len(problems), "networks": len(self.bundles)}


class TuneMasksStep(Step):
    """Choose how masks are cleaned, on out-of-fold outlines; see `cytolens tune --soft`."""

    truth: Path
    soft: tuple[Path, ...] = Field(min_length=1, description="what `soft-outlines` left, one per fold")
    bundles: tuple[Path, ...] = Field(min_length=1, description="one of the networks, for its labels")
    output: dict[str, Any] = Field(default_factory=dict, description="settings of segment_output, before tuning")
    grid: dict[str, Any] = Field(default_factory=dict, description="values that are tried")

    def check(self) -> None:
        """The settings are such."""
        from cytolens.run.mask_grid import MaskGrid

        checked(SegmentOutput, self.output, "output")
        checked(MaskGrid, self.grid, "grid")

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """``cleaning.json`` with the settings, all and fold by fold; ``tune.json``, ``masks.csv``, ``masks.png``."""
        from cytolens.run.mask_grid import MaskGrid
        from cytolens.run.soft_predictions import SOFT, seen_images
        from cytolens.run.tune_masks import tune_masks

        bundle = Bundle.load(self.bundles[0])
        output = checked(SegmentOutput, self.output, "output")
        bundle = replace(bundle, info=bundle.info.model_copy(update={"segment_output": output, "scores": {}}))
        truth = Dataset.read(self.truth)
        truth = truth.of_images(truth.images.where(image_id=seen_images(self.soft).ids))
        grid = checked(MaskGrid, self.grid, "grid")
        tuned = tune_masks(bundle, [place / SOFT for place in self.soft], truth, folder, grid, notify)
        # One network with the settings of all would be taken for their ensemble, which is packed later.
        shutil.rmtree(folder / "bundle")
        said = {
            "output": tuned.output.model_dump(mode="json"),
            "unit": tuned.unit,
            "held_out": {str(part): one.model_dump(mode="json") for part, one in tuned.held_out.items()},
            "scores": {DOMAIN: tuned.bundle.info.scores[DOMAIN]},
        }
        with written(folder / _TUNED) as part:
            part.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        for note in tuned.notes:
            notify(note)
        return {
            "images": tuned.images,
            "score_before": tuned.before,
            "score_nested": tuned.nested,
            "score_in_sample": tuned.in_sample,
        }


class CleanOutlinesStep(Step):
    """Cells without overlaps from soft outlines."""

    soft: tuple[Path, ...] = Field(min_length=1, description="what `soft-outlines` left")
    tuned: Path | None = Field(default=None, description="what `tune-masks` left; none: the settings of `output`")
    output: dict[str, Any] = Field(default_factory=dict, description="settings of segment_output, where none is tuned")
    held_out: bool = Field(default=False, description="images of each fold by what is best on the other folds")
    fold: int | None = Field(default=None, ge=0, description="all images by what is best without this fold")
    source: str = "ensemble"

    def check(self) -> None:
        """The settings are such, and fit each other."""
        checked(SegmentOutput, self.output, "output")
        if self.tuned is None and (self.held_out or self.fold is not None):
            raise SettingError("held_out and fold choose among tuned settings; give tuned, too")
        if self.held_out and self.fold is not None:
            raise SettingError("held_out and fold exclude each other; give one of them")

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """``cells.parquet`` and ``images.parquet``, as a prediction leaves them."""
        from cytolens.run.soft_predictions import cleaned_cells, seen_images

        images = seen_images(self.soft)
        output, apart = checked(SegmentOutput, self.output, "output"), {}
        if self.tuned is not None:
            said = json.loads((self.tuned / _TUNED).read_text(encoding="utf-8"))
            output = SegmentOutput.model_validate(said["output"])
            apart = {part: SegmentOutput.model_validate(one) for part, one in said["held_out"].items()}
            if (self.held_out or self.fold is not None) and said["unit"] != "fold":
                raise DatasetError(f"{self.tuned}: was tuned on images without folds, so nothing is held out")
        keys = dict(images.frame.select("image_id", "fold").iter_rows()) if self.held_out else {}

        def reading(image_id: str) -> SegmentOutput:
            if not self.held_out and self.fold is None:
                return output
            key = self.fold if self.fold is not None else keys[image_id]
            wanted = str(image_id if key is None else key)
            if wanted not in apart:
                raise DatasetError(f"{self.tuned}: nothing was tuned without fold {wanted}; there are {listing(apart)}")
            return apart[wanted]

        cells = cleaned_cells(self.soft, images, reading, self.source)
        cells.write_parquet(folder / "cells.parquet")
        with written(folder / "images.parquet") as part:
            images.frame.write_parquet(part)
        return {"images": len(images), "cells": len(cells), "counted": int(cells.frame["counted"].sum())}


class CompareOutlinesStep(Step):
    """An ensemble's outlines beside those of its members, with paired intervals of the differences."""

    truth: Path
    ensemble: tuple[Path, ...]
    members: tuple[Path, ...] = Field(
        min_length=1, description="answers of single networks, in the order of `networks`"
    )
    networks: tuple[str, ...] = Field(min_length=1, description="what they are called")
    more: dict[str, tuple[Path, ...]] = Field(default_factory=dict, description="further answers by name")
    title: str = "What the ensemble is worth, out of fold"

    def check(self) -> None:
        """Each network has its answers."""
        check_networks(self.members, self.networks, [])
        if taken := {"ensemble", *self.more} & set(self.networks):
            raise SettingError(f"two answers have the same name: {listing(taken)}")

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """``comparison.csv``, ``comparison.json`` and ``comparison.html``."""
        from cytolens.evaluate.outline_comparison import compare_outlines
        from cytolens.run.outline_comparison_page import gain_of, write_page

        truth = Dataset.read(self.truth)
        each = len(self.members) // len(self.networks)
        answers = {"ensemble": self.ensemble} | {
            name: self.members[at * each : (at + 1) * each] for at, name in enumerate(self.networks)
        }
        told = {name: findings(places, truth, relabel=False) for name, places in (answers | self.more).items()}
        looked_at = truth.images.where(image_id=sorted({image_id for _, seen in told.values() for image_id in seen}))
        compared = compare_outlines(
            truth.of_images(looked_at),
            {name: (cells, truth.images.where(image_id=seen)) for name, (cells, seen) in told.items()},
            "ensemble",
        )
        # The better member is the better one of those that the ensemble is made of.
        gain = gain_of(compared, self.networks)
        compared.frame.write_csv(folder / "comparison.csv", float_precision=5)
        write_page(compared, gain, self.title, folder / "comparison.html")
        said = {"images": compared.images, "interval_unit": compared.unit, "groups": compared.groups, **gain}
        with written(folder / "comparison.json") as part:
            part.write_text(json.dumps(said | {"notes": compared.notes}, indent=1) + "\n", encoding="utf-8")
        for note in compared.notes:
            notify(note)
        return said


class PackOutlinersStep(Step):
    """One bundle that outlines cells with all members together."""

    bundles: tuple[Path, ...] = Field(min_length=1, description="trained networks, in the order of `networks`")
    networks: tuple[str, ...] = ()
    members: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="cell type → its networks; none: all networks are packed"
    )
    set: str = Field(default="", description="cell type whose networks are packed, where types have their own")
    weights: dict[str, float] = Field(default_factory=dict, description="network → weight, 1 where not named")
    tuned: Path | None = Field(default=None, description="what `tune-masks` left")
    output: dict[str, Any] = Field(default_factory=dict, description="settings of segment_output, where none is tuned")
    output_of: dict[str, dict[str, Any]] = Field(default_factory=dict, description="cell type → other settings")
    name: str = "outliners"
    description: str = ""

    def check(self) -> None:
        """Settings are such, and networks that are named are there."""
        checked(SegmentOutput, overlaid(self.output, self.output_of.get(self.set, {})), "output")
        check_networks(self.bundles, self.networks, [*self.members.values(), tuple(self.weights)])
        if self.members and self.set not in self.members:
            raise SettingError(f'set = "{self.set}" has no networks; members names {listing(self.members)}')

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """``bundle``, with its members beside it."""
        from cytolens.bundle import rewrite
        from cytolens.run.packing import pack_outliners

        loaded = by_network(self.bundles, self.networks)
        chosen = {name: loaded[name] for name in self.members.get(self.set, tuple(loaded))}
        said = {} if self.tuned is None else json.loads((self.tuned / _TUNED).read_text(encoding="utf-8"))
        bundle = pack_outliners(
            [one for some in chosen.values() for one in some],
            folder / "bundle",
            name=self.name,
            description=self.description,
            weights={
                one.name: self.weights[name] for name, some in chosen.items() if name in self.weights for one in some
            },
            output=checked(
                SegmentOutput, overlaid(said.get("output", self.output), self.output_of.get(self.set, {})), "output"
            ),
        )
        if said:
            bundle = rewrite(bundle, bundle.info.model_copy(update={"scores": said["scores"]}))
        return {"hash": bundle.hash, "members": len(bundle.members)}


class SartoriusSubmissionStep(Step):
    """The answer to Sartorius' cell instance segmentation; see `cytolens export --format sartorius_submission`."""

    found: tuple[Path, ...] = Field(min_length=1)

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """``submission.csv``."""
        from cytolens.evaluate import read_found
        from cytolens.formats.sartorius_submission import write_submission

        parts = [read_found(place) for place in self.found]
        seen = [images for _, images in parts if images is not None]
        if len(seen) < len(parts):
            raise DatasetError(f"{listing(map(str, self.found))}: there is no images.parquet beside the cells")
        cells = parts[0][0].concat(*(one for one, _ in parts[1:]))
        images = seen[0].concat(*seen[1:])
        for problem in write_submission(cells, images, folder / "submission.csv"):
            notify(str(problem))
        return {"images": len(images), "cells": int(cells.frame["counted"].sum())}


# -- what they share ------------------------------------------------------------------------------


def check_networks(places: Sequence[Path], networks: Sequence[str], named: Sequence[Sequence[str]]) -> None:
    """Every network has as many results as the others, and those that are named are among them.

    Raises:
        SettingError: they do not fit.
    """
    if len(set(networks)) < len(networks):
        raise SettingError(f"networks names one twice: {listing(networks, 20)}")
    if networks and len(places) % len(networks):
        raise SettingError(
            f"{len(places)} results for {len(networks)} networks ({listing(networks, 20)}); each needs as many as the "
            "others: give the results of one step, and the list that its `each` has"
        )
    known = networks or [str(number) for number in range(len(places))]
    for name in (name for some in named for name in some):
        if name not in known:
            hint = did_you_mean(name, known)
            raise SettingError(f'no network "{name}". {hint + " " if hint else ""}Networks: {listing(known, 20)}')


def by_network(places: Sequence[Path], networks: Sequence[str]) -> dict[str, list[Bundle]]:
    """The trained bundles by network; without names each is one of its own, called by its number."""
    names = networks or [str(number) for number in range(len(places))]
    each = len(places) // len(names)
    return {name: [Bundle.load(one) for one in places[at * each : (at + 1) * each]] for at, name in enumerate(names)}
