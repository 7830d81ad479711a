"""The page that shows doubtful annotations, each kind's most doubtful first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cytolens import boxes as box
from cytolens.cells import BOX_COLUMNS
from cytolens.evaluate.page import Page, Picture, Tile
from cytolens.evaluate.pictures import ImageFiles, Outline, outlined
from cytolens.images import Images
from cytolens.prepare.noise import KINDS, Noise

_SHOWN = 24
_AROUND = 2.5  # side of the picture, in longer sides of the cell
_PICTURE_PX = 260
_ANNOTATED, _FOUND = "#d62728", "#1f77b4"
_SAID = {
    "label": "The cell is found there, and the models name it otherwise.",
    "box": "The models find the cell beside its box.",
    "not found": "No model finds a cell there.",
    "not annotated": "A confident finding where the image has no annotation, though it claims to be complete.",
}


def write_page(noise: Noise, images: Images, path: Path) -> None:
    """Write the page: how many doubts of each kind, and pictures of the first of each."""
    page = Page("Doubtful annotations", f"{noise.annotations} annotations judged by models that had not seen them")
    page = page.tiles([Tile(kind, str(count)) for kind, count in noise.counts.items()])
    page = page.notes(["Red: annotated. Blue, dashed: found. A doubt is a reason to look, not a verdict."])
    files = ImageFiles(images)
    for kind in KINDS:
        rows = noise.of(kind)
        if not len(rows):
            continue
        shown = rows.head(_SHOWN)
        rest = f" The first {len(shown)} of {len(rows)}." if len(rows) > len(shown) else ""
        page = page.section(f"{kind[0].upper()}{kind[1:]}: {len(rows)}", _SAID[kind] + rest)
        page = page.figures([_picture(files, row) for row in shown.iter_rows(named=True)])
    return page.write(path)


def _picture(files: ImageFiles, row: dict[str, Any]) -> Picture:
    annotated, found = ([row[prefix + name] for name in BOX_COLUMNS] for prefix in ("", "found_"))
    marks = [(annotated, _ANNOTATED, False), (found, _FOUND, True)]
    boxes = np.array([corners for corners, _, _ in marks if corners[0] is not None], np.float64)
    label, suggested = row["label"] or "—", row["suggested"] or "—"
    told = {"label": f"{label} → {suggested}", "not annotated": suggested}.get(row["kind"], label)
    detail = f"{row['image_id']}, suspicion {row['suspicion']:.2f}"
    pixels = files.read(row["image_id"])
    if isinstance(pixels, str):
        return Picture(None, told, f"{detail}; {pixels}")
    around = box.squares(np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)]), _AROUND)[0]
    x_min, y_min, x_max, y_max = np.clip(around, 0, [*pixels.shape[1::-1]] * 2).round().astype(int)
    shift = np.array([x_min, y_min, x_min, y_min])
    outlines = [
        Outline(np.array(corners) - shift, colour, dashed=dashed)
        for corners, colour, dashed in marks
        if corners[0] is not None
    ]
    return Picture(outlined(pixels[y_min:y_max, x_min:x_max], outlines, _PICTURE_PX), f"{row['rank']}. {told}", detail)
