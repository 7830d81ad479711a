"""Painting red cells, platelets and dirt; and the board that every rendered cell is painted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cytolens.prepare.synthetic_optics import AZURE, AZUROPHIL, CHROMATIN, HAEMOGLOBIN, NEUTRAL, PLANES, Slide
from cytolens.prepare.synthetic_settings import RED_CELL_UM
from cytolens.prepare.synthetic_shapes import REACH, Grid, Plane, blurred, both, dots, noise, outline, scatter, steps


@dataclass(frozen=True, slots=True)
class Wall:
    """A disc that a cell cannot enter: x, y seen from the cell's centre, and radius, all in µm."""

    x: float
    y: float
    radius: float


@dataclass(slots=True)
class Board:
    """A patch being painted: amounts of stain, and what of it the cell covers.

    Attributes:
        grid: where the patch lies.
        body: coverage of each pixel by the cell, 0 to 1, shape (height, width).
        planes: amounts of stain, shape (PLANES, height, width).
        hides: how much of what lies under it the cell replaces: white cells all, red cells nothing.
        attributes: what is drawn, in the words of the "wbcatt" schema; empty where that does not apply.
    """

    grid: Grid
    body: Plane
    planes: Plane = field(init=False)
    hides: float = 0.0
    attributes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.planes = np.zeros((PLANES, *self.grid.size_hw), np.float32)

    def add(self, plane: int, amount: Plane) -> None:
        """Lay stain on top of what is there."""
        self.planes[plane] += amount

    def displace(self, coverage: Plane) -> None:
        """Push away what is there, as far as `coverage` reaches."""
        self.planes *= 1 - coverage


def red_cell(
    rng: np.random.Generator, slide: Slide, x_px: float, y_px: float, radius_um: float, walls: Sequence[Wall]
) -> Board:
    """A red cell: a biconcave disc, flattened where it meets walls."""
    grid = Grid.around(x_px, y_px, radius_um * (1 + REACH) + 0.8, scale(slide))
    odd = rng.random()
    oval = float(np.clip(abs(rng.normal(0, 0.09)), 0, 0.3)) if odd > 0.06 else rng.uniform(0.3, 0.6)
    distance = outline(rng, grid, radius_um, uneven=rng.uniform(0.008, 0.04), oval=oval, waves=6)
    for wall in walls:
        gap = np.hypot(grid.x - np.float32(wall.x), grid.y - np.float32(wall.y)) - np.float32(wall.radius)
        distance = both(distance, gap, 0.9)
    edge = distance + _thorns(rng, grid) if slide.crenated and rng.random() < 0.7 else distance
    board = Board(grid, grid.coverage(edge, rng.uniform(0.2, 0.5)))
    thickness = _biconcave(rng, slide, grid, distance, radius_um)
    amount = board.body * thickness * np.float32(np.clip(rng.normal(1, slide.red_density_spread), 0.35, 1.5))
    board.add(HAEMOGLOBIN, amount)
    rim = board.body * np.exp(-np.maximum(distance, 0) / np.float32(0.5))
    board.add(AZURE, rim * np.float32(0.08 * slide.ring))  # refraction tints the rim
    if rng.random() < 0.02:  # a young cell: some RNA left
        board.add(AZURE, amount * np.float32(rng.uniform(0.04, 0.14)))
    if rng.random() < 0.02:
        _speck_inside(rng, board, distance)
    return board


def scale(slide: Slide) -> float:
    """Pixels per micrometre: the mean red cell is the ruler."""
    return slide.red_cell_px / RED_CELL_UM


def _thorns(rng: np.random.Generator, grid: Grid) -> Plane:
    angle = np.arctan2(grid.y, grid.x)
    count, turns = int(rng.integers(9, 14)), rng.uniform(0, 2 * np.pi, 3)
    wave = np.cos(count * angle + np.float32(0.9) * np.sin(2 * angle + np.float32(turns[0])) + np.float32(turns[1]))
    height = rng.uniform(0.12, 0.28) * (1 + 0.5 * np.cos(3 * angle + np.float32(turns[2])))
    return (height * (np.exp(1.2 * wave) - 1.3) * 0.6).astype(np.float32)


