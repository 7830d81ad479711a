"""`cytolens duplicates`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cytolens.apps.cli.console import BAD, DONE, Debug, Json, answer, command, problem_lines, progress

if TYPE_CHECKING:
    from cytolens.prepare.duplicates import Duplicates

_SHOWN = 10


@command
def duplicates(
    dataset: Annotated[Path, typer.Argument(help="The dataset to look through.")],
    distance: Annotated[
        int | None,
        typer.Option(help="Bits in which the hashes of a proposed pair may differ. Default: by the number of images."),
    ] = None,
    likeness: Annotated[float, typer.Option(help="Correlation from which two pictures are one.")] = 0.95,
    turned: Annotated[bool, typer.Option(help="Also look for flipped and turned copies.")] = True,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the dataset here with duplicates in one group, so that no split parts them."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page with the pairs side by side here.")] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Files read at a time; 0: one per core.")] = 0,
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Find images that show one picture: the same file, or a turned, re-encoded or slightly cropped copy.

    Ends with 1 where some are found.

    Example: cytolens duplicates data/pbc --report duplicates.html --out data/pbc-grouped
    """
    from cytolens.dataset import Dataset
    from cytolens.prepare.duplicates import DuplicateSettings, find_duplicates, with_groups
    from cytolens.settings import checked

    wishes = {"likeness": likeness, "turned": turned, "jobs": jobs} | (
        {} if distance is None else {"distance": distance}
    )
    settings = checked(DuplicateSettings, wishes, "duplicates")
    data = Dataset.read(dataset)
    with progress("reading images", json_output) as tell:
        found = find_duplicates(data.images, settings, tell)
    if out is not None:
        with_groups(data, found).write(out)
    if report is not None:
        from cytolens.prepare.duplicates_page import write_page

        write_page(found, data.images, report)
    summary = {
        "images": found.looked_at,
        "distance": found.distance,
        "groups": [list(group) for group in found.groups],
        "pairs": found.pairs.to_dicts(),
        "across_splits": len(found.across_splits),
        "problems": [problem.to_dict() for problem in found.problems],
    }
    answer(summary, [*_lines(found, out, report), *problem_lines(found.problems)], json_output)
    return BAD if len(found.pairs) or found.problems.worst == "error" else DONE


def _lines(found: Duplicates, out: Path | None, report: Path | None) -> list[str]:
    copies = sum(len(group) - 1 for group in found.groups)
    lines = [f"{found.looked_at} images: {copies} of them show what another shows, in {len(found.groups)} groups"]
    for row in found.pairs.head(_SHOWN).iter_rows(named=True):
        told = row["kind"] if row["kind"] == "same file" else f"{row['likeness']:.3f} alike, {row['turn']}"
        parts = "" if row["first_split"] == row["second_split"] else f"; {row['first_split']} and {row['second_split']}"
        lines.append(f"  {row['first']} = {row['second']} ({told}{parts})")
    if len(found.pairs) > _SHOWN:
        lines.append(f"  … and {len(found.pairs) - _SHOWN} more pairs (--report shows them, --json lists them)")
    if across := len(found.across_splits):
        said = "1 pair stands" if across == 1 else f"{across} pairs stand"
        lines.append(f"  {said} on both sides of a split: scores there are inflated")
    lines += [f"grouped dataset → {out}"] if out is not None else []
    lines += [f"open {report}"] if report is not None else []
    return lines
