"""`cytolens fuse`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cytolens.apps.cli.console import DONE, Debug, Json, answer, command, names
from cytolens.problems import SettingError


@command
def fuse(
    cells: Annotated[list[Path], typer.Argument(help="Folders that predict wrote, one per member.")],
    out: Annotated[Path, typer.Option(help="Folder for the result.")],
    method: Annotated[str, typer.Option(help="wbf, nms, soft-nms or blend.")] = "wbf",
    iou: Annotated[float, typer.Option(help="Overlap above which two boxes are the same cell.")] = 0.55,
    weights: Annotated[
        str | None, typer.Option(help="Of the members, comma separated, such as 1,2. Default: all the same.")
    ] = None,
    one_list: Annotated[
        bool, typer.Option("--one-list", help="wbf: a member that lacks a cell does not speak against it.")
    ] = False,
    by: Annotated[
        Literal["cell", "label"] | None,
        typer.Option(help="Fuse any boxes, or those of one label. Default: any, where there are probabilities."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Fused score from which a cell counts. Default: as the members count it.")
    ] = None,
    sure: Annotated[float, typer.Option(help="Probability from which a blended name is given.")] = 0.5,
    format: Annotated[
        str | None, typer.Option(help="Comma separated: cells, csv, coco, geojson, overlay. Default: cells, csv.")
    ] = None,
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Make one answer of several predictions of the same images.

    wbf averages boxes, nms and soft-nms keep the best, blend keeps the first member's and averages names only.

    Example: cytolens fuse found-fold0 found-fold1 found-fold2 --iou 0.5 --out found
    """
    from cytolens.predict.fuse import FuseSettings
    from cytolens.predict.members import fuse_folders
    from cytolens.predict.outputs import checked_formats
    from cytolens.settings import checked

    formats = checked_formats(names(format) or ("cells", "csv"))
    values = {"iou": iou, "weights": _numbers(weights), "by": by, "threshold": threshold, "sure": sure}
    settings = checked(FuseSettings, values | {"lists": "one" if one_list else "per-model"}, "fuse")
    summary = fuse_folders(cells, out, method=method, settings=settings, formats=formats)
    lines = [
        f"{len(cells)} members, {summary['images']} images, {summary['cells']} cells, "
        f"{summary['referred']} referred to a person → {out}"
    ]
    lines += [f"  {label}: {count}" for label, count in summary["counts"].items()]
    answer(summary, lines + [f"  note: {note['what']}" for note in summary["notes"]], json_output)
    return DONE


def _numbers(text: str | None) -> tuple[float, ...] | None:
    """Comma-separated numbers.

    Raises:
        SettingError: one is no number.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in names(text))
    except ValueError:
        raise SettingError(f'--weights takes numbers, comma separated, such as 1,2; got "{text}"') from None
