"""The steps of a recipe that train a model, and that look at images with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cytolens.dataset import Dataset
from cytolens.problems import DatasetError
from cytolens.run.steps import Notify, Step, as_one_label


class TrainStep(Step):
    """Train a model; see `cytolens train`."""

    resumes = True
    outside = ("recipe", "settings.weights")

    @classmethod
    def place(cls, name: str, given: str) -> Path | None:
        """Public weights are known by their name."""
        return Path(given) if name != "settings.weights" or Path(given).exists() else None

    task: Literal["detect", "classify", "segment"]
    data: tuple[Path, ...]
    recipe: Path | None = None
    start: Path | None = Field(default=None, description="a run whose weights are gone on from")
    one_label: str | None = Field(default=None, description="detect: all cells are taught under this one name")
    settings: dict[str, Any] = Field(default_factory=dict)

    def check(self) -> None:
        """The settings are those of the task."""
        from cytolens.run.training import training_settings

        training_settings(self.task, self.recipe, tables=self.settings)

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """A run folder with a bundle."""
        from cytolens.run.training import prepared, train, training_settings

        settings = training_settings(self.task, self.recipe, tables=self.settings)
        if self.start is not None:
            settings = settings.model_copy(update={"weights": str(self.start / "weights.safetensors")})
        datasets = [Dataset.read(place) for place in self.data]
        if self.one_label is not None:
            datasets = [as_one_label(dataset, self.one_label) for dataset in datasets]
        dataset = prepared(datasets, settings, None, notify)
        result = train(settings, dataset, folder, resume=True, notify=notify)
        return {"bundle": result.bundle.hash, **result.bundle.info.training["result"]}


class PredictStep(Step):
    """Look at a dataset's images with a bundle; see `cytolens predict`."""

    outside = ("bundle",)

    @classmethod
    def place(cls, name: str, given: str) -> Path | None:
        """A bundle, shipped or not, is known by its description, which holds the hashes of its files."""
        from cytolens.bundle import find

        return find(given) / "bundle.json"

    dataset: Path
    bundle: Path
    where: str | None = Field(default=None, description='only some images, such as "fold = 0"')
    boxes: tuple[Path, ...] = Field(default=(), description="what was found there; only named, not looked for")
    jobs: int = 0
    tta: Literal["bundle", "none", "flip", "flips", "all"] = "bundle"

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """What `cytolens predict --format cells` leaves."""
        from cytolens.bundle import Bundle
        from cytolens.evaluate import read_found
        from cytolens.predict.fields import image_rows, predict_images
        from cytolens.predict.outputs import write_outputs
        from cytolens.predict.pipeline import Predictor, PredictSettings

        settings = PredictSettings(jobs=self.jobs, tta=self.tta)
        predictor = Predictor(Bundle.load(self.bundle), settings)
        rows = image_rows([self.dataset], where=self.where)
        given = None
        if self.boxes:
            parts = [read_found(place)[0] for place in self.boxes]
            given = parts[0].concat(*parts[1:])
        prediction = predict_images(predictor, rows, boxes=given)
        if prediction.failed:
            first = f"{len(prediction.failed)} of {len(rows)} images could not be read, first: {prediction.failed[0]}"
            if len(prediction.failed) == len(rows):
                raise DatasetError(first)
            notify(first)
        summary = write_outputs(prediction, predictor.bundle, folder, ("cells",), settings)
        return {name: summary[name] for name in ("images", "failed", "cells", "ms_per_image")}
