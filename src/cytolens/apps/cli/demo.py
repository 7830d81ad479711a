"""`cytolens demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytolens.apps.cli.console import Debug, Json, answer, command, notify, progress


@command
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the demonstration.")] = Path("demo"),
    fields: Annotated[int, typer.Option(min=1, help="How many fields to render.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other smears.")] = 7,
    bundle: Annotated[str, typer.Option(help="The model to show.")] = "smear",
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """The whole story on rendered smears whose truth is known: find, name, count, draw, score.

    Example: cytolens demo --out demo/
    """
    from cytolens.run.demonstration import demonstrate

    with progress("looking", json_output) as tell:
        result = demonstrate(out, fields, seed, bundle, notify(json_output), tell)
    lines = [
        f"{result['fields']} rendered fields: {result['white_cells_found']} of {result['white_cells']} "
        f"white cells found, {result['named_right']} of {result['named']} named right",
        f"open {out / 'index.html'}",
    ]
    answer(result, lines, json_output)
    return 0
