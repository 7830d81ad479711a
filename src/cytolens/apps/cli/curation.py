"""`cytolens check` and `cytolens repair`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cytolens.apps.cli.console import BAD, DONE, Debug, Json, Where, answer, command, progress
from cytolens.problems import SettingError, did_you_mean

Source = Annotated[Path, typer.Argument(help="The dataset.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Change one setting, KEY=VALUE; may be repeated.")]

_FORMATS = ("text", "json")
_EXAMPLES = 3


@command
def check(
    dataset: Source,
    images: Annotated[
        bool, typer.Option(help="Decode every image file; without, the tables alone are checked.")
    ] = True,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report with pictures of the worst cases.")] = None,
    format: Annotated[str, typer.Option(help="text, or json (the same as --json).")] = "text",
    set: Set = None,
    where: Where = None,
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Say everything that is wrong or odd in a dataset: where, what, how bad, what to do.

    Errors and warnings end with exit code 1; notes do not.

    Example: cytolens check data/bccd --report check.html
    """
    if format not in _FORMATS:
        hint = did_you_mean(format, _FORMATS)
        raise SettingError(
            f'--format "{format}" is unknown. {hint + " " if hint else ""}Allowed: {", ".join(_FORMATS)}'
        )
    from cytolens.dataset import Dataset
    from cytolens.prepare.check import CheckSettings, findings
    from cytolens.prepare.check_report import by_kind, heading, write_check_report
    from cytolens.settings import checked, with_overrides

    as_json = json_output or format == "json"
    settings = checked(CheckSettings, with_overrides({"images": images}, set or ()), "check")
    data = Dataset.read(dataset)
    data = data if where is None else data.select(where)
    with progress("looking at images", as_json) as tell:
        found = findings(data, settings, tell)
    if report is not None:
        write_check_report(data, found, report)
    kinds = by_kind(found)
    lines = [f"{dataset}: {len(data.images)} images, {len(data.cells)} cells", _tally(found)]
    for kind, members in kinds.items():
        lines.append(f"{members[0].problem.severity}: {len(members)} × {kind}: {_lowered(heading(kind))}")
        lines += [f"  {one.problem}" for one in members[:_EXAMPLES]]
        if len(members) > _EXAMPLES:
            lines.append(f"  … and {len(members) - _EXAMPLES} more")
    summary = {
        "dataset": str(dataset),
        "images": len(data.images),
        "cells": len(data.cells),
        "counts": {kind: len(members) for kind, members in kinds.items()},
        "severities": _severities(found),
        "problems": [one.to_dict() for one in found],
    }
    answer(summary, lines + ([f"open {report}"] if report else []), as_json)
    return BAD if any(one.problem.severity != "note" for one in found) else DONE


def _lowered(heading: str) -> str:
    return heading[:1].lower() + heading[1:]


def _severities(found: list[Any]) -> dict[str, int]:
    return {name: sum(one.problem.severity == name for one in found) for name in ("error", "warning", "note")}


def _tally(found: list[Any]) -> str:
    counts = [f"{count} {name}{'s' if count != 1 else ''}" for name, count in _severities(found).items()]
    return ", ".join(counts) if found else "nothing wrong was found"


@command
def repair(
    dataset: Source,
    out: Annotated[Path, typer.Option(help="Folder for the repaired dataset; another than the first.")],
    masks_of: Annotated[
        Path | None,
        typer.Option(help="A dataset with corrected outlines: first its cells replace those of the images both have."),
    ] = None,
    masks_where: Annotated[
        str | None, typer.Option(help="With --masks-of: only images that meet an SQL condition, \"split = 'train'\".")
    ] = None,
    set: Set = None,
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Mend what needs no person: sizes, boxes outside their image, boxes without area, repeated boxes.

    The dataset stays as it is. The new one holds changes.csv (and .parquet): what was changed, before, after, why.

    Example: cytolens repair data/bccd --out data/bccd-repaired
    """
    import polars as pl

    from cytolens.dataset import Dataset
    from cytolens.prepare.mask_overrides import with_masks_of
    from cytolens.prepare.repair import RepairSettings, write_changes
    from cytolens.prepare.repair import repair as mend
    from cytolens.settings import checked, with_overrides

    if out.resolve() == dataset.resolve():
        raise SettingError(f'--out is the dataset itself ("{out}"); name another folder, so that nothing is lost')
    if masks_where is not None and masks_of is None:
        raise SettingError("--masks-where says for which images --masks-of counts; give --masks-of, too")
    settings = checked(RepairSettings, with_overrides({}, set or ()), "repair")
    data = Dataset.read(dataset)
    given, replaced = (data, None) if masks_of is None else with_masks_of(data, Dataset.read(masks_of), masks_where)
    with progress("reading sizes", json_output) as tell:
        repaired, changes = mend(given, settings, tell)
    counts = repaired.provenance[-1]["changes"]
    if replaced is not None:
        changes, counts = pl.concat([replaced, changes]), {"masks-replaced": len(replaced), **counts}
    write_changes(changes, out)
    repaired.write(out)
    lines = [f"{out}: {len(repaired.images)} images, {len(repaired.cells)} cells (before: {len(data.cells)})"]
    lines += [f"  {kind}: {count} mended" for kind, count in counts.items()] or ["  nothing had to be changed"]
    lines += [f"  every change: {out / 'changes.csv'}"]
    summary = {
        "dataset": str(out),
        "images": len(repaired.images),
        "cells": len(repaired.cells),
        "cells_before": len(data.cells),
        "changes": counts,
        "fingerprint": repaired.fingerprint,
    }
    answer(summary, lines, json_output)
    return DONE
