"""The steps of a recipe that put several models together, and those that judge and hand in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from cytolens.dataset import Dataset
from cytolens.problems import DatasetError, SettingError, listing, written
from cytolens.run.steps import Notify, Step
from cytolens.settings import checked
from cytolens.tasks.detect import Fusion


class FuseStep(Step):
    """Several predictions of the same images as one; see `cytolens fuse`."""

    members: tuple[Path, ...]
    method: Literal["wbf", "nms", "soft-nms", "blend"] = "wbf"
    settings: dict[str, Any] = Field(default_factory=dict)

    def check(self) -> None:
        """The settings are those of a fusion."""
        from cytolens.predict.fuse import FuseSettings

        checked(FuseSettings, self.settings, "settings")

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """What a prediction leaves."""
        from cytolens.predict.fuse import FuseSettings
        from cytolens.predict.members import fuse_folders

        settings = checked(FuseSettings, self.settings, "settings")
        summary = fuse_folders(self.members, folder, method=self.method, settings=settings, formats=("cells",))
        return {name: summary[name] for name in ("images", "cells")}


class BlendStep(Step):
    """Learn how much to trust each classifier, from what each says out of fold of the same boxes."""

    version: ClassVar[int] = 3
    truth: Path
    members: dict[str, tuple[Path, ...]] = Field(min_length=1, description="name → its predictions, one per fold")
    method: Literal["grid", "optuna", "equal"] = "grid"
    seed: int = 0

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """``blend.json`` with the weights and what they are worth, and the blended cells."""
        from cytolens.predict.blend import TuneSettings
        from cytolens.run.out_of_fold import answer_with, judge, read_out_of_fold

        given = read_out_of_fold(self.truth, self.members)
        names = list(self.members)
        settings = TuneSettings(method="optuna" if self.method == "optuna" else "grid", seed=self.seed)
        judged = judge(given, names, self.method, settings)
        answer = answer_with(given, names, judged)
        answer.cells.write_parquet(folder / "cells.parquet")
        with written(folder / "images.parquet") as part:
            given.images.frame.write_parquet(part)
        said = {
            "weights": dict(zip(names, [round(float(w), 6) for w in judged.weights], strict=True)),
            "temperature": round(answer.temperature, 4),
            "sure": answer.sure,
            "macro_f1_nested": judged.score,
            "macro_f1_in_sample": judged.in_sample,
            "cells": int(given.single.sum()),
        }
        with written(folder / "blend.json") as part:
            part.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        return said


class ThresholdStep(Step):
    """Choose the score from which a finding counts: the best strict macro-F1 from end to end, out of fold."""

    truth: Path
    found: Path = Field(description="named cells of all folds, such as a blend's")

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """``threshold.json``, the curve, and the cells counted so."""
        import polars as pl

        from cytolens.evaluate import EvaluateSettings, evaluate, read_found

        truth = Dataset.read(self.truth)
        cells, images = read_found(self.found)
        settings = EvaluateSettings(intervals=False, missing="ok")
        curve = []
        for percent in range(5, 96):  # the source's grid; ties go to the larger threshold
            counted = cells.with_columns(counted=(cells.scores() >= percent / 100).tolist())
            figures = evaluate(truth, counted, found_images=images, task="cytologia", settings=settings).figures
            curve.append((percent / 100, float(figures["strict_macro_f1"] or 0.0)))
        best = max(score for _, score in curve)
        threshold = max(at for at, score in curve if score >= best - 1e-12)
        pl.DataFrame(curve, schema=["threshold", "strict_macro_f1"], orient="row").write_csv(folder / "curve.csv")
        cells.with_columns(counted=(cells.scores() >= threshold).tolist()).write_parquet(folder / "cells.parquet")
        if images is not None:
            with written(folder / "images.parquet") as part:
                images.frame.write_parquet(part)
        said = {"threshold": threshold, "strict_macro_f1": best}
        with written(folder / "threshold.json") as part:
            part.write_text(json.dumps(said) + "\n", encoding="utf-8")
        return said


class EvaluateStep(Step):
    """Score findings against the truth; see `cytolens evaluate`."""

    truth: Path
    found: tuple[Path, ...]
    task: Literal["detection", "classification", "attributes", "segmentation", "cytologia", "sartorius"]
    settings: dict[str, Any] = Field(default_factory=dict)
    one_label: str | None = Field(default=None, description="detection of cells of whatever kind")
    where: str | None = Field(default=None, description='only some images, such as "fold = 0"')

    def check(self) -> None:
        """The settings are those of an evaluation."""
        from cytolens.evaluate import EvaluateSettings

        checked(EvaluateSettings, self.settings, "settings")

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """``scores.json`` and ``report.html``."""
        from cytolens.evaluate import EvaluateSettings, evaluate
        from cytolens.evaluate.report import write_report
        from cytolens.run.steps import as_one_label, findings

        truth = Dataset.read(self.truth)
        truth = truth if self.one_label is None else as_one_label(truth, self.one_label)
        cells, seen = findings(self.found, truth)
        looked_at = truth.images.where(image_id=seen)
        truth = truth.of_images(looked_at) if self.where is None else truth.of_images(looked_at).select(self.where)
        settings = checked(EvaluateSettings, self.settings, "settings")
        scores = evaluate(truth, cells, found_images=looked_at, task=self.task, settings=settings)
        write_report(scores, truth, cells, folder / "report.html")
        said = scores.to_json_dict()
        with written(folder / "scores.json") as part:
            part.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        wanted = (
            "score",
            "strict_macro_f1",
            "map50",
            "map",
            "pq",
            "recall",
            "accuracy",
            "macro_f1",
            "mean_macro_f1",
            "ece",
        )
        return {name: said[name] for name in wanted if said.get(name) is not None}


class CompareStep(Step):
    """Several answers on the same cells, with paired intervals of their differences."""

    version: ClassVar[int] = 2
    truth: Path
    answers: dict[str, tuple[Path, ...]] = Field(min_length=1)
    baseline: str
    title: str = "Comparison"

    def check(self) -> None:
        """The baseline is one of the answers."""
        if self.baseline not in self.answers:
            raise SettingError(f'the baseline "{self.baseline}" is none of the answers: {listing(self.answers)}')

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """``comparison.csv`` and ``comparison.html``."""
        from cytolens.evaluate.comparison import compare
        from cytolens.run.comparison_page import write_page
        from cytolens.run.out_of_fold import together

        truth = Dataset.read(self.truth)
        answers = {name: together(places, truth) for name, places in self.answers.items()}
        # Answers of one fold are compared on that fold; where they are of different images, comparing says so.
        looked_at = {image_id for _, images in answers.values() for image_id in images.ids}
        truth = truth.of_images(truth.images.where(image_id=sorted(looked_at)))
        compared = compare(truth, answers, self.baseline)
        compared.frame.write_csv(folder / "comparison.csv", float_precision=5)
        write_page(compared, self.title, folder / "comparison.html")
        best = compared.frame.sort("macro_f1", descending=True).row(0, named=True)
        return {"answers": len(answers), "cells": compared.cells, "best": best["name"], "macro_f1": best["macro_f1"]}


class PackStep(Step):
    """One bundle that predicts with all members."""

    detectors: tuple[Path, ...] = Field(min_length=1)
    classifiers: dict[str, tuple[Path, ...]] = Field(default_factory=dict, description="name in the blend → its folds")
    of_images: tuple[Path, ...] = Field(default=(), description="classifiers of whole images")
    blend: Path | None = None
    threshold: Path | None = None
    fusion: dict[str, Any] = Field(default_factory=dict)
    name: str = "ensemble"
    description: str = ""

    def check(self) -> None:
        """The settings of the fusion are such."""
        checked(Fusion, self.fusion, "fusion")

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """``bundle``, with its members beside it."""
        from cytolens.run.packing import pack_ensemble

        weights = _json(self.blend, "blend.json")
        counted = _json(self.threshold, "threshold.json")
        bundle = pack_ensemble(
            self.detectors,
            self.classifiers,
            folder / "bundle",
            name=self.name,
            description=self.description,
            weights=weights.get("weights", {}),
            sure=weights.get("sure"),
            temperature=weights.get("temperature"),
            threshold=counted.get("threshold"),
            fusion=self.fusion,
            of_images=self.of_images,
            cell_share=weights.get("cell_share", 1.0),
        )
        return {"hash": bundle.hash, "members": len(bundle.members)}


class SubmissionStep(Step):
    """The challenge's CSV."""

    outside = ("test",)
    found: Path
    test: Path = Field(description="the challenge's test.csv")
    use_expected_counts: bool = Field(
        default=False, description="an oracle: the number of boxes that test.csv gives away"
    )

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """``submission.csv``."""
        from cytolens.evaluate import read_found
        from cytolens.formats.cytologia_submission import read_submission, write_submission

        cells, images = read_found(self.found)
        if images is None:
            raise DatasetError(f"{self.found}: there is no images.parquet beside the cells")
        path = folder / "submission.csv"
        problems = write_submission(cells, images, self.test, path, use_expected_counts=self.use_expected_counts)
        for problem in problems:
            notify(str(problem))
        return {
            "rows": len(read_submission(path)),
            "expected_counts": "used" if self.use_expected_counts else "not used",
        }


# -- what they share ------------------------------------------------------------------------------


def _json(place: Path | None, name: str) -> dict[str, Any]:
    return {} if place is None else json.loads((place / name).read_text(encoding="utf-8"))
