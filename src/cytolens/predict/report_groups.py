"""The report's section on groups of images: patients, slides or samples beside each other."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from cytolens.evaluate.page import Page
from cytolens.predict.blasts import Blasts

_KINDS_SHOWN = 8
_GROUPS_SHOWN = 200


def group_section(page: Page, table: pl.DataFrame, blasts: Mapping[str, Blasts]) -> Page:
    """Append the section, where there are groups.

    Args:
        page: so far.
        table: of `differential_by_group`.
        blasts: group → its blasts, of `blasts_by_group`.
    """
    groups = table["group"].unique(maintain_order=True).to_list()
    if not groups:
        return page
    kinds = (
        table.filter((pl.col("part") == "leukocytes") & (pl.col("depth") == 1) & (pl.col("count") > 0))
        .group_by("label", maintain_order=True)
        .agg(pl.col("count").sum())
        .sort("count", descending=True, maintain_order=True)["label"]
        .to_list()[:_KINDS_SHOWN]
    )
    rows = [_row(group, table.filter(pl.col("group") == group), kinds, blasts) for group in groups[:_GROUPS_SHOWN]]
    page = page.section(
        "Group by group",
        "Groups are patients, slides or samples. Shares of the named white cells in percent, with 95 % intervals.",
    ).table(["group", "images", "white cells", "referred", *kinds, *(["blasts"] if blasts else [])], rows)
    over = [_verdict(name, one) for name, one in blasts.items() if one.percent is not None and one.percent >= one.line]
    if over:
        page = page.notes(over, "warning")
    if len(groups) > _GROUPS_SHOWN:
        page = page.notes([f"{_GROUPS_SHOWN} of {len(groups)} groups listed; all stand in differential_by_group.csv."])
    return page


def _verdict(group: str, one: Blasts) -> str:
    return f"{group}: {one.count} blasts of {one.total} named white cells, {one.verdict}"


def _row(group: str, table: pl.DataFrame, kinds: list[str], blasts: Mapping[str, Blasts]) -> list[object]:
    top = table.filter(pl.col("depth") == 0)
    white = int(top.filter(pl.col("part") == "leukocytes")["count"].sum())
    referred = int(top.filter(pl.col("part") == "referred")["count"].sum())
    shares = {row["label"]: _share(row["percent"], row["low"], row["high"]) for row in table.iter_rows(named=True)}
    told: list[object] = [group, int(table["images"][0]), white, referred, *[shares.get(kind) for kind in kinds]]
    if blasts:
        one = blasts.get(group)
        told.append(None if one is None else _share(one.percent, *one.interval))
    return told


def _share(percent: float | None, low: float | None, high: float | None) -> str | None:
    return None if percent is None or low is None or high is None else f"{percent:.1f} ({low:.1f} – {high:.1f})"
