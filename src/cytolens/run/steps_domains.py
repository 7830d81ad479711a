"""The steps of a recipe that look across microscopes: recoloured copies, adaptation, the matrix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from cytolens.dataset import Dataset
from cytolens.problems import SettingError, listing, written
from cytolens.run.steps import Notify, Step
from cytolens.settings import checked


class RecolourStep(Step):
    """Copies of images under other dyes and another lamp."""

    dataset: Path
    settings: dict[str, Any] = Field(default_factory=dict)
    name: str = "recoloured"

    def check(self) -> None:
        """The settings are those of a recolouring."""
        from cytolens.prepare.recolour import Recolour

        checked(Recolour, self.settings, "settings")

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """A dataset with its images."""
        from cytolens.prepare.recolour import Recolour, recoloured

        settings = checked(Recolour, self.settings, "settings")
        made = recoloured(Dataset.read(self.dataset), folder / "images", settings, self.name)
        made.write(folder)
        return {"images": len(made.images), "cells": len(made.cells)}


class AdaptStep(Step):
    """Fit a trained model to another microscope's pictures without labels; see `cytolens adapt`."""

    model: Path = Field(description="a training, or a bundle with its weights")
    data: Path = Field(description="the dataset with pictures of the target; its labels are not looked at")
    where: str | None = Field(default=None, description="only some of its images")
    boxes: tuple[Path, ...] = Field(default=(), description="classifiers: what was found there; none: its own boxes")
    method: Literal["batch-norm", "mean-teacher"] = "batch-norm"
    settings: dict[str, Any] = Field(default_factory=dict)

    def check(self) -> None:
        """The settings are those of an adaptation."""
        self._how()

    def _how(self) -> Any:
        from cytolens.train.adapt_settings import AdaptSettings

        if "method" in self.settings:
            raise SettingError("settings: method stands beside the settings, not in them")
        return checked(AdaptSettings, {**self.settings, "method": self.method}, "settings")

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """A run folder with a bundle."""
        import shutil

        from cytolens.bundle import Bundle
        from cytolens.evaluate import read_found
        from cytolens.run.adapting import adapt

        shutil.rmtree(folder / "bundle", ignore_errors=True)  # what a stopped attempt left
        dataset = Dataset.read(self.data)
        dataset = dataset if self.where is None else dataset.select(self.where)
        parts = [read_found(place)[0] for place in self.boxes]
        found = parts[0].concat(*parts[1:]) if parts else None
        result = adapt(Bundle.load(self.model), dataset, folder, self._how(), found, notify)
        return {"bundle": result.bundle.hash, **result.bundle.info.training["adapted"]["seen"]}


class DomainsStep(Step):
    """Every model on every domain: figures with intervals, and what was gained over a baseline."""

    version: ClassVar[int] = 2  # 2: intervals of what was gained
    truth: dict[str, Path] = Field(min_length=1, description="name → dataset to judge on")
    found: dict[str, dict[str, tuple[Path, ...]]] = Field(
        min_length=1, description="model → name of the dataset → what it found there"
    )
    baseline: str
    task: Literal["detection", "classification", "attributes"] = "detection"
    figures: tuple[str, ...] = Field(default=("map50",), min_length=1)
    by: tuple[str, ...] = Field(default=(), description="columns that tell domains of a dataset apart, such as scanner")
    settings: dict[str, Any] = Field(default_factory=dict)
    title: str = "Across microscopes"

    def check(self) -> None:
        """Names fit together, and the settings are those of an evaluation."""
        from cytolens.evaluate import EvaluateSettings

        if checked(EvaluateSettings, self.settings, "settings").missing != "error":
            raise SettingError('settings.missing: only "error" is allowed; models are compared on the same images')
        if self.baseline not in self.found:
            raise SettingError(f'the baseline "{self.baseline}" is none of the models: {listing(self.found)}')
        for model, by_name in self.found.items():
            if strange := [name for name in by_name if name not in self.truth]:
                raise SettingError(f'found.{model}: "{strange[0]}" is no dataset of truth: {listing(self.truth)}')

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """``domains.json``, ``domains.csv`` and ``domains.html``."""
        from cytolens.evaluate import EvaluateSettings, Scores, evaluate
        from cytolens.evaluate.domains import domain_matrix, parts_by_domain
        from cytolens.run.domains_page import write_page
        from cytolens.run.out_of_fold import together

        settings = checked(EvaluateSettings, self.settings, "settings")
        parts = parts_by_domain({name: Dataset.read(place) for name, place in self.truth.items()}, self.by)
        scored: dict[str, dict[str, Scores]] = {}
        for model, by_name in self.found.items():
            scored[model] = {}
            for domain, (name, truth) in parts.items():
                if name not in by_name:
                    continue
                cells, images = together(by_name[name], truth)
                cells = cells.filter(cells.frame["image_id"].is_in(truth.images.ids).to_numpy())
                scores = evaluate(truth, cells, found_images=images, task=self.task, settings=settings)
                scored[model][domain] = scores
        counts = {domain: len(truth.images) for domain, (_, truth) in parts.items()}
        matrix = domain_matrix(scored, self.figures, self.baseline, counts)
        matrix.frame.write_csv(folder / "domains.csv", float_precision=5)
        said = {
            "baseline": matrix.baseline, "unit": matrix.unit, "models": matrix.models, "domains": counts,
            "figures": matrix.figures, "rows": matrix.frame.to_dicts(),
        }  # fmt: skip
        with written(folder / "domains.json") as part:
            part.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write_page(matrix, self.title, folder / "domains.html")
        return {"models": len(matrix.models), "domains": len(matrix.domains), "page": str(folder / "domains.html")}
