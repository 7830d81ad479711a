"""The report of a check: every kind of finding counted, and its worst cases as pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import polars as pl

import cytolens
from cytolens.cells import BOX_COLUMNS
from cytolens.dataset import Dataset
from cytolens.evaluate.page import Page, Picture, Tile
from cytolens.evaluate.pictures import ImageFiles, Outline, outlined
from cytolens.images import Pixels
from cytolens.prepare.check_findings import KINDS, MENDED, Finding
from cytolens.problems import Severity

_PICTURES_PER_KIND = 4
_LINES_PER_KIND = 8
_WRONG, _OTHER, _NEIGHBOUR, _OUTSIDE = "#c2410c", "#a21caf", "#0f766e", 208
_LEGEND = (
    "On the pictures below: orange, the cell in question; purple and broken, the other one; thin green, all other "
    "cells; grey, what lies outside the image."
)
_SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


def write_check_report(dataset: Dataset, found: Sequence[Finding], path: str | os.PathLike[str]) -> None:
    """Write the report of a check as one self-contained HTML file."""
    check_page(dataset, found).write(path)


def check_page(dataset: Dataset, found: Sequence[Finding]) -> Page:
    """The report of a check as a `Page`.

    Args:
        dataset: what was checked; its image files are shown where they can be read.
        found: what `check.findings` gave.
    """
    subtitle = f"{dataset.name} · {len(dataset.images):,} images · {len(dataset.cells):,} cells"
    page = Page("What is wrong with the data", subtitle, f"Made with Cytolens {cytolens.__version__}.")
    tally = [sum(one.problem.severity == severity for one in found) for severity in _SEVERITIES]
    details = ("wrong for certain", "wrong, or very likely so", "worth knowing")
    page = page.tiles(
        [
            Tile(f"{severity}s", f"{count:,}", detail)
            for severity, count, detail in zip(_SEVERITIES, tally, details, strict=True)
        ]
    )
    kinds = by_kind(found)
    if not kinds:
        return page.text("Nothing was found.")
    page = page.section("All kinds", _LEGEND).table(["kind", "severity", "count", "mended by", "meaning"], _rows(kinds))
    files = ImageFiles(dataset.images)
    for kind, members in kinds.items():
        page = _kind(page, dataset, files, kind, members)
    return page


def by_kind(found: Sequence[Finding]) -> dict[str, list[Finding]]:
    """Findings by kind: the gravest kinds first, then the commonest; within a kind the worst first."""
    kinds: dict[str, list[Finding]] = {}
    for one in found:
        kinds.setdefault(one.kind, []).append(one)
    order = sorted(kinds, key=lambda kind: (_SEVERITIES.index(kinds[kind][0].problem.severity), -len(kinds[kind])))
    return {kind: sorted(kinds[kind], key=lambda one: -one.weight) for kind in order}


def heading(kind: str) -> str:
    """What a kind means, in a few words."""
    return KINDS.get(kind, kind)


def _rows(kinds: dict[str, list[Finding]]) -> list[list[Any]]:
    return [
        [kind, members[0].problem.severity, len(members), "repair" if kind in MENDED else "a person", heading(kind)]
        for kind, members in kinds.items()
    ]


def _kind(page: Page, dataset: Dataset, files: ImageFiles, kind: str, members: list[Finding]) -> Page:
    """A section with the worst images of a kind, and lines for what is not on them."""
    fix, severity = members[0].problem.fix, members[0].problem.severity
    page = page.section(f"{heading(kind)} ({len(members):,})", fix)
    shown = _shown(files, members)
    if shown:
        page = page.figures([_picture(dataset, files, image_id, here) for image_id, here in shown.items()])
    others = [one.problem for one in members if one.image_id not in shown]
    lines = [f"{p.where}: {p.what} {'' if p.fix == fix else p.fix}".strip() for p in others[:_LINES_PER_KIND]]
    more = [f"… and {len(others) - len(lines):,} more."] if len(others) > len(lines) else []
    return page.notes([*lines, *more], severity)


def _shown(files: ImageFiles, members: list[Finding]) -> dict[str, list[Finding]]:
    """The first images that can be read, with all findings about them; few are tried, as reading takes time."""
    images = list(dict.fromkeys(one.image_id for one in members if one.image_id is not None))
    readable = (i for i in images[: 3 * _PICTURES_PER_KIND] if not isinstance(files.read(i), str))
    chosen = set(islice(readable, _PICTURES_PER_KIND))
    return {i: [one for one in members if one.image_id == i] for i in images if i in chosen}


def _picture(dataset: Dataset, files: ImageFiles, image_id: str, here: list[Finding]) -> Picture:
    """One image with all that is wrong with it in the same way."""
    pixels = files.read(image_id)
    assert not isinstance(pixels, str), "only images that can be read are shown"
    cells = dataset.cells.of_image(image_id).frame
    more = f" And {len(here) - 1} more here." if len(here) > 1 else ""
    drawn = _drawn(pixels, cells, [one.cell_ids for one in here])
    return Picture(drawn, image_id, here[0].problem.what + more)


def _drawn(pixels: Pixels, cells: pl.DataFrame, wrong: Sequence[tuple[str, ...]]) -> bytes:
    """The image with the cells in question on top of the others; what lies outside is shown on grey."""
    colours = {cell_id: _OTHER for ids in wrong for cell_id in ids[1:]} | {ids[0]: _WRONG for ids in wrong if ids}
    names = dict(cells.select("cell_id", pl.col("label").cast(pl.String)).iter_rows())
    # Both names of a disputed box stand on one tag, where one would hide the other.
    texts = {ids[0]: " / ".join(dict.fromkeys(names[i] or "?" for i in ids)) for ids in wrong if ids}
    boxes = {
        i: _in_order(row) for i, *row in cells.select("cell_id", *BOX_COLUMNS).iter_rows() if np.isfinite(row).all()
    }
    margin = _margin(pixels, [boxes[i] for i in colours if i in boxes])
    canvas = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), constant_values=_OUTSIDE)
    shifted = {i: np.add(corners, margin) for i, corners in boxes.items()}
    outlines = [Outline(corners, _NEIGHBOUR, width_px=1) for i, corners in shifted.items() if i not in colours]
    outlines += [Outline(shifted[i], _WRONG, texts[i], 3) for i in texts if i in shifted]
    outlines += [Outline(shifted[i], _OTHER, "", 3, dashed=True) for i in colours if i in shifted and i not in texts]
    return outlined(canvas, outlines, 640)


def _in_order(row: Sequence[float]) -> list[float]:
    """The box with its corners the right way round, as drawing needs it."""
    x, y = sorted(row[0::2]), sorted(row[1::2])
    return [x[0], y[0], x[1], y[1]]


def _margin(pixels: Pixels, corners: Sequence[Sequence[float]]) -> int:
    """How much of the outside has to be shown: what the boxes need, up to half of the image's longer side."""
    height, width = pixels.shape[:2]
    table = np.array(corners, np.float64).reshape(-1, 4)
    need = float(np.concatenate([-table, table - [width, height, width, height]], axis=1).max(initial=0))
    return 0 if need < 1 else int(min(need + 4, max(height, width) / 2))
