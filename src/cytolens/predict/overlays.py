"""Overlays: the image with every counted cell outlined and named."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cytolens.cells import Cells
from cytolens.labels import LabelSet

Pixels = NDArray[np.uint8]

# One colour per concept, told apart also by most colour-blind readers; what is not listed takes its parent's.
_COLOURS = {
    "leukocyte": (88, 80, 236),
    "neutrophil": (37, 99, 235),
    "band neutrophil": (14, 165, 233),
    "segmented neutrophil": (29, 78, 216),
    "eosinophil": (220, 38, 38),
    "basophil": (30, 27, 75),
    "lymphocyte": (5, 150, 105),
    "monocyte": (202, 138, 4),
    "immature granulocyte": (147, 51, 234),
    "promyelocyte": (126, 34, 206),
    "myelocyte": (168, 85, 247),
    "metamyelocyte": (192, 38, 211),
    "blast": (190, 18, 60),
    "erythroblast": (15, 118, 110),
    "erythrocyte": (156, 120, 110),
    "platelet": (234, 88, 12),
    "lysed cell": (100, 116, 139),
}
REFER = (219, 39, 119)
_OTHER = (71, 85, 105)
_QUIET = frozenset({"erythrocyte"})  # so many that their names would hide the field


def colour(labels: LabelSet, name: str | None) -> tuple[int, int, int]:
    """The colour (R, G, B) of a label."""
    from cytolens.labels import taxonomy

    known = taxonomy()
    for step in () if name is None else (name, *labels.ancestors(name)):
        concept = known.resolve(step)
        for wider in () if concept is None else (concept, *known.ancestors(concept)):
            if wider in _COLOURS:
                return _COLOURS[wider]
    return _OTHER


def overlay(pixels: Pixels, cells: Cells, longest_px: int | None = None) -> Pixels:
    """The image (H, W, 3) with the counted cells drawn in; large images are shrunk to `longest_px`.

    A referred cell has a dashed frame and a question mark.
    """
    import cv2
    from PIL import Image
    from PIL.ImageDraw import Draw

    shown = cells.filter(cells.frame["counted"].to_numpy())
    scale = min(1.0, longest_px / max(pixels.shape[:2])) if longest_px else 1.0
    if scale < 1:
        pixels = np.asarray(cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    image = Image.fromarray(pixels)
    draw = Draw(image)
    line = max(1, round(max(image.size) / 450))
    quiet_last = sorted(
        zip(shown.boxes() * scale, shown.label_names(), shown.frame["refer"].to_list(), strict=True),
        key=lambda cell: cell[1] not in _QUIET,
    )
    for corners, name, refer in quiet_last:
        shade = REFER if refer else colour(cells.labels, name)
        _frame(draw, corners, shade, 1 if name in _QUIET else line, dashed=bool(refer))
        if name not in _QUIET:
            _caption(draw, corners, f"{name or 'cell'}{' ?' if refer else ''}", shade, image.size, max(10, 6 * line))
    return np.asarray(image)


def _frame(draw: object, corners: NDArray[np.floating], shade: tuple[int, int, int], line: int, dashed: bool) -> None:
    x0, y0, x1, y1 = (float(v) for v in corners)
    if not dashed:
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=shade, width=line)  # type: ignore[attr-defined]
        return
    for ax, ay, bx, by in ((x0, y0, x1, y0), (x1, y0, x1, y1), (x1, y1, x0, y1), (x0, y1, x0, y0)):
        length = max(abs(bx - ax), abs(by - ay), 1.0)
        for start in np.arange(0, length, 10):
            a, b = start / length, min(1.0, (start + 6) / length)
            piece = (ax + (bx - ax) * a, ay + (by - ay) * a, ax + (bx - ax) * b, ay + (by - ay) * b)
            draw.line(piece, fill=shade, width=line)  # type: ignore[attr-defined]


def _caption(
    draw: object,
    corners: NDArray[np.floating],
    text: str,
    shade: tuple[int, int, int],
    size: tuple[int, int],
    height: int,
) -> None:
    """The name above the box, or inside where there is no room above."""
    from PIL import ImageFont

    font = ImageFont.load_default(height)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)  # type: ignore[attr-defined]
    width, tall = right - left + 6, bottom - top + 6
    x = min(max(float(corners[0]), 0), max(size[0] - width, 0))
    y = float(corners[1]) - tall
    y = y if y >= 0 else float(max(corners[1], 0))
    draw.rectangle((x, y, x + width, y + tall), fill=shade)  # type: ignore[attr-defined]
    draw.text((x + 3 - left, y + 3 - top), text, fill=(255, 255, 255), font=font)  # type: ignore[attr-defined]
