"""The demonstration: rendered smears with known answers, through the same steps as a user's own images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from cytolens.bundle import Bundle
from cytolens.cells import Cells
from cytolens.evaluate import EvaluateSettings, Scores, evaluate
from cytolens.evaluate.page import Page, Picture, Tile
from cytolens.evaluate.pictures import ImageFiles, jpeg
from cytolens.evaluate.report import write_report
from cytolens.labels import LabelSet
from cytolens.predict.differential import ALL, differential
from cytolens.predict.fields import Prediction, image_rows, predict_images
from cytolens.predict.outputs import DEFAULT_FORMATS, write_outputs
from cytolens.predict.overlays import overlay
from cytolens.predict.pipeline import Predictor, PredictSettings
from cytolens.prepare.synthetic import SyntheticSettings, write_synthetic

Progress = Callable[[int, int], None]
_DETECTION = ("leukocyte", "erythrocyte", "platelet")
_SHOWN = 6


def demonstrate(
    out: Path, fields: int, seed: int, bundle: str, notify: Callable[[str], None], progress: Progress | None = None
) -> dict[str, Any]:
    """Render smears, look at them, compare with the truth, and write the pages.

    Args:
        out: folder for everything.
        fields: how many fields to render.
        seed: of the rendering.
        bundle: name or folder of the bundle to show.
        notify: is told what happens.
        progress: is told the images done and in all.

    Returns:
        The figures in brief.
    """
    predictor = Predictor(Bundle.load(bundle), PredictSettings())
    notify(f"rendering {fields} fields of stained blood, with every cell known")
    truth = write_synthetic(out / "smears", fields, seed, SyntheticSettings())
    notify(f"looking at them with {predictor.bundle.name}")
    prediction = predict_images(predictor, image_rows([out / "smears"]), progress)
    found = out / "found"
    write_outputs(prediction, predictor.bundle, found, DEFAULT_FORMATS, predictor.settings)
    notify("comparing with the truth")
    rolled = EvaluateSettings(level=_DETECTION)
    detection = evaluate(truth, prediction.cells, found_images=prediction.images, task="detection", settings=rolled)
    white = truth.cells.filter(pl.col("label").cast(pl.String).is_in(_named_kinds(truth.labels)))
    cells_only = type(truth)(truth.images, white, truth.name)
    naming = evaluate(cells_only, prediction.cells, found_images=prediction.images, task="classification")
    write_report(detection, truth, prediction.cells, out / "detection.html")
    write_report(naming, cells_only, prediction.cells, out / "names.html")
    result = _brief(truth.cells, detection, naming, fields)
    _index(out / "index.html", truth.cells, prediction, detection, naming, result)
    return result


def _named_kinds(labels: LabelSet) -> list[str]:
    return [name for name in labels.names if labels.role(name) in ("leukocyte", "erythroblast")]


def _brief(truth: Cells, detection: Scores, naming: Scores, fields: int) -> dict[str, Any]:
    white = detection.figures["per_label"]["leukocyte"]
    matched = int(naming.figures["matched"])
    return {
        "fields": fields,
        "cells": len(truth),
        "white_cells": int(white["truth"]),
        "white_cells_found": round((white["recall"] or 0) * white["truth"]),
        "named": matched,
        "named_right": round((naming.figures["accuracy"] or 0) * matched),
        "map50": detection.figures["map50"],
    }


def _index(
    path: Path, truth: Cells, prediction: Prediction, detection: Scores, naming: Scores, result: dict[str, Any]
) -> None:
    """The first page: what was known, what was found, and where to read on."""
    page = Page(
        "Cytolens demonstration", f"{result['fields']} rendered fields of stained blood, {result['cells']} cells"
    )
    page = page.text(
        "These smears were drawn by the program, so every cell in them is known. The shipped model then looked at "
        "them as at anybody's images. Real smears are harder; how the model does on those stands in its card "
        "(cytolens bundles show smear)."
    )
    page = page.tiles(
        [
            Tile("white cells found", f"{result['white_cells_found']} of {result['white_cells']}"),
            Tile("named right", f"{result['named_right']} of {result['named']}"),
            Tile("mean average precision", f"{result['map50']:.3f}", "white cells, red cells, platelets; IoU 0.5"),
        ]
    )
    page = page.section("Known and found", "White cells by kind, in percent of all that are named.")
    page = page.table(["kind", "known", "found", "known %", "found %"], _side_by_side(truth, prediction))
    page = page.section("The fields", "Left: the truth. Right: what the model found.")
    page = page.figures(_pairs(truth, prediction))
    page = page.section("Read on").notes(
        [
            "found/report.html: the report that every prediction comes with",
            "detection.html and names.html: the scores in full, with the worst cases shown",
            "found/cells.csv and found/differential.csv: the tables",
        ]
    )
    page.write(path)


def _side_by_side(truth: Cells, prediction: Prediction) -> list[list[object]]:
    """Rows of the known and the found differential, in the found cells' words."""
    known = truth.filter(~pl.col("ignore")).relabel(prediction.cells.labels, missing="drop")
    tables = [differential(cells, prediction.images) for cells in (known, prediction.cells)]
    there, here = (t.filter((pl.col("image_id") == ALL) & (pl.col("part") == "leukocytes")) for t in tables)
    rows: list[list[object]] = []
    for a, b in zip(there.iter_rows(named=True), here.iter_rows(named=True), strict=True):
        if a["count"] or b["count"]:
            shares = [None if row["percent"] is None else f"{row['percent']:.1f}" for row in (a, b)]
            rows.append(["\u2003" * a["depth"] + a["label"], a["count"], b["count"], *shares])
    referred = tables[1].filter((pl.col("image_id") == ALL) & (pl.col("part") == "referred"))
    rows.append(["referred to a person", None, int(referred["count"].sum()), None, None])
    return rows


def _pairs(truth: Cells, prediction: Prediction) -> list[Picture]:
    files = ImageFiles(prediction.images)
    pictures: list[Picture] = []
    for image_id in prediction.images.ids[:_SHOWN]:
        pixels = files.read(image_id)
        for cells, what in ((truth, "truth"), (prediction.cells, "found")):
            drawn = None if isinstance(pixels, str) else jpeg(overlay(pixels, cells.of_image(image_id)))
            pictures.append(Picture(drawn, f"{image_id}: {what}"))
    return pictures
