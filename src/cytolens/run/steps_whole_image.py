"""The steps of a recipe that ask classifiers of whole images, and blend what they say into the cell's name.

An image with one cell shows it with all of its surroundings; there a classifier of whole images has a say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from cytolens.dataset import Dataset
from cytolens.problems import DatasetError, Problems, written
from cytolens.run.steps import Notify, Step


class ImageSharesStep(Step):
    """What a classifier of whole images says of each, as the probability that each kind is in it."""

    dataset: Path
    bundle: Path
    where: str | None = Field(default=None, description='only some images, such as "fold = 0"')

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """``shares.parquet``: image_id and one column per kind."""
        import polars as pl

        from cytolens.bundle import Bundle
        from cytolens.image_files import load_image
        from cytolens.predict.ensemble import image_shares
        from cytolens.predict.session import Classifier, session
        from cytolens.problems import ImageError

        bundle = Bundle.load(self.bundle)
        classifier = Classifier(session(bundle))
        dataset = Dataset.read(self.dataset)
        dataset = dataset if self.where is None else dataset.select(self.where)
        rows, problems = [], Problems()
        for image_id, path in dataset.images.frame.select("image_id", "path").iter_rows():
            try:
                shares = image_shares(bundle, load_image(path).pixels, classifier=classifier)
            except ImageError as error:
                problems.extend([error.problem])
                continue
            rows.append([image_id, *shares.tolist()])
        schema = {"image_id": pl.String, **dict.fromkeys(bundle.labels.leaves, pl.Float32)}
        with written(folder / "shares.parquet") as part:
            pl.DataFrame(rows, schema=schema, orient="row").write_parquet(part)
        return {"images": len(rows), "failed": len(problems)}


class ImageBlendStep(Step):
    """Learn how much a classifier of whole images knows better, in images with one cell."""

    truth: Path
    blend: Path = Field(description="of the classifiers of cells")
    shares: tuple[Path, ...] = Field(min_length=1, description="of whole images, one per fold")
    candidates: int = Field(default=600, ge=1, description="shares that are tried")

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """``blend.json`` with the cell's share beside the members' weights, and the cells named anew."""
        import polars as pl

        from cytolens.evaluate import read_found
        from cytolens.predict.blend import TuneSettings, nested
        from cytolens.run.out_of_fold import partners
        from cytolens.tasks.classify import decide, with_image

        truth = Dataset.read(self.truth)
        cells, images = read_found(self.blend)
        if images is None:
            raise DatasetError(f"{self.blend}: there is no images.parquet beside the cells")
        table = pl.concat([pl.read_parquet(place / "shares.parquet") for place in self.shares])
        if tuple(table.columns[1:]) != cells.labels.leaves:
            raise DatasetError("the classifiers of whole images name other kinds than those of cells")
        known = dict(zip(table["image_id"].to_list(), table.drop("image_id").to_numpy(), strict=True))
        ids = cells.frame["image_id"].to_list()
        counted = cells.frame["counted"].to_numpy()
        alone = counted & (cells.frame.select(pl.col("counted").sum().over("image_id")).to_series().to_numpy() == 1)
        own = cells.probabilities()
        alone &= np.array([i in known for i in ids]) & ~np.isnan(own).any(axis=1)
        shares = np.array([known.get(i, np.zeros(len(cells.labels.leaves))) for i in ids])
        rows, right = partners(truth, cells, images)
        use = alone[rows] & np.array([name in cells.labels.leaves for name in right])
        folds = dict(truth.images.frame.select("image_id", "fold").iter_rows())
        if any(folds.get(i) is None for i in ids):
            raise DatasetError(f"{self.truth}: there are images without a fold; make folds with: cytolens split")
        fold = np.array([folds[i] for i in ids])
        answer = np.array([cells.labels.leaves.index(name) for name in right[use]], np.intp)
        settings = TuneSettings(candidates=self.candidates)
        judged = nested(np.stack([own, shares])[:, rows[use]], answer, fold[rows[use]], settings=settings)
        share = float(judged.weights[0])
        mixed = own.copy()
        for name in np.unique(fold):
            here = alone & (fold == name)
            honest = judged.of_fold.get(name.item())
            mixed[here] = with_image(own[here], shares[here], share if honest is None else float(honest[0]))
        before = json.loads((self.blend / "blend.json").read_text(encoding="utf-8"))
        named = np.flatnonzero(~np.isnan(own).any(axis=1))
        names, refer = cells.label_names(), cells.frame["refer"].to_numpy().copy()
        given, unsure = decide(mixed[named], cells.labels, before["sure"], [names[row] for row in named])
        for row, name in zip(named, given, strict=True):
            names[row] = name
        refer[named] = unsure
        answered = cells.with_columns(
            probabilities=pl.Series("probabilities", mixed, cells.frame.schema["probabilities"]),
            label=pl.Series("label", names, cells.frame.schema["label"]),
            refer=refer.tolist(),
        )
        answered.write_parquet(folder / "cells.parquet")
        with written(folder / "images.parquet") as part:
            images.frame.write_parquet(part)
        said = before | {
            "cell_share": round(share, 4),
            "single_cells": int(use.sum()),
            "single_macro_f1_nested": judged.score,
            "single_macro_f1_in_sample": judged.in_sample,
        }
        with written(folder / "blend.json") as part:
            part.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        return {name: said[name] for name in ("cell_share", "single_cells", "single_macro_f1_nested")}
