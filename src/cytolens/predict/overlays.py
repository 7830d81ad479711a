"""Overlays: the image with every counted cell outlined and named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cytolens import masks
from cytolens.cells import Cells
from cytolens.formats.geojson_writing import own_colour
from cytolens.labels import AttributeSchema, LabelSet
from cytolens.predict.overlay_notes import notes, write_note

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
_MOST_COVERED = 0.1  # of the picture, by the names of outlined cells


def colour(labels: LabelSet, name: str | None) -> tuple[int, int, int]:
    """The colour (R, G, B) of a label; names that the taxonomy does not know have one of their own."""
    from cytolens.labels import taxonomy

    known = taxonomy()
    for step in () if name is None else (name, *labels.ancestors(name)):
        concept = known.resolve(step)
        for wider in () if concept is None else (concept, *known.ancestors(concept)):
            if wider in _COLOURS:
                return _COLOURS[wider]
    return _OTHER if name is None or known.resolve(name) is not None else own_colour(labels, name)


def overlay(
    pixels: Pixels,
    cells: Cells,
    longest_px: int | None = None,
    frame_wh: tuple[int, int] | None = None,
    attributes: Sequence[AttributeSchema] = (),
) -> Pixels:
    """The image (H, W, 3) with the counted cells drawn in; large images are shrunk to `longest_px`.

    A cell with a mask is outlined, others are framed. A referred cell has dashed lines and a question mark. Where the
    names of outlined cells would hide the field, a key of colours with counts stands in a corner instead.

    Args:
        pixels: the image, or a smaller picture of it.
        cells: its cells.
        longest_px: side that the result must not exceed.
        frame_wh: the size of the image that boxes and masks are in; None: that of `pixels`.
        attributes: whose values are written below the names of the cells that have any.
    """
    import cv2
    from PIL import Image
    from PIL.ImageDraw import Draw

    shown = cells.filter(cells.frame["counted"].to_numpy())
    frame_wh = frame_wh or (pixels.shape[1], pixels.shape[0])
    scale = min(1.0, longest_px / max(pixels.shape[:2])) if longest_px else 1.0
    if scale < 1:
        pixels = np.asarray(cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    image = Image.fromarray(pixels)
    draw = Draw(image)
    line = max(1, round(max(image.size) / 450))
    height = max(10, 6 * line)
    scale_xy = np.array(image.size) / np.array(frame_wh)
    boxes = shown.boxes() * np.tile(scale_xy, 2)
    outlines = [_outline(code, frame_wh, scale_xy) for code in shown.masks()]
    drawn = np.array([bool(outline) for outline in outlines], bool)
    names, refer = shown.label_names(), shown.frame["refer"].to_list()
    key = _crowded([name or "cell" for name, own in zip(names, drawn, strict=True) if own], height, image.size)
    thin = _thin(boxes[drawn], line)
    lines = notes(shown, attributes)
    shades = [REFER if asked else colour(cells.labels, name) for name, asked in zip(names, refer, strict=True)]
    titles = [f"{name or 'cell'}{' ?' if asked else ''}" for name, asked in zip(names, refer, strict=True)]
    for i in sorted(range(len(shown)), key=lambda i: names[i] not in _QUIET):
        name, shade = names[i], shades[i]
        if drawn[i]:
            _contours(draw, outlines[i], shade, 1 if name in _QUIET else thin, dashed=refer[i])
        else:
            _frame(draw, boxes[i], shade, 1 if name in _QUIET else line, dashed=refer[i])
        part = name is not None and cells.labels.role(name) == "part"  # its cell is named beside it
        if name not in _QUIET and not part and not (key and drawn[i]) and not lines[i]:
            _caption(draw, boxes[i], titles[i], shade, image.size, height)
    taken = boxes[[name not in _QUIET for name in names]]
    for i in [i for i in range(len(shown)) if lines[i]]:  # over all frames, so that none runs through a word
        filled = write_note(draw, boxes[i], titles[i], lines[i], shades[i], image.size, height, taken)
        taken = np.concatenate([taken, filled[None]])
    if key:
        counts = Counter(name for name, own in zip(names, drawn, strict=True) if own)
        told = [(f"{name or 'cell'} {count}", colour(cells.labels, name)) for name, count in counts.most_common()]
        _key(draw, told, image.size, height)
    return np.asarray(image)


# -- outlines ---------------------------------------------------------------------------------------


def _outline(code: bytes | None, frame_wh: tuple[int, int], scale_xy: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The border pixels of a mask, ring by ring, in px of the picture, each (n, 2); none where it is not drawn."""
    import cv2

    if code is None:
        return []
    try:
        part, x, y = masks.crop(code, (frame_wh[1], frame_wh[0]))
    except ValueError:  # the picture is another than the one that was looked at
        return []
    if not part.size:
        return []
    rings, _ = cv2.findContours(part.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    centre = np.array([x + 0.5, y + 0.5])
    return [(np.asarray(ring).reshape(-1, 2) + centre) * scale_xy - 0.5 for ring in rings]


def _contours(
    draw: object, rings: list[NDArray[np.float64]], shade: tuple[int, int, int], line: int, dashed: bool
) -> None:
    for ring in rings:
        points = [(float(x), float(y)) for x, y in ring]
        points = [*points, points[0]]
        pieces = [points[at : at + 7] for at in range(0, len(points), 10)] if dashed else [points]
        for piece in pieces:
            draw.line(piece, fill=shade, width=line)  # type: ignore[attr-defined]
            draw.point(piece, fill=shade)  # type: ignore[attr-defined]


def _thin(boxes: NDArray[np.floating], line: int) -> int:
    """The width of outlines: no wider than a twentieth of the usual cell."""
    if not len(boxes):
        return line
    sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
    return max(1, min(line, int(np.median(sides) / 20)))


def _crowded(names: list[str], height: int, size: tuple[int, int]) -> bool:
    """Whether so many names would hide the picture."""
    letters = sum(len(name) for name in names if name not in _QUIET)
    return letters * height * height / 2 > _MOST_COVERED * size[0] * size[1]


def _key(draw: object, lines: list[tuple[str, tuple[int, int, int]]], size: tuple[int, int], height: int) -> None:
    """Colours and what they mean, upwards from the lower left corner."""
    bottom = float(size[1])
    for text, shade in reversed(lines):
        # A caption stands above its box; this one ends where the caption before it began.
        bottom -= _caption(draw, np.array([0.0, bottom, 0.0, bottom]), text, shade, size, height)


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
) -> float:
    """The name above the box, or inside where there is no room above; returns how high it is in px."""
    from PIL import ImageFont

    font = ImageFont.load_default(height)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)  # type: ignore[attr-defined]
    width, tall = right - left + 6, bottom - top + 6
    x = min(max(float(corners[0]), 0), max(size[0] - width, 0))
    y = float(corners[1]) - tall
    y = y if y >= 0 else float(max(corners[1], 0))
    draw.rectangle((x, y, x + width, y + tall), fill=shade)  # type: ignore[attr-defined]
    draw.text((x + 3 - left, y + 3 - top), text, fill=(255, 255, 255), font=font)  # type: ignore[attr-defined]
    return tall