def _biconcave(rng: np.random.Generator, slide: Slide, grid: Grid, distance: Plane, radius_um: float) -> Plane:
    """Relative thickness: 1 in the ring, less in the middle and towards the edge."""
    pallor = float(np.clip(slide.pallor + rng.normal(0, 0.15), 0, 1))
    width, soft = rng.uniform(0.22, 0.58), rng.uniform(0.1, 0.34)
    lean = rng.uniform(-0.12, 0.12, 2) * radius_um
    turn, squeeze = rng.uniform(0, np.pi), 1 + abs(rng.normal(0, 0.22)) + (rng.random() < 0.06) * rng.uniform(1, 2)
    x, y = grid.x - np.float32(lean[0]), grid.y - np.float32(lean[1])
    across = (x * np.cos(turn) + y * np.sin(turn)).astype(np.float32)
    down = (y * np.cos(turn) - x * np.sin(turn)).astype(np.float32) * np.float32(squeeze)
    out = np.hypot(across, down) / np.float32(radius_um) + 0.05 * grid.noise(rng, 4.0)
    rounded = blurred(distance, 0.5 * grid.px_per_um)  # no creases where flattened sides meet
    depth = 1 - rounded / np.float32(radius_um)  # 0 in the middle, 1 at the edge
    out = np.maximum(out, 0.8 * depth)  # the pallor keeps clear of flattened sides
    bowl = steps(width + soft, max(width - soft, 0.0), out)
    thickness = 1.1 - np.float32(pallor) * bowl - np.float32(rng.uniform(0.0, 0.15)) * (1 - np.clip(depth, 0, 1))
    thickness -= np.float32(rng.uniform(0.1, 0.4)) * steps(0.6, 1.05, depth)  # the ring is round, not a step
    thickness += np.float32(slide.ring * rng.uniform(0.6, 1.2)) * np.exp(-np.maximum(distance, 0) / np.float32(0.6))
    return np.asarray(np.maximum(thickness, 0) * (1 + 0.03 * grid.noise(rng, 5.0)), np.float32)


def _speck_inside(rng: np.random.Generator, board: Board, distance: Plane) -> None:
    """A Howell-Jolly body or a grain of stain on the cell."""
    point = scatter(rng, board.grid, distance - 0.8, 1)
    speck = dots(board.grid, point, np.full(len(point), rng.uniform(0.1, 0.28)), np.ones(len(point)))
    board.add(CHROMATIN, speck * np.float32(rng.uniform(0.25, 0.6)))


def platelet(rng: np.random.Generator, slide: Slide, x_px: float, y_px: float, radius_um: float) -> Board:
    """A platelet: purple granules in a pale blue body with an uneven edge."""
    grid = Grid.around(x_px, y_px, radius_um * (1 + REACH) + 0.7, scale(slide)).warped(rng, 1.6, 0.1)
    uneven = rng.uniform(0.03, 0.12)
    distance = outline(rng, grid, radius_um, uneven=uneven, oval=abs(rng.normal(0, 0.25)), waves=7)
    board = Board(grid, grid.coverage(distance, 0.4), hides=0.6)
    board.add(AZURE, board.body * np.float32(rng.uniform(0.2, 0.45)) * (1 + 0.2 * grid.noise(rng, 0.9)))
    lean = rng.uniform(-0.25, 0.25, 2) * radius_um
    from_core = np.hypot(grid.x - np.float32(lean[0]), grid.y - np.float32(lean[1]))
    packed = rng.uniform(0.75, 1.15)
    core = np.minimum(distance - 0.1, np.float32(radius_um * packed) - from_core)
    cover = grid.coverage(core, 0.5)
    lumps = np.clip(0.75 + 0.24 * (0.8 * grid.noise(rng, 0.8) + 0.6 * grid.noise(rng, 0.5)), 0.2, 1.4)
    board.add(AZUROPHIL, cover * lumps * np.float32(rng.uniform(0.45, 0.75)))
    board.add(CHROMATIN, cover * lumps * np.float32(rng.uniform(0.1, 0.5)))
    points = scatter(rng, grid, core, int(rng.uniform(2, 8) * radius_um**2))
    grains = dots(grid, points, rng.uniform(0.1, 0.2, len(points)), rng.uniform(0.3, 1, len(points)))
    board.add(CHROMATIN, grains * np.float32(rng.uniform(0.1, 0.35)))
    return board


# -- dirt -----------------------------------------------------------------------------------------


def debris(rng: np.random.Generator, slide: Slide, size_hw: tuple[int, int]) -> Board:
    """One piece of dirt somewhere in a field of `size_hw` px: precipitate, dust, a drying ring or specks."""
    height, width = size_hw
    place = Grid.around(rng.uniform(0, width), rng.uniform(0, height), rng.uniform(2.5, 4.5), scale(slide))
    board = Board(place, np.zeros(place.size_hw, np.float32))
    rings = 0.3 if slide.look == "grey" else 0.1  # refractile rings come with poorly dried slides
    kind = int(rng.choice(4, p=[0.3 - rings / 3, 0.25 - rings / 3, rings, 0.45 - rings / 3]))
    (_precipitate, _dust, _drying_ring, _specks)[kind](rng, board)
    return board


