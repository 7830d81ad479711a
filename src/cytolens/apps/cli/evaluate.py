"""`cytolens evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cytolens.apps.cli.console import Debug, Json, Where, answer, command, names
from cytolens.problems import SettingError


@command
def evaluate(
    truth: Annotated[Path, typer.Option(help="The dataset with the annotations.")],
    found: Annotated[Path, typer.Option(help="What predict wrote (folder or cells.parquet), or a dataset.")],
    task: Annotated[
        str, typer.Option(help="detection, classification, attributes, segmentation, cytologia or sartorius.")
    ] = "detection",
    iou_min: Annotated[float, typer.Option(help="Overlap from which a finding and a truth are the same cell.")] = 0.5,
    level: Annotated[
        str | None, typer.Option(help="Labels, comma separated, to which both sides are rolled up before scoring.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Score this part of the truth only.")] = None,
    where: Where = None,
    missing: Annotated[str, typer.Option(help="ok: leave out truth images that were not looked at.")] = "error",
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples for the intervals; 0: no intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the resampling.")] = 0,
    expected_counts: Annotated[
        str | None,
        typer.Option(
            help="cytologia, an oracle: how many cells an image has is given away by the truth (truth) or by a file "
            "like the challenge's test.csv, instead of by what counts."
        ),
    ] = None,
    class_only_from: Annotated[
        str | None,
        typer.Option(
            help="attributes: the dataset from which it is learnt what each label usually looks like. Default: the "
            "truth itself, without each cell's own group or image."
        ),
    ] = None,
    boundary_px: Annotated[
        float | None,
        typer.Option(help="segmentation, sartorius: how far apart contours may be and still agree. Default: 2."),
    ] = None,
    boundary_share: Annotated[
        float | None, typer.Option(help="The same as a share of the image's diagonal, such as 0.008.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report here.")] = None,
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Score findings against the truth, with 95 % intervals.

    Example: cytolens evaluate --truth data/bccd --found found/ --task detection --report scores.html
    """
    from cytolens.dataset import Dataset
    from cytolens.evaluate import EvaluateSettings, read_found
    from cytolens.evaluate import evaluate as score
    from cytolens.evaluate.report import write_report
    from cytolens.settings import checked

    values: dict[str, Any] = {"iou_min": iou_min, "missing": missing, "seed": seed, "intervals": bootstrap > 0}
    values |= {"level": names(level) or None, "expected_counts": expected_counts, "class_only_from": class_only_from}
    values |= {"boundary_px": boundary_px, "boundary_share": boundary_share}
    values |= {"bootstrap": bootstrap} if bootstrap > 0 else {}
    settings = checked(EvaluateSettings, values, "evaluate")
    if expected_counts is not None and task != "cytologia":
        raise SettingError("--expected-counts goes with --task cytologia only")
    if class_only_from is not None and task != "attributes":
        raise SettingError("--class-only-from goes with --task attributes only")
    if (boundary_px is not None or boundary_share is not None) and task not in ("segmentation", "sartorius"):
        raise SettingError("--boundary-px and --boundary-share go with --task segmentation or sartorius only")
    dataset = Dataset.read(truth)
    if split is not None:
        dataset = dataset.part(split)
    dataset = dataset if where is None else dataset.select(where)
    cells, images = read_found(found)
    scores = score(dataset, cells, found_images=images, task=task, settings=settings)
    if report is not None:
        write_report(scores, dataset, cells, report)
    data = scores.to_json_dict()
    answer(data, [*_lines(scores.figures), *(f"  note: {note}" for note in scores.notes)], json_output)
    return 0


def _lines(figures: Any, indent: str = "") -> list[str]:
    """Figures for people: one per line, with the interval behind it."""
    lines: list[str] = []
    for name, value in figures.items():
        if name.endswith("_interval") or name in ("confusion", "coverage_curve", "confidences"):
            continue
        if isinstance(value, dict):
            lines.append(f"{indent}{name}:")
            lines += _lines(value, indent + "  ")
        elif not isinstance(value, (list, tuple)):
            interval = figures.get(f"{name}_interval")
            behind = f"  ({interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
            lines.append(f"{indent}{name}: {_text(value)}{behind}")
    return lines


def _text(value: object) -> str:
    if value is None:
        return "undefined"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
