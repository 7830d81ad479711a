"""An explanation on disk: a picture per cell of what mattered, one table for programs, one page for people."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from cytolens.evaluate.page import Page, Picture, Tile
from cytolens.evaluate.pictures import Outline, outlined
from cytolens.images import Pixels
from cytolens.predict.concepts import Voice
from cytolens.predict.explain import Explanation, Why
from cytolens.predict.occlusion import Occlusion
from cytolens.problems import written

_SIDE_PX = 320
_FAINTEST = 0.02  # a map whose strongest change is smaller is not stretched to full colour
_FOR, _AGAINST = (194, 65, 12), (79, 70, 229)  # orange and indigo stay apart for colour-blind readers
_PAGE_PX = 1100

ABOUT_MAPS = (
    "Grey squares were laid over the cell, and the probability of its likeliest kind was asked for again. Orange: "
    "covering this lowers it, so the name rests on it. Indigo: covering this raises it. Colours are stretched to each "
    "cell's own strongest change, which stands under it. A map says what the model uses, not what is true of the cell; "
    "a square may also hide something from it that a person would not miss."
)


def write_explanation(explained: Explanation, folder: Path) -> dict[str, Any]:
    """Write ``maps/cell-<n>.png``, ``explained.html`` and, last, ``explained.json``; returns what stands in the last.

    Maps of an earlier explanation in the folder are removed.
    """
    (folder / "explained.json").unlink(missing_ok=True)
    for old in (folder / "maps").glob("cell-*.png"):
        old.unlink()
    cells = []
    maps: list[bytes] = []
    for number, why in enumerate(explained.cells, start=1):
        name = f"maps/cell-{number:03d}.png"
        maps.append(_png(map_picture(explained.pixels, why.map)))
        with written(folder / name) as part:
            part.write_bytes(maps[-1])
        cells.append({"map": name, **why.to_dict()})
    _page(explained, maps).write(folder / "explained.html")
    told = {
        "image": explained.image_id,
        "bundle": explained.source,
        "counted": explained.counted,
        "named": explained.named,
        "explained": len(cells),
        "names_read_from_attributes": explained.reads_attributes,
        "cells": cells,
    }
    with written(folder / "explained.json") as part:
        part.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return told


def map_picture(pixels: Pixels, map_: Occlusion) -> Pixels:
    """The cell in grey with what mattered laid over it, uint8 RGB; its longer side has 320 px.

    Args:
        pixels: the image, shape (H, W, 3).
        map_: of the cell.
    """
    from PIL import Image

    left, top, right, bottom = map_.window
    scale = _SIDE_PX / max(right - left, bottom - top)
    size = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
    cell = Image.fromarray(pixels[top:bottom, left:right]).convert("L").resize(size, Image.Resampling.BICUBIC)
    heat = Image.fromarray(map_.drop).resize(size, Image.Resampling.BILINEAR)
    strength = np.asarray(heat, np.float64) / max(float(np.abs(map_.drop).max(initial=0)), _FAINTEST)
    colour = np.where(strength[..., None] > 0, _FOR, _AGAINST)
    alpha = 0.65 * np.abs(strength).clip(0, 1)[..., None]
    mixed = (1 - alpha) * np.asarray(cell, np.float64)[..., None] + alpha * colour
    return mixed.round().astype(np.uint8)


def _png(pixels: Pixels) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _page(explained: Explanation, maps: list[bytes]) -> Page:
    page = Page("Why these names", f"{explained.image_id}, looked at with {explained.source.removeprefix('bundle:')}")
    page = page.tiles(
        [
            Tile("cells", f"{explained.counted:,}", "found"),
            Tile("named", f"{explained.named:,}", "by a classifier"),
            Tile("explained", f"{len(explained.cells):,}"),
        ]
    )
    if not explained.cells:
        return page.notes(["No cell was named by a classifier, so there is nothing to explain."], "warning")
    if explained.named > len(explained.cells):
        page = page.notes([f"{len(explained.cells)} of {explained.named} named cells, those with the highest score."])
    if not explained.reads_attributes:
        page = page.notes(
            ["This model does not read names from attributes, so no attribute can be said to speak for a name."]
        )
    frames = [
        Outline(why.box, "#c2410c" if why.row["refer"] else "#0f766e", f"{number}: {why.row['label'] or 'not named'}")
        for number, why in enumerate(explained.cells, start=1)
    ]
    page = page.figure(
        outlined(explained.pixels, frames, _PAGE_PX), "The cells that are explained; referred ones orange."
    )
    page = page.notes([ABOUT_MAPS])
    for number, (why, data) in enumerate(zip(explained.cells, maps, strict=True), start=1):
        page = _cell(page, number, why, data, explained)
    return page.notes(["For research only. Not a medical device."])


def _cell(page: Page, number: int, why: Why, data: bytes, explained: Explanation) -> Page:
    left, top, right, bottom = why.map.window
    plain = _png(explained.pixels[top:bottom, left:right])
    fall, rise = (float(change.max(initial=0)) for change in (why.map.drop, -why.map.drop))
    under = f"{why.top[0][0]} falls by up to {100 * fall:.0f} points, rises by up to {100 * rise:.0f}"
    name = why.row["label"] or "not named"
    referred = " A person should look at this cell." if why.row["refer"] else ""
    page = page.section(f"{number}: {name}", f"{why.looks}.{referred}".lstrip(".").strip())
    page = page.figures([Picture(plain, "the cell"), Picture(data, "what mattered", under)])
    page = page.table(["kind", "probability"], [[label, f"{100 * share:.1f} %"] for label, share in why.top])
    voices = {voice.attribute.column: voice for voice in why.voices}
    rows = [
        [attribute.name.replace("_", " "), *_attribute(why.attributes.get(attribute.column), voice)]
        for attribute in explained.labels.attributes
        if (voice := voices.get(attribute.column)) is not None or attribute.column in why.attributes
    ]
    if rows:
        caption = f"What it says for {why.top[0][0]} (+) or against it (−), in nats." if voices else ""
        page = page.table(["attribute", "value", "probability", "says"], rows, caption)
    return page


def _attribute(shares: dict[str, float] | None, voice: Voice | None) -> list[object]:
    """An attribute's likeliest value with its probability, and what it says for the name."""
    says = None if voice is None else f"{voice.weight:+.2f}"
    if shares is not None:
        value, share = max(shares.items(), key=lambda pair: pair[1])
        return [value, f"{100 * share:.1f} %", says]
    return [None if voice is None else f"({voice.value})", None, says]