def _precipitate(rng: np.random.Generator, board: Board) -> None:
    near = np.float32(rng.uniform(0.6, 1.8)) - np.hypot(board.grid.x, board.grid.y) + 0.5 * board.grid.noise(rng, 1.5)
    points = scatter(rng, board.grid, near, int(rng.integers(3, 22)))
    grains = dots(board.grid, points, rng.uniform(0.06, 0.22, len(points)), rng.uniform(0.3, 1, len(points)))
    board.add(CHROMATIN, grains * np.float32(rng.uniform(0.3, 0.8)))


def _dust(rng: np.random.Generator, board: Board) -> None:
    """A grain far out of focus, on the cover slip or in the eyepiece."""
    radius = rng.uniform(0.4, 1.2)
    stretch = rng.uniform(0.4, 1)
    out = np.hypot(board.grid.x, board.grid.y / np.float32(stretch)) / np.float32(radius)
    board.add(NEUTRAL, np.exp(-out * out) * np.float32(rng.uniform(0.08, 0.4)))


def _drying_ring(rng: np.random.Generator, board: Board) -> None:
    """A refractile drop left by drying: bright inside, dark around."""
    radius = rng.uniform(0.25, 0.75)
    width = radius * rng.uniform(0.2, 0.4)
    grid = board.grid.warped(rng, 2.5, 0.12)
    out = np.hypot(grid.x, grid.y * np.float32(rng.uniform(0.6, 1)))
    dark = np.exp(-(((out - np.float32(radius)) / np.float32(width)) ** 2))
    bright = steps(radius, radius - 2 * width, out)
    strength = rng.uniform(0.3, 1)
    board.add(NEUTRAL, (0.3 * dark - 0.16 * bright).astype(np.float32) * np.float32(strength))
    board.add(AZUROPHIL, dark * np.float32(0.15 * strength))


def _specks(rng: np.random.Generator, board: Board) -> None:
    points = rng.uniform(-2.4, 2.4, (int(rng.integers(1, 5)), 2))
    grains = dots(board.grid, points, rng.uniform(0.08, 0.2, len(points)), rng.uniform(0.3, 1, len(points)))
    board.add(AZUROPHIL, grains * np.float32(rng.uniform(0.2, 0.7)))


def film(rng: np.random.Generator, slide: Slide, size_hw: tuple[int, int]) -> Plane:
    """The stained protein film between the cells, as amounts of stain, shape (PLANES, height, width)."""
    planes = np.zeros((PLANES, *size_hw), np.float32)
    cloud = noise(rng, size_hw, 9 * scale(slide)) + 0.5 * noise(rng, size_hw, 2.5 * scale(slide))
    planes[AZURE] = 0.012 * np.clip(cloud + 1, 0, None)
    planes[HAEMOGLOBIN] = 0.02 * np.clip(1 - cloud, 0, None)
    return planes


# -- putting together -----------------------------------------------------------------------------


def window(board: Board, size_hw: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a patch lies in the image, and which part of the patch that is; empty slices where it lies outside."""
    (height, width), top, left = board.grid.size_hw, board.grid.top, board.grid.left
    rows = slice(max(top, 0), max(min(top + height, size_hw[0]), max(top, 0)))
    columns = slice(max(left, 0), max(min(left + width, size_hw[1]), max(left, 0)))
    own = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    return (rows, columns), own


def stacked(base: Plane, boards: Sequence[Board]) -> Plane:
    """The amounts of stain of a field: the film with these cells on it, lowest first."""
    planes = base.copy()
    for board in boards:
        (rows, columns), (own_rows, own_columns) = window(board, (base.shape[1], base.shape[2]))
        here = planes[:, rows, columns]
        if board.hides:
            here *= 1 - board.hides * board.body[own_rows, own_columns]
        here += board.planes[:, own_rows, own_columns]
    # Red cells that lie on one another flow aside: two are much less than twice as dense as one.
    planes[HAEMOGLOBIN] -= 0.68 * np.maximum(planes[HAEMOGLOBIN] - 1.1, 0)
    return planes


def visible(boards: Sequence[Board], size_hw: tuple[int, int]) -> list[NDArray[np.bool_]]:
    """The visible part of each cell, lowest first, each of shape `size_hw`.

    Red cells and platelets let light through, so of two that overlap both are visible; a white cell hides
    what lies under it.
    """
    masks: list[NDArray[np.bool_]] = []
    for board in boards:
        mask = np.zeros(size_hw, bool)
        inside, own = window(board, size_hw)
        mask[inside] = board.body[own] >= 0.5
        if board.hides == 1:
            for lower in masks:
                lower[inside] &= ~mask[inside]
        masks.append(mask)
    return masks
