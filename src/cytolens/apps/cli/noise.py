"""`cytolens noise`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytolens.apps.cli.console import BAD, DONE, Debug, Json, answer, command

_SHOWN = 5


@command
def noise(
    dataset: Annotated[Path, typer.Argument(help="The dataset whose annotations are doubted.")],
    found: Annotated[
        list[Path], typer.Option(help="What predict found with models that had not learnt from those images; repeated.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the ranking, the edits that are suggested, and a page.")],
    most: Annotated[float, typer.Option(help="Share of the annotations that each kind of doubt may name.")] = 1.0,
    confident: Annotated[float, typer.Option(help="Score from which a finding wants an annotation.")] = 0.5,
    ignore: Annotated[
        Path | None, typer.Option(help="Write the dataset here with doubtful cells marked as not scored.")
    ] = None,
    leave_out: Annotated[
        Path | None, typer.Option(help="Write the dataset here without the images that have a doubt.")
    ] = None,
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Rank annotations that cross-validated models do not believe: names, boxes, cells that nobody finds or annotated.

    Train one model per fold (cytolens train … --set fold=0), let each look at the fold that it has not
    seen (cytolens predict DATASET --where "fold = 0"), and give all of it here. Ends with 1 where there
    are doubts.

    Example: cytolens noise data/bccd --found found/0 --found found/1 --out doubts/
    """
    from cytolens.cells import Cells
    from cytolens.dataset import Dataset
    from cytolens.evaluate import read_found
    from cytolens.prepare.noise import NoiseSettings, cleaned, find_noise
    from cytolens.prepare.noise_page import write_page
    from cytolens.problems import written
    from cytolens.settings import checked

    settings = checked(NoiseSettings, {"most": most, "confident": confident}, "noise")
    data = Dataset.read(dataset)
    cells, seen = Cells.empty(data.labels), list[str]()
    for folder in found:
        one, images = read_found(folder)
        cells = cells.concat(one.relabel(data.labels))
        seen += images.ids if images is not None else one.frame["image_id"].unique().to_list()
    doubts = find_noise(data, cells, settings, seen)
    out.mkdir(parents=True, exist_ok=True)
    with written(out / "doubts.csv") as part:
        doubts.frame.write_csv(part, float_precision=4)
    edits = doubts.edits(data)
    edits.write_csv(out / "edits.csv")
    write_page(doubts, data.images, out / "doubts.html")
    if ignore is not None:
        cleaned(data, doubts, "ignore").write(ignore)
    if leave_out is not None:
        cleaned(data, doubts, "leave out").write(leave_out)
    summary = {
        "annotations": doubts.annotations,
        "doubts": doubts.counts,
        "edits": len(edits),
        "out": str(out),
        "first": {kind: doubts.of(kind).head(_SHOWN).to_dicts() for kind in doubts.counts},
    }
    lines = [f"{doubts.annotations} annotations judged"]
    lines += [f"  {kind}: {count}" for kind, count in doubts.counts.items() if count]
    lines += [f"  {len(edits)} edits suggested in {out / 'edits.csv'}", f"  open {out / 'doubts.html'}"]
    answer(summary, lines, json_output)
    return BAD if len(doubts.frame) else DONE
