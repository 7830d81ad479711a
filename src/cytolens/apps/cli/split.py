"""`cytolens split`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cytolens.apps.cli.console import BAD, DONE, Debug, Json, answer, command, names, problem_lines, progress
from cytolens.problems import SettingError, listing

if TYPE_CHECKING:
    from cytolens.dataset import Dataset
    from cytolens.prepare.image_groups import LookGroups
    from cytolens.prepare.shared_samples import Shared
    from cytolens.prepare.split import Split

_MANY = 100  # cells from which a label's balance is worth a figure


@command
def split(
    dataset: Annotated[Path, typer.Argument(help="The dataset to split.")],
    out: Annotated[Path, typer.Option(help="Folder for the dataset with its folds or parts.")],
    folds: Annotated[int | None, typer.Option(help="Cross-validation folds of equal size.")] = None,
    shares: Annotated[str | None, typer.Option(help="Parts instead of folds: train=0.7,val=0.15,test=0.15.")] = None,
    fractions: Annotated[
        str | None, typer.Option(help="Nested parts for learning curves: 0.05,0.2,1; each is a dataset in OUT.")
    ] = None,
    published: Annotated[
        str | None,
        typer.Option(help="The division that a data set was published with, by patient: leukemia_attri (train, test)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order in which equals are placed.")] = 0,
    keep: Annotated[
        bool, typer.Option("--keep", help="Folds or parts that are given stay; only new groups get one.")
    ] = False,
    group_by: Annotated[
        Literal["given", "look"],
        typer.Option(
            help="look: for sets that name no patients or plates; images of one kind, size and colour are a group, and "
            "so are copies of one picture."
        ),
    ] = "given",
    look_distance: Annotated[
        float | None,
        typer.Option(help="look: how far colours in a group may lie apart, in units of CIELAB. Default: 5."),
    ] = None,
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Split a dataset: balanced in every label, and never through a group (patient, slide, duplicates).

    Example: cytolens split data/pbc --folds 4 --seed 42 --out data/pbc-folds
    """
    from cytolens.dataset import Dataset
    from cytolens.prepare import split as splitting
    from cytolens.prepare.shared_samples import shared_samples

    if sum(choice is not None for choice in (folds, shares, fractions, published)) != 1:
        raise SettingError(
            "say one of --folds 4, --shares train=0.8,val=0.2, --fractions 0.05,0.2,1 or --published leukemia_attri"
        )
    if keep and published is not None:
        raise SettingError("--keep goes with --folds and --shares; a published division is complete")
    if look_distance is not None and group_by != "look":
        raise SettingError("--look-distance goes with --group-by look")
    data = Dataset.read(dataset)
    looks = None
    if group_by == "look":
        looks = _looked_at(data, look_distance, json_output)
        data = looks.dataset
    if fractions is not None:
        if keep:
            raise SettingError("--keep goes with --folds and --shares; fractions are drawn anew")
        nested = splitting.fractions(data, _numbers(fractions, "--fractions"), seed)
        written = {}
        for share, part in nested.items():
            part.write(out / f"{share:g}")
            written[f"{share:g}"] = {"images": len(part.images), "cells": len(part.cells)}
        told = [f"{out / name}: {one['images']} images, {one['cells']} cells" for name, one in written.items()]
        answer({"out": str(out), "fractions": written} | _look_summary(looks), told + _look_lines(looks), json_output)
        return _code(looks)
    if folds is not None:
        result = splitting.folds(data, folds, seed, keep=keep)
    elif published is not None:
        result = splitting.published(data, published)
    else:
        result = splitting.parts(data, _shares(shares or ""), seed, keep=keep)
    result.dataset.write(out)
    shared = shared_samples(result.dataset, result.column)
    summary: dict[str, Any] = {
        "out": str(out),
        "column": result.column,
        "images_in_groups": result.grouped,
        "worst_deviation": result.worst(_MANY),
        "balance": result.balance.to_dicts(),
        "shared": [one.to_dict() for one in shared],
    }
    lines = [*_lines(result, out), *_look_lines(looks), *_shared_lines(shared, result.column)]
    answer(summary | _look_summary(looks), lines, json_output)
    return _code(looks)


def _looked_at(data: Dataset, distance: float | None, json_output: bool) -> LookGroups:
    from cytolens.prepare.image_groups import LookSettings, grouped_by_look
    from cytolens.settings import checked

    settings = checked(LookSettings, {} if distance is None else {"distance": distance}, "split --group-by look")
    with progress("looking at images", json_output) as tell:
        return grouped_by_look(data, settings, tell)


def _code(looks: LookGroups | None) -> int:
    return BAD if looks is not None and looks.problems.worst == "error" else DONE


def _look_summary(looks: LookGroups | None) -> dict[str, Any]:
    if looks is None:
        return {}
    kinds = {str(kind or "unlabelled"): count for kind, count in looks.per_kind.items()}
    return {"groups_by_look": kinds, "problems": looks.problems.to_dicts()}


def _look_lines(looks: LookGroups | None) -> list[str]:
    if looks is None:
        return []
    told = ", ".join(f"{kind or 'unlabelled'} {count}" for kind, count in looks.per_kind.items())
    return [f"  groups by look: {told}", *problem_lines(looks.problems)]


def _shared_lines(shared: Sequence[Shared], column: str) -> list[str]:
    """What stands on several sides, of images whose sample ids are known."""
    several = "folds" if column == "fold" else "parts"
    return [
        f"  in several {several}: {len(one.across)} of {one.values} ({one.what})"
        + (f": {listing(one.across, 4)}" if one.across else "")
        for one in shared
    ]


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in names(text)]
    except ValueError:
        raise SettingError(f'{option} takes numbers such as 0.05,0.2,1; got "{text}"') from None


def _shares(text: str) -> dict[str, float]:
    pairs = [part.partition("=") for part in names(text)]
    values = _numbers(",".join(value or "?" for _, _, value in pairs), "--shares")
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise SettingError(f'--shares names each part once; got "{text}"')
    return {name.strip(): value for (name, _, _), value in zip(pairs, values, strict=True)}


def _lines(result: Split, out: Path) -> list[str]:
    parts = result.balance["part"].unique(maintain_order=True).to_list()
    width = max(len(label) for label in result.balance["label"])
    lines = [f"{out}: " + f"{'folds' if result.column == 'fold' else 'parts'} {', '.join(parts)}"]
    lines.append(f"  {'':{width}} " + "".join(f"{part:>8}" for part in parts) + "   worst deviation")
    for (label,), rows in result.balance.group_by("label", maintain_order=True):
        off = 100 * float((rows["share"] - rows["wanted"]).abs().max() or 0)  # type: ignore[arg-type]
        if rows["count"].sum():
            lines.append(f"  {label!s:{width}} " + "".join(f"{n:>8}" for n in rows["count"]) + f"   {off:.2f} points")
    for (label,), rows in result.balance.group_by("label", maintain_order=True):
        missing = rows.filter(rows["count"] == 0)["part"].to_list()
        if 0 < len(missing) < len(rows):
            lines.append(f"  {label} is missing from {listing(missing)}: too few groups have it")
    if not result.grouped:
        lines.append(
            "  no image stands in a group: patients and slides may stand on both sides (--group-pattern at import)"
        )
    return lines
