"""`cytolens adapt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cytolens.apps.cli.console import BAD, DONE, Debug, Json, Where, answer, command, notify, problem_lines
from cytolens.problems import DatasetError, require


@command
def adapt(
    run: Annotated[Path, typer.Argument(help="A run of cytolens train, or a bundle with its weights.")],
    data: Annotated[Path, typer.Option(help="The dataset with pictures of the other microscope.")],
    out: Annotated[Path, typer.Option(help="Folder for the new run and its bundle.")],
    method: Annotated[
        Literal["batch-norm", "mean-teacher"],
        typer.Option(help="batch-norm: statistics of the batch normalisation; mean-teacher: self-training."),
    ] = "batch-norm",
    boxes: Annotated[
        Path | None,
        typer.Option(help="classifiers: what predict found in the pictures. Default: the dataset's boxes."),
    ] = None,
    where: Where = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", help="Change one setting, KEY=VALUE; may be repeated.")
    ] = None,
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Fit a trained model to another microscope's pictures, of which no labels are needed.

    Labels that the dataset has are not looked at. The result is a bundle of its own, which says what
    was done; whether it is better there is to be measured (cytolens evaluate).

    Example: cytolens adapt runs/detector --data data/other --method batch-norm --out runs/detector-other
    """
    require("torch", "train", "training")
    from cytolens.bundle import Bundle
    from cytolens.dataset import Dataset
    from cytolens.evaluate import read_found
    from cytolens.run.adapting import adapt as run_adapt
    from cytolens.settings import checked, with_overrides
    from cytolens.train.adapt_settings import AdaptSettings

    how = checked(AdaptSettings, with_overrides({"method": method}, set or ()), "settings")
    bundle = Bundle.load(run)
    dataset = Dataset.read(data)
    dataset = dataset if where is None else dataset.select(where)
    if not len(dataset.images):
        raise DatasetError(f"{data}: no images to adapt to" + (f' meet "{where}"' if where else ""))
    found = None if boxes is None else read_found(boxes)[0]
    result = run_adapt(bundle, dataset, out, how, found, notify(json_output))
    said = result.bundle.info.training["adapted"]
    summary = {
        "run": str(out),
        "bundle": str(result.bundle.folder),
        "hash": result.bundle.hash,
        **said,
        "problems": result.problems.to_dicts(),
    }
    lines = [f"bundle {result.bundle.folder} ({result.bundle.hash})", *problem_lines(result.problems)]
    lines.append(f"compare: cytolens predict {data} --bundle {out} --out found/ and cytolens evaluate")
    answer(summary, lines, json_output)
    return BAD if result.problems.worst == "error" else DONE
