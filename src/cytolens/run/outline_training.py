"""What the training of a map network needs beside the fit: its plan, and the limits by which its maps are read."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolens.bundle import Bundle, rewrite, write
from cytolens.dataset import Dataset
from cytolens.predict.outlining import FieldMaps
from cytolens.problems import Problems
from cytolens.run.bundle_record import info_of
from cytolens.tasks.outlines import MapReading, OutlineOutput, read
from cytolens.train import outlines
from cytolens.train.export import export_outlines
from cytolens.train.fit import Plan
from cytolens.train.outline_settings import OutlineTraining
from cytolens.train.outlines import StoredPicture, mean_precision

_INSIDE = (0.35, 0.45, 0.55, 0.65)
_MIDDLE = (0.15, 0.3, 0.45)
_SCORES = np.arange(0.2, 0.86, 0.05)
_AREAS = (12, 24, 48)
_LEAST_PICTURES = 3  # of a type, from which it has limits of its own


def outline_plan(settings: OutlineTraining, learning: Dataset, tuning: Dataset, problems: Problems) -> Plan:
    """What is learnt from what.

    Raises:
        LabelError: there is no cell with a mask among those to learn from, or among those kept for tuning.
    """
    samples, weights = outlines.training_samples(outlines.stored(learning, settings, problems), settings)
    return Plan(
        module=outlines.OutlineModule(settings, len(learning.labels.leaves)),
        samples=samples,
        weights=weights,
        collate=outlines.collate,
        tuning=outlines.tuning_batches(outlines.stored(tuning, settings, problems), settings),
    )


def outline_bundle(settings: Any, network: Any, learning: Dataset, tuning: Dataset, run: Path) -> Bundle:
    """Export, then choose the limits of reading on the tuning part."""
    export_outlines(network, run / "model.onnx", field=settings.input.shows == "field")
    record = {"kind": "maps", "model": settings.model, "width": settings.width}
    outline = {"outline_input": settings.input, "outline_output": settings.output}
    info = info_of(settings, learning, run, task="segment", architecture=record, **outline)
    files: dict[str, Path | bytes] = {name: run / name for name in ("model.onnx", "weights.safetensors")}
    bundle = write(run / "bundle", info, files)
    return rewrite(bundle, info.model_copy(update={"outline_output": outline_output(bundle, settings, tuning)}))


def outline_output(bundle: Bundle, settings: OutlineTraining, tuning: Dataset) -> OutlineOutput:
    """How the maps of a new bundle are read best: limits chosen on the part kept for tuning.

    Fields: for all images together and for each type with enough images, the limits of the greatest mean precision.
    Cells: a pixel belongs to a part where its value reaches .5, which is what the loss means.
    """
    if settings.input.shows == "cell":
        whole, *parts = outlines.part_names(settings)
        return settings.output.model_copy(update={"of": whole, "parts": dict.fromkeys((whole, *parts), 0.5)})
    pictures = outlines.stored(tuning, settings, Problems())
    network = FieldMaps(bundle, "bundle", threads=max(1, settings.hardware.threads))
    tried = [MapReading(inside_min=i, middle_min=m, area_min_px=a) for i, m, a in product(_INSIDE, _MIDDLE, _AREAS)]
    table = np.array([_precisions(network, picture, tried) for picture in pictures])  # (pictures, tried, scores)
    best = _best(table, tried)
    kinds = np.array([picture.type for picture in pictures])
    per_label = {
        name: _best(table[kinds == kind], tried)
        for kind, name in enumerate(bundle.labels.leaves)
        if (kinds == kind).sum() >= _LEAST_PICTURES
    }
    return settings.output.model_copy(update={"reading": best, "per_label": per_label})


def _precisions(network: FieldMaps, picture: StoredPicture, tried: list[MapReading]) -> NDArray[np.float64]:
    """The mean precision of one picture with each of the limits and each least score, shape (tried, scores)."""
    height, width = picture.marks.shape
    maps = network.of_picture(outlines.mirrored(picture.pixels))[0][:, :height, :width]
    rows = []
    for limits in tried:
        cells = read(maps, limits)
        rows.append([mean_precision([c for c in cells if c.score >= least], picture.marks) for least in _SCORES])
    return np.array(rows)


def _best(table: NDArray[np.float64], tried: list[MapReading]) -> MapReading:
    """The limits with the greatest mean over pictures; of several, those in the middle of what is equally good."""
    means = table.mean(axis=0)
    ways, scores = np.nonzero(means >= means.max() - 1e-9)
    middle = len(ways) // 2
    return tried[ways[middle]].model_copy(update={"score_min": round(float(_SCORES[scores[middle]]), 2)})
