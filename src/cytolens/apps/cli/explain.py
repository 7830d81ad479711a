"""`cytolens explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytolens.apps.cli.console import DONE, Debug, Json, answer, command, progress


@command
def explain(
    image: Annotated[Path, typer.Argument(help="One image.")],
    out: Annotated[Path, typer.Option(help="Folder for the page, the table and the maps.")] = Path("explained"),
    bundle: Annotated[str, typer.Option(help="A shipped bundle by name, or the folder of one.")] = "smear",
    most: Annotated[int, typer.Option(help="Cells to explain, those with the highest score first.")] = 12,
    square: Annotated[
        float, typer.Option(help="Side of the squares that cover the cell, in sides of what the model sees of it.")
    ] = 0.2,
    step: Annotated[float, typer.Option(help="From one square to the next, in the same measure.")] = 0.1,
    device: Annotated[str, typer.Option(help="cpu, cuda or openvino.")] = "cpu",
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Say why cells have their names: likeliest kinds, attributes, and a map of what mattered.

    Example: cytolens explain smear.jpg --bundle smear-attributes --out explained/
    """
    from cytolens.bundle import Bundle
    from cytolens.predict.calling import predict_settings
    from cytolens.predict.explain import ExplainSettings
    from cytolens.predict.explain import explain as explain_image
    from cytolens.predict.explain_page import write_explanation
    from cytolens.predict.pipeline import Predictor
    from cytolens.settings import checked

    given = {"most": most, "occlusion": {"square": square, "step": step}}
    settings = checked(ExplainSettings, given, "explain")
    predictor = Predictor(Bundle.load(bundle), predict_settings(device=device))
    with progress("covering cells", json_output) as tell:
        told = write_explanation(explain_image(predictor, image, settings, tell), out)
    lines = [f"{told['explained']} of {told['named']} named cells explained → {out}"]
    for number, cell in enumerate(told["cells"], start=1):
        likely = ", ".join(f"{one['label']} {100 * one['probability']:.0f} %" for one in cell["top"])
        lines.append(f"  {number}: {cell['label'] or 'not named'} ({likely})")
        lines += [f"     {cell['description']}"] if cell["description"] else []
    if not told["cells"]:
        lines.append("  no cell was named by a classifier, so there is nothing to explain")
    answer({"out": str(out), **told}, [*lines, f"  open {out / 'explained.html'}"], json_output)
    return DONE
