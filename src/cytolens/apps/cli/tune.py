"""`cytolens tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytolens.apps.cli.console import DONE, Debug, Json, answer, command, notify


@command
def tune(
    run: Annotated[Path, typer.Argument(help="What cytolens run left, or the folder of one of its blends.")],
    budget_ms: Annotated[
        float | None,
        typer.Option(min=0, help="Pack the best classifiers that take no longer for an image. Default: pack nothing."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results. Default: tune in RUN.")] = None,
    images: Annotated[Path | None, typer.Option(help="Images to measure times with. Default: rendered fields.")] = None,
    one_fold: Annotated[
        bool, typer.Option("--one-fold", help="Keep one fold's model of each family, instead of all: faster.")
    ] = False,
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Show what the members of an ensemble are worth and take, and pack the best under a budget of time.

    Weights are tuned out of fold; times are measured here, on one thread.

    Example: cytolens tune runs/cytologia --budget-ms 200 --one-fold --out fast
    """
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
