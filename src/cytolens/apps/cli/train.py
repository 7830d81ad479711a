"""`cytolens train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytolens.apps.cli.console import BAD, DONE, Debug, Json, answer, command, notify, problem_lines
from cytolens.problems import require


@command
def train(
    task: Annotated[str, typer.Argument(help="detect, classify, outline or segment.")],
    data: Annotated[list[Path], typer.Option(help="The dataset to learn from; repeated, several are joined.")],
    out: Annotated[Path, typer.Option(help="Run folder: settings, checkpoints, history, and the finished bundle.")],
    model: Annotated[
        str | None,
        typer.Option(help="detect: yolox-nano … yolox-x; classify: any network of timm; segment: any backbone of it."),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="TOML file with settings.")] = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", help="Change one setting, KEY=VALUE; may be repeated.")
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            help="classify: what predict found in the same images; cells are cut there, not at the annotated boxes."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on where this run was stopped.")] = False,
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Train a model on a dataset and make a calibrated bundle of it.

    A tenth of the images (whole groups) is kept for choosing the best epoch, thresholds and
    calibration. A killed run goes on with --resume.

    Example: cytolens train detect --data data/bccd --out runs/bccd --set optimise.epochs=40
    """
    require("torch", "train", "training")
    from cytolens.dataset import Dataset
    from cytolens.evaluate import read_found
    from cytolens.run.training import prepared, training_settings
    from cytolens.run.training import train as run_training

    settings = training_settings(task, recipe, set or (), model)
    tell = notify(json_output)
    found = None if boxes is None else read_found(boxes)[0]
    dataset = prepared([Dataset.read(folder) for folder in data], settings, found, tell)
    result = run_training(settings, dataset, out, resume=resume, notify=tell)
    info = result.bundle.info
    summary = {
        "run": str(out),
        "bundle": str(result.bundle.folder),
        "hash": result.bundle.hash,
        **info.training["result"],
        "problems": result.problems.to_dicts(),
    }
    lines = [f"bundle {result.bundle.folder} ({result.bundle.hash})", *problem_lines(result.problems)]
    lines.append(f"try it: cytolens predict IMAGES --bundle {out} --out found/")
    answer(summary, lines, json_output)
    return BAD if result.problems.worst == "error" else DONE
