"""`cytolens tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytolens.apps.cli.console import DONE, Debug, Json, Where, answer, command, notify
from cytolens.problems import SettingError


@command
def tune(
    run: Annotated[
        Path,
        typer.Argument(help="What cytolens run left, or the folder of one of its blends; with --soft a run or bundle."),
    ],
    budget_ms: Annotated[
        float | None,
        typer.Option(min=0, help="Pack the best classifiers that take no longer for an image. Default: pack nothing."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results. Default: tune in RUN; with a bundle BUNDLE-tuned.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Images to measure times with. Default: rendered fields.")] = None,
    one_fold: Annotated[
        bool, typer.Option("--one-fold", help="Keep one fold's model of each family, instead of all: faster.")
    ] = False,
    soft: Annotated[
        Path | None,
        typer.Option(help="Folder of out-of-fold soft outlines: the cleaning of masks is tuned, not an ensemble."),
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="With --soft: the dataset with the masks of those images.")] = None,
    where: Where = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="With --soft: values to try, such as 'area_min_px=[0, 20]'. May be repeated."),
    ] = None,
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Show what the members of an ensemble are worth and take, and pack the best under a budget of time.

    Weights are tuned out of fold; times are measured here, on one thread. With --soft the steps from soft outlines to
    cells are tuned instead, label by label, and kept in a copy of the bundle: cytolens tune runs/neurons
    --soft out-of-fold --truth neurons --out tuned

    Example: cytolens tune runs/cytologia --budget-ms 200 --one-fold --out fast
    """
    if soft is not None:
        if truth is None or budget_ms is not None or images is not None or one_fold:
            raise SettingError(
                "--soft DIR tunes the cleaning of masks: it needs --truth DATASET, and takes no --budget-ms, --images "
                "or --one-fold, which are about ensembles of classifiers"
            )
        return _masks(run, soft, truth, where, overrides or [], out, json_output)
    if truth is not None or where is not None or overrides:
        raise SettingError("--truth, --where and --set go with --soft DIR, the folder of out-of-fold soft outlines")
    from cytolens.run.tune import summary, weights_text
    from cytolens.run.tune import tune as tune_run

    place = run / "tune" if out is None else out
    result = tune_run(run, place, budget_ms=budget_ms, images=images, one_fold=one_fold, notify=notify(json_output))
    lines = [f"{len(result.choices)} sets of classifiers, {result.cells} cells; the best for their time:"]
    lines += [f"  {one.ms:8.1f} ms  macro-F1 {one.macro_f1:.4f}  {one.name}" for one in result.choices if one.on_front]
    lines += [f"  note: {note}" for note in result.notes]
    if result.chosen is not None:
        lines.append(f"packed {weights_text(result.chosen.weights)} → {place / 'bundle'}")
    lines.append(f"open {place / 'front.html'}")
    answer(summary(result, budget_ms, one_fold) | {"out": str(place)}, lines, json_output)
    return DONE


def _masks(
    run: Path, soft: Path, truth: Path, where: str | None, overrides: list[str], out: Path | None, json_output: bool
) -> int:
    from cytolens.bundle import Bundle
    from cytolens.dataset import Dataset
    from cytolens.run.mask_grid import MaskGrid
    from cytolens.run.tune_masks import place_of_results, summary, tune_masks
    from cytolens.settings import checked, with_overrides

    grid = checked(MaskGrid, with_overrides({}, overrides), "--set")
    bundle, dataset, place = Bundle.load(run), Dataset.read(truth), place_of_results(run, out)
    dataset = dataset if where is None else dataset.select(where)
    result = tune_masks(bundle, soft, dataset, place, grid, notify(json_output))
    lines = [f"{result.images} images, Sartorius score (mean over images, IoU .50 … .95):"]
    lines += [f"  {result.before:.4f}  as the bundle was"]
    nested = "     –" if result.nested is None else f"{result.nested:.4f}"
    lines += [f"  {nested}  tuned, each {result.unit} by settings chosen without it"]
    lines += [f"  {result.in_sample:.4f}  tuned and judged on the same images"]
    for one in result.labels:
        step = one.cleaning
        lines.append(
            f"  {one.label} ({one.images} images): mask > {step.mask_threshold:g}, mask NMS {step.mask_nms_iou:g}, "
            f"score ≥ {step.score_min:g}, at least {step.area_min_px} px"
        )
    lines += [f"  note: {note}" for note in result.notes]
    lines.append(f"tuned bundle → {place / 'bundle'}; every setting in {place / 'masks.csv'}")
    answer(summary(result) | {"out": str(place)}, lines, json_output)
    return DONE
