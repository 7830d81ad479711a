"""Masks as polygons along the edges of their pixels, and polygons with holes as masks.

A polygon is a list of rings, the outer one first, holes after it. A ring is an array (n, 2) of x, y
in px, not closed. Rings of a mask have the mask on their left in the plane of x and y, so outer
rings have a positive area and holes a negative one, as RFC 7946 asks for. A mask made into polygons
and filled again is the same mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cytolens.formats.outlines import refuse_stray
from cytolens.formats.run_lengths import Positions, positions_of_part
from cytolens.masks import Mask

Ring = NDArray[np.float64]
Polygon = Sequence[Ring]


# -- mask to polygons -------------------------------------------------------------------------------


def polygons_of(mask: Mask, x: int = 0, y: int = 0) -> list[list[Ring]]:
    """The polygons of a mask (H, W) whose upper left pixel is (x, y).

    Pixels that touch at a corner only belong to different polygons; rings never cross or touch
    themselves, so the polygons are valid for programs that insist on it.
    """
    import cv2

    rows, columns, east, south = _corners(mask)
    across = _partners(np.lexsort((east, columns, rows)))
    along = _partners(np.lexsort((south, rows, columns)))
    _, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    padded = np.pad(parts, 1)
    points = list(zip(columns.tolist(), rows.tolist(), strict=True))
    done = np.zeros(len(points), bool)
    outer: dict[int, list[Ring]] = {}
    holes: dict[int, list[Ring]] = {}
    for start in np.flatnonzero(east).tolist():
        if done[start]:
            continue
        trail = _trail(start, across, along)
        done[trail] = True
        column, row = points[start]
        below, above = int(padded[row + 1, column + 1]), int(padded[row, column + 1])
        ring = [points[at] for at in (trail if below else trail[::-1])]
        for simple in _simple_rings(ring):
            array = np.array(simple, np.float64) + np.array([x, y])
            (outer if signed_area(array) > 0 else holes).setdefault(below or above, []).append(array)
    return [[ring, *holes.get(part, [])] for part, rings in sorted(outer.items()) for ring in rings]


def signed_area(ring: Ring) -> float:
    """The area of a ring by the shoelace formula; positive where it turns from x towards y."""
    after = np.roll(ring, -1, axis=0)
    return float((ring[:, 0] * after[:, 1] - after[:, 0] * ring[:, 1]).sum() / 2)


def _corners(mask: Mask) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_], NDArray[np.bool_]]:
    """Row and column of each corner of the outline, and whether its edges go east and south from there.

    A grid point is a corner once where one or three of the four pixels about it are set, and twice
    where two pixels touch there by their corners: once for each of them.
    """
    padded = np.pad(np.asarray(mask, bool), 1)
    quarters = {
        (False, False): padded[:-1, :-1],
        (True, False): padded[:-1, 1:],
        (False, True): padded[1:, :-1],
        (True, True): padded[1:, 1:],
    }
    count = sum(quarter.astype(np.uint8) for quarter in quarters.values())
    diagonal = (count == 2) & (quarters[False, False] == quarters[True, True])
    found = []
    for (east, south), inside in quarters.items():
        rows, columns = np.nonzero(np.where(count == 3, ~inside, inside & ((count == 1) | diagonal)))
        found.append((rows, columns, np.full(len(rows), east), np.full(len(rows), south)))
    rows, columns, east, south = (np.concatenate(values) for values in zip(*found, strict=True))
    return rows, columns, east, south


def _partners(order: NDArray[np.intp]) -> list[int]:
    """For each corner the one at the other end of its edge: along a grid line, corners pair up two by two."""
    partner = np.empty(len(order), np.intp)
    partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    return partner.tolist()


def _trail(start: int, across: Sequence[int], along: Sequence[int]) -> list[int]:
    """The corners of a ring, by horizontal and vertical edges in turn."""
    trail, at = [], start
    while True:
        other = across[at]
        trail += [at, other]
        at = along[other]
        if at == start:
            return trail


def _simple_rings(ring: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """A ring cut apart wherever it comes to a point for the second time."""
    rings: list[list[tuple[int, int]]] = []
    path: list[tuple[int, int]] = []
    place: dict[tuple[int, int], int] = {}
    for point in ring:
        if point in place:
            loop = path[place[point] :]
            rings.append(loop)
            del path[place[point] :]
            for passed in loop:
                del place[passed]
        place[point] = len(path)
        path.append(point)
    return [*rings, path]


# -- polygons to mask -------------------------------------------------------------------------------


def positions_inside(polygons: Sequence[Polygon], size_wh: tuple[int, int]) -> Positions:
    """The pixels whose centre lies in a polygon and in none of its holes, as positions (see `run_lengths`).

    Raises:
        ValueError: a coordinate is no number, or far outside the image, or a ring is longer than any outline.
    """
    rings = [ring for polygon in polygons for ring in polygon]
    refuse_stray(rings, size_wh)
    corners = np.concatenate(rings or [np.zeros((0, 2))])
    if not len(corners):
        return np.zeros(0, np.int64)
    left, top = np.clip(np.floor(corners.min(axis=0)), 0, size_wh).astype(int).tolist()
    right, bottom = np.clip(np.ceil(corners.max(axis=0)), 0, size_wh).astype(int).tolist()
    part = np.zeros((bottom - top, right - left), bool)
    if part.size:
        for polygon in polygons:
            part |= _filled([ring - (left, top) for ring in polygon], part.shape)
    return positions_of_part(part, left, top, size_wh)


def _filled(rings: Polygon, size_hw: tuple[int, ...]) -> Mask:
    """Pixels whose centre has an odd number of edges to its left, shape `size_hw`."""
    height, width = size_hw
    crossings = np.zeros((height, width + 1), np.int32)
    starts = np.concatenate(rings)
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    low, high = np.sort(np.stack([starts[:, 1], ends[:, 1]]), axis=0)
    # An edge crosses the centre lines y = row + 0.5 of the rows from first up to, but without, until.
    first = np.clip(np.ceil(low - 0.5), 0, height).astype(np.int64)
    until = np.clip(np.ceil(high - 0.5), 0, height).astype(np.int64)
    counts = until - first
    edge = np.repeat(np.arange(len(starts)), counts)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    (x0, y0), (x1, y1) = starts[edge].T, ends[edge].T
    x = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
    np.add.at(crossings, (row, np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)), 1)
    return np.cumsum(crossings, axis=1)[:, :width] % 2 == 1
