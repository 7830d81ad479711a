"""The cleaning of masks tuned on out-of-fold outlines, label by label, and kept in the bundle.

Every setting of a grid is judged by the Sartorius score on images whose networks have not learnt from them. The best of
many settings looks better on the images that it was chosen on than on others, so beside that figure stands the nested
one: each fold's images are cleaned with the settings that are best on the other folds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens import bundle as bundles
from cytolens.bundle import Bundle
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.evaluate import plots
from cytolens.evaluate.sartorius import sartorius_score
from cytolens.labels import LabelSet
from cytolens.predict.exam import make_exam
from cytolens.problems import BundleError, DatasetError, SettingError, listing, written
from cytolens.run.judged_images import JudgedImage, judged_images, outlines_of
from cytolens.run.mask_grid import MaskGrid, best_choice, choice_scores, nested_choices, overlaps
from cytolens.tasks.mask_cleaning import cleaned, spoken_for
from cytolens.tasks.segment import MaskCleaning, Outlines, SegmentOutput, SoftOutlines

DOMAIN = "mask cleaning, out of fold"
Notify = Callable[[str], None]


@dataclass(frozen=True)
class LabelChoice:
    """What was found for one label.

    Attributes:
        label: its name.
        images: that have cells of it, said or found.
        cleaning: the best settings on all of them.
        score: their mean score with it, in the grid.
        nested: their mean score, each fold with what is best on the others; None: there are no others.
        table: the mean score of every setting, shape (choices,).
    """

    label: str
    images: int
    cleaning: MaskCleaning
    score: float
    nested: float | None
    table: NDArray[np.float64]


@dataclass(frozen=True)
class TunedMasks:
    """The outcome. The scores are those of whole images, all labels and all steps together.

    Attributes:
        labels: what was found for each label.
        output: how outlines are read with it.
        images: that were judged.
        before: their mean score with the settings of the bundle as it was.
        in_sample: with the best settings, on the images that they were chosen on.
        nested: each fold with the settings that are best on the others; None: there are no others.
        unit: what a fold is: "fold", "group" or "image".
        bundle: with the best settings.
        notes: what a reader has to know.
        held_out: fold (else group, else image) → how its outlines are read with what is best on the others.
    """

    labels: tuple[LabelChoice, ...]
    output: SegmentOutput
    images: int
    before: float
    in_sample: float
    nested: float | None
    unit: str
    bundle: Bundle
    notes: tuple[str, ...]
    held_out: Mapping[object, SegmentOutput]


def tune_masks(
    bundle: Bundle,
    soft: Path | Sequence[Path],
    truth: Dataset,
    out: Path,
    grid: MaskGrid | None = None,
    notify: Notify = lambda _: None,
) -> TunedMasks:
    """Choose how masks of each label are cleaned, and keep it in a copy of the bundle.

    Leaves ``masks.csv`` (every setting), ``masks.png``, ``tune.json`` and ``bundle``.

    With `one_label` in the bundle's settings an image counts, with all its cells, for the label that they speak for;
    otherwise for each label with the cells of that label.

    Args:
        bundle: one that reads soft outlines.
        soft: folder of out-of-fold outlines, one file per image (`predict.soft_outlines`); or several, one per fold.
        truth: the images with their cells and masks; its folds (else groups, else images) part the nested estimate.
        out: folder for the results.
        grid: what is tried; None: the grid of Sartorius.
        notify: is told what is being done.

    Raises:
        BundleError: the bundle reads no soft outlines.
        DatasetError: an image has no outlines, a cell no mask, or sizes differ.
        LabelError: the labels are not those of the bundle.
        FormatError: a file of outlines is damaged.
    """
    before, grid = bundle.info.segment_output, grid or MaskGrid()
    if before is None:
        raise BundleError(
            f'"{bundle.name}" (task {bundle.info.task}) reads no soft outlines of region networks, so it has no '
            "cleaning of masks to tune. Give a bundle with segment_output."
        )
    labels = bundle.labels
    images, unit, notes = judged_images([soft] if isinstance(soft, Path) else soft, truth, labels)
    scores = _grid_scores(images, labels, before, grid, notify)
    if not scores:
        raise DatasetError(f'{soft}: no image of "{truth.name}" has a cell, said or found, so there is nothing to tune')
    choices = tuple(_choice(label, table, images, labels, before, grid) for label, table in scores.items())
    output = _with(before, {one.label: one.cleaning for one in choices})
    if untold := [name for name in labels.names if name not in scores]:
        notes.append(f"No image has outlines of {listing(untold)}, so their cleaning stays as it was.")
    notify(f"judging {len(images)} images")
    held_out = _held_out(scores, images, before, grid)
    figures = _judged(images, labels, before, output, held_out, unit)
    out.mkdir(parents=True, exist_ok=True)
    _write_table(choices, before, grid, out / "masks.csv")
    _write_picture(choices, grid, out / "masks.png")
    tuned = _packed(bundle, output, figures, len(images), unit, out / "bundle")
    apart = {part[1] if isinstance(part, tuple) else part: one for part, one in held_out.items()}
    result = TunedMasks(choices, output, len(images), *figures, unit, tuned, tuple(notes), apart)
    with written(out / "tune.json") as part:
        part.write_text(json.dumps(summary(result), indent=1, ensure_ascii=False) + "\n", "utf-8")
    return result


# -- judging --------------------------------------------------------------------------------------


def _grid_scores(
    images: Sequence[JudgedImage], labels: LabelSet, output: SegmentOutput, grid: MaskGrid, notify: Notify
) -> dict[str, dict[int, NDArray[np.float64]]]:
    """Label → image → its score with every choice (choices,); in the order of the labels."""
    scores: dict[str, dict[int, NDArray[np.float64]]] = {}
    for number, image in enumerate(images):
        if number % 50 == 0:
            notify(f"trying {len(grid.choices(output.cleaning))} settings on image {number + 1} of {len(images)}")
        for label, soft, truth in _parts(image, labels, output):
            base = output.cleaning_of(label)
            tried = choice_scores(soft, truth, labels, output, grid, base)
            scores.setdefault(label, {})[number] = tried
    return {name: scores[name] for name in labels.names if name in scores}


def _parts(image: JudgedImage, labels: LabelSet, output: SegmentOutput) -> Iterator[tuple[str, SoftOutlines, Cells]]:
    """The labels that an image counts for, each with the outlines and the cells that count."""
    soft = outlines_of(image, labels)
    classes = spoken_for(soft.classes, soft.scores, output)
    if output.one_label:
        if len(classes):  # an image without outlines has the same score whatever the settings
            yield labels.names[int(classes[0])], _rows(soft, np.ones(len(classes), bool), classes), image.truth
        return
    named = Counter(image.truth.label_names())
    for index, name in enumerate(labels.names):
        own = classes == index
        if own.any() or named[name]:
            yield name, _rows(soft, own, classes), image.truth.filter(pl.col("label") == name)


def _rows(soft: SoftOutlines, rows: NDArray[np.bool_], classes: NDArray[np.intp]) -> SoftOutlines:
    return SoftOutlines(
        soft.size_hw, soft.boxes[rows], classes[rows], soft.scores[rows], soft.class_scores[rows], soft.patches[rows]
    )


def _choice(
    label: str,
    scores: Mapping[int, NDArray[np.float64]],
    images: Sequence[JudgedImage],
    labels: LabelSet,
    output: SegmentOutput,
    grid: MaskGrid,
) -> LabelChoice:
    table = np.stack(list(scores.values()))
    units = [images[number].unit for number in scores]
    best, without = best_choice(table), nested_choices(table, units)
    held = [float(row[without[unit]]) for row, unit in zip(table, units, strict=True) if unit in without]
    return LabelChoice(
        label=label,
        images=len(table),
        cleaning=grid.choices(output.cleaning_of(label))[best],
        score=float(table[:, best].mean()),
        nested=float(np.mean(held)) if held else None,
        table=table.mean(axis=0),
    )


def _held_out(
    scores: Mapping[str, Mapping[int, NDArray[np.float64]]],
    images: Sequence[JudgedImage],
    output: SegmentOutput,
    grid: MaskGrid,
) -> dict[object, SegmentOutput]:
    """For each fold how outlines are read with what is best on the others; labels only it has stay as they were."""
    chosen: dict[object, dict[str, MaskCleaning]] = {image.unit: {} for image in images}
    for label, rows in scores.items():
        table, units = np.stack(list(rows.values())), [images[number].unit for number in rows]
        tried, without, best = grid.choices(output.cleaning_of(label)), nested_choices(table, units), best_choice(table)
        for unit, steps in chosen.items():
            if unit in without:
                steps[label] = tried[without[unit]]
            elif unit not in units:  # the fold has no cells of the label, so all that is known comes from others
                steps[label] = tried[best]
    return {unit: _with(output, steps) for unit, steps in chosen.items()}


def _judged(
    images: Sequence[JudgedImage],
    labels: LabelSet,
    before: SegmentOutput,
    best: SegmentOutput,
    held_out: Mapping[object, SegmentOutput],
    unit: str,
) -> tuple[float, float, float | None]:
    """Mean scores by the cleaning itself: as it was, with the best settings, and nested."""
    rows = []
    for image in images:
        soft = outlines_of(image, labels)
        readings = (before, best, held_out[image.unit])
        rows.append([_score(cleaned(soft, labels, one), image.truth, labels, soft.size_hw) for one in readings])
    was, in_sample, nested = np.mean(rows, axis=0).tolist()
    return was, in_sample, nested if len(held_out) > 1 else None


def _score(found: Outlines, truth: Cells, labels: LabelSet, size_hw: tuple[int, int]) -> float:
    """The score of the cells that count."""
    table = overlaps(truth, found, labels, size_hw)[found.counted]
    return sartorius_score(table, truth.frame["ignore"].to_numpy())[1]


def _with(output: SegmentOutput, steps: Mapping[str, MaskCleaning]) -> SegmentOutput:
    return output.model_copy(update={"per_label": {**output.per_label, **steps}})


# -- what is left ---------------------------------------------------------------------------------


def _packed(
    bundle: Bundle,
    output: SegmentOutput,
    figures: tuple[float, float, float | None],
    images: int,
    unit: str,
    folder: Path,
) -> Bundle:
    """A copy of the bundle with the tuned settings and both figures; its exam, if it has one, is set anew.

    The members of a pipeline come along, beside it.
    """
    before, in_sample, nested = figures
    told = {
        "task": "segmentation",
        "score": nested,
        "score_in_sample": in_sample,
        "score_before": before,
        "images": images,
        "left_out": unit,
    }
    for name, member in bundle.members.items():
        bundles.copy(member, folder.parent / name)
    info = bundle.info.model_copy(update={"segment_output": output, "scores": {**bundle.info.scores, DOMAIN: told}})
    tuned = bundles.rewrite(bundles.copy(bundle, folder), info)
    return make_exam(tuned) if tuned.file("exam/expected.parquet") is not None else tuned


def _write_table(choices: Sequence[LabelChoice], output: SegmentOutput, grid: MaskGrid, path: Path) -> None:
    """Every setting of every label as CSV."""
    rows = [
        {
            "label": one.label,
            "images": one.images,
            "mask_threshold": tried.mask_threshold,
            "mask_nms_iou": tried.mask_nms_iou,
            "score_min": tried.score_min,
            "area_min_px": tried.area_min_px,
            "score": score,
            "chosen": tried == one.cleaning,
        }
        for one in choices
        for tried, score in zip(grid.choices(output.cleaning_of(one.label)), one.table.tolist(), strict=True)
    ]
    with written(path) as part:
        pl.DataFrame(rows).write_csv(part, float_precision=5)


def _write_picture(choices: Sequence[LabelChoice], grid: MaskGrid, path: Path) -> None:
    """The best score for each pair of score limit and mask threshold, label by label."""
    shape = tuple(len(v) for v in (grid.mask_threshold, grid.mask_nms_iou, grid.score_min, grid.area_min_px))
    names: list[str] = []
    values: list[list[float]] = []
    for one in choices:
        best = one.table.reshape(shape).max(axis=(1, 3)).T
        names += [f"{one.label}, score ≥ {score:.2f}" for score in grid.score_min]
        values += best.tolist()
    columns = [f"mask > {threshold:.2f}" for threshold in grid.mask_threshold]
    with written(path) as part:
        part.write_bytes(plots.heat_map(names, columns, values, "Sartorius score, the best of the other settings"))


def summary(result: TunedMasks) -> dict[str, Any]:
    """What ``tune.json`` and the command's JSON say."""
    return {
        "images": result.images,
        "left_out": result.unit,
        "score_before": result.before,
        "score": result.nested,
        "score_in_sample": result.in_sample,
        "per_label": {
            one.label: {
                "images": one.images,
                "score": one.nested,
                "score_in_sample": one.score,
                "cleaning": one.cleaning.model_dump(),
            }
            for one in result.labels
        },
        "bundle": {"name": result.bundle.name, "hash": result.bundle.hash},
        "notes": list(result.notes),
    }


def place_of_results(run: Path, out: Path | None) -> Path:
    """Where results go: `out`, else a folder in the run, else one beside the bundle, which cannot hold others.

    Raises:
        SettingError: it would be the bundle itself.
    """
    own = (run / "bundle.json").exists()
    place = out if out is not None else run / "tune" if run.is_dir() and not own else run.with_name(f"{run.name}-tuned")
    if own and place.resolve().is_relative_to(run.resolve()):
        raise SettingError(f"--out {place}: lies in the bundle {run}, which holds nothing else; choose another folder")
    return place
