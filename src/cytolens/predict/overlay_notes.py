"""Notes in overlays: a cell's name with the values of chosen attributes below it, beside the cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens.cells import Cells
from cytolens.labels import AttributeSchema, LabelSet
from cytolens.problems import SettingError, did_you_mean, listing

_INK = (31, 41, 55)
_PAPER = (255, 255, 255)


def noted_attributes(labels: LabelSet, names: Sequence[str]) -> tuple[AttributeSchema, ...]:
    """The attributes that are meant by names, in the order of these: "cell_size", "wbcatt.cell_size" or "wbcatt".

    Raises:
        SettingError: there is no such attribute among the labels'.
    """
    chosen: dict[str, AttributeSchema] = {}
    for name in names:
        meant = [one for one in labels.attributes if name in (one.name, one.column, one.schema)]
        if not meant:
            allowed = dict.fromkeys(word for one in labels.attributes for word in (one.name, one.column, one.schema))
            hint = did_you_mean(name, allowed)
            there = listing(dict.fromkeys(one.name for one in labels.attributes), 30)
            raise SettingError(
                f'no attribute "{name}" to write beside cells. {hint + " " if hint else ""}'
                f"Allowed: {there or 'none, since nothing here describes cells; take a bundle with attributes'}"
            )
        chosen |= {one.column: one for one in meant}
    return tuple(chosen.values())


def notes(cells: Cells, attributes: Sequence[AttributeSchema]) -> list[list[str]]:
    """The lines beside each cell, such as "cell size: big"; none for a cell of which nothing is said."""
    lines: list[list[str]] = [[] for _ in range(len(cells))]
    for attribute in attributes:
        for own, value in zip(lines, cells.attribute_values(attribute.column), strict=True):
            if value is not None:
                own.append(f"{attribute.name.replace('_', ' ')}: {value}")
    return lines


def placed(
    corners: NDArray[np.floating],
    block_wh: tuple[int, int],
    size_wh: tuple[int, int],
    taken: NDArray[np.floating],
) -> tuple[float, float]:
    """The upper left corner of a block of text about a box: in the picture, and over as little as may be.

    It stands above the box, below, at its right or left, the first of those that cover least; where none lies in the
    picture, above and moved inside.

    Args:
        corners: the box, (4,), in px of the picture.
        block_wh: of the text.
        size_wh: of the picture.
        taken: boxes not to cover, shape (N, 4).
    """
    x0, y0, x1, y1 = (float(v) for v in corners)
    width, height = block_wh
    beside = [
        *[(x, y) for y in (y0 - height, y1) for x in (x0, x1 - width)],
        *[(x, y) for x in (x1, x0 - width) for y in (y0, y1 - height)],
    ]
    # A block that is a little outside is moved along its side of the box, which brings it no nearer to the cell.
    along = [(min(max(x, 0), size_wh[0] - width), y) for x, y in beside[:4]]
    along += [(x, min(max(y, 0), size_wh[1] - height)) for x, y in beside[4:]]
    inside = [(x, y) for x, y in along if 0 <= x <= size_wh[0] - width and 0 <= y <= size_wh[1] - height]
    if not inside:
        return (
            min(max(x0, 0), max(size_wh[0] - width, 0)),
            min(max(y0 - height, 0), max(size_wh[1] - height, 0)),
        )
    blocks = np.array([[x, y, x + width, y + height] for x, y in inside])
    covered = box.intersections(blocks, taken).sum(axis=1) if len(taken) else np.zeros(len(blocks))
    return inside[int(covered.round().argmin())]


def write_note(
    draw: Any,
    corners: NDArray[np.floating],
    name: str,
    lines: Sequence[str],
    shade: tuple[int, int, int],
    size_wh: tuple[int, int],
    height: int,
    taken: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Draw a name and the lines below it beside a box; returns the box (4,) that they fill.

    Args:
        draw: of Pillow.
        corners: the cell's box, (4,), in px of the picture.
        name: stands first, white on the cell's colour.
        lines: below it, dark on white.
        shade: the cell's colour.
        size_wh: of the picture.
        height: of the letters in px.
        taken: boxes not to cover, shape (N, 4).
    """
    from PIL import ImageFont

    font = ImageFont.load_default(height)
    texts, step = [name, *lines], round(1.3 * height) + 2
    width = max(int(np.ceil(draw.textlength(text, font=font))) for text in texts) + 8
    x, y = placed(corners, (width, step * len(texts) + 1), size_wh, taken)
    bottom = y + step * len(texts)
    draw.rectangle((x, y, x + width - 1, bottom), fill=_PAPER, outline=shade)
    draw.rectangle((x, y, x + width - 1, y + step - 1), fill=shade)
    for row, text in enumerate(texts):
        ink = _PAPER if row == 0 else _INK
        draw.text((x + 4, y + step * (row + 0.5)), text, fill=ink, font=font, anchor="lm")
    return np.array([x, y, x + width, bottom + 1])
