"""Steps of a recipe about data described by attributes: looked over before a training, written out after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from cytolens.dataset import Dataset
from cytolens.problems import DatasetError, listing, written
from cytolens.run.steps import Notify, Step


class CheckStep(Step):
    """Look for what is wrong in a dataset, and hand it on as it is; see `cytolens check`."""

    dataset: Path
    stop: bool = Field(default=True, description="errors in the data end the run")

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """The dataset, and ``problems.json``."""
        from cytolens.prepare.check import check

        dataset = Dataset.read(self.dataset)
        problems = check(dataset)
        with written(folder / "problems.json") as part:
            part.write_text(json.dumps(problems.to_dicts(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        errors = [problem for problem in problems if problem.severity == "error"]
        if errors and self.stop:
            raise DatasetError(
                f"{len(errors)} errors in {dataset.name}: {listing(map(str, errors), 3)}. Mend them (cytolens repair), "
                "or set stop = false for this step"
            )
        dataset.write(folder)
        return {"images": len(dataset.images), "problems": len(problems), "errors": len(errors)}


class AttributesCsvStep(Step):
    """Findings with their attributes as tables; see `cytolens export --format attributes_csv`."""

    found: Path
    original: bool = Field(default=False, description="also in the columns of LeukemiaAttri's program")

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """``predictions.csv``, and ``predictions-original.csv`` where it is asked for."""
        from cytolens.evaluate import read_found
        from cytolens.formats.attribute_csv import write_predictions

        cells, _ = read_found(self.found)
        for problem in write_predictions(cells, folder / "predictions.csv", original=False):
            notify(str(problem))
        if self.original:
            write_predictions(cells, folder / "predictions-original.csv", original=True)
        return {"cells": int(cells.frame["counted"].sum())}
