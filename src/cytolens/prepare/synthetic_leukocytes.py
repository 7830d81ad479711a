"""Painting white cells and erythroblasts, one painter per kind.

A painter takes a generator, a grid and a radius in µm, and returns a board whose attributes say what
was drawn in the words of the "wbcatt" schema (for the five mature kinds). Diameters and looks follow
the usual descriptions of cells in dried, Romanowsky-stained smears.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cytolens.prepare.synthetic_anatomy import (
    Chromatin,
    Cytoplasm,
    Generator,
    band,
    bean,
    body,
    granules,
    kept_inside,
    lobes,
    nucleus,
    vacuoles,
)
from cytolens.prepare.synthetic_cells import Board, scale
from cytolens.prepare.synthetic_optics import AZURE, AZUROPHIL, CHROMATIN, EOSIN, Slide
from cytolens.prepare.synthetic_settings import RED_CELL_UM
from cytolens.prepare.synthetic_shapes import REACH, Grid, Plane, discs, outline, steps

_BIG = 12.7 / RED_CELL_UM  # a cell wider than this many red cells is called big
_HIGH_RATIO = 0.6  # a nucleus with more than this share of the cell's area makes the ratio high


class Kind(NamedTuple):
    """A kind of white cell: its range of diameters in µm, and its painter."""

    diameter_um: tuple[float, float]
    paint: Callable[[Generator, Grid, float], Board]


def white_cell(rng: Generator, slide: Slide, label: str, x_px: float, y_px: float, radius_um: float) -> Board:
    """A white cell of this label at a point of the image."""
    grid = Grid.around(x_px, y_px, radius_um * (1 + REACH) + 0.8, scale(slide))
    return KINDS[label].paint(rng, grid, radius_um)


def draw_radius(rng: Generator, slide: Slide, label: str) -> float:
    """A radius in µm for a cell of this label, rarely at the ends of its range."""
    low, high = KINDS[label].diameter_um
    if label == "lymphocyte" and rng.random() < 0.06:
        low, high = 12.0, 14.5  # the large kind
    return float(low + (high - low) * rng.beta(2, 2)) / 2 * slide.white_cell_scale


def _described(board: Board, irregular: bool, ratio: float, **said: str) -> Board:
    """The board with its attributes; size, shape and ratio are taken from what was drawn."""
    area_um2 = float((board.body >= 0.5).sum()) / board.grid.px_per_um**2
    red_cells_wide = 2 * np.sqrt(area_um2 / np.pi) / RED_CELL_UM
    measured = {
        "cell_size": "big" if red_cells_wide > _BIG else "small",
        "cell_shape": "irregular" if irregular else "round",
        "nuclear_cytoplasmic_ratio": "high" if ratio > _HIGH_RATIO else "low",
    }
    common = {
        "chromatin_density": "densely",
        "cytoplasm_vacuole": "no",
        "cytoplasm_texture": "clear",
        "granule_type": "nil",
        "granule_colour": "nil",
        "granularity": "no",
    }
    board.attributes = {**common, **measured, **said}
    return board


# -- mature granulocytes --------------------------------------------------------------------------

_DARK = Chromatin(0.84, grain_um=0.6, depth=0.12, specks=0.42, rim=0.28)


def _neutrophil_body(rng: Generator, grid: Grid, radius: float, irregular: bool) -> tuple[Board, Plane]:
    tone = rng.uniform(0.7, 1.2)
    stuff = Cytoplasm(0.12 * tone, azurophil=0.08 * tone, eosin=0.1 * tone, frost=0.22, grain_um=0.5)
    return body(rng, grid, radius, stuff, irregular=irregular)


def _neutrophil_granules(rng: Generator, board: Board, cell: Plane) -> None:
    granules(rng, board, cell - 0.2, rng.uniform(2, 5), (0.06, 0.17), {AZUROPHIL: (0.12, 0.35)})
    granules(rng, board, cell - 0.2, rng.uniform(0.1, 0.7), (0.1, 0.2), {AZUROPHIL: (0.3, 0.6), CHROMATIN: (0, 0.12)})


_PINK = {"cytoplasm_colour": "light blue", "granule_type": "small", "granule_colour": "pink", "granularity": "yes"}


def _segmented(rng: Generator, grid: Grid, radius: float) -> Board:
    irregular = bool(rng.random() < 0.3)
    board, cell = _neutrophil_body(rng, grid, radius, irregular)
    _neutrophil_granules(rng, board, cell)
    count = int(rng.choice([2, 3, 4, 5], p=[0.3, 0.42, 0.22, 0.06]))
    shape, creases = lobes(rng, grid, radius, count, rng.uniform(0.26, 0.34))
    ratio = nucleus(rng, board, kept_inside(grid, shape, cell, 0.25), _DARK, creases)
    shape_name = "segmented-bilobed" if count == 2 else "segmented-multilobed"
    return _described(board, irregular, ratio, nucleus_shape=shape_name, **_PINK)


def _band(rng: Generator, grid: Grid, radius: float) -> Board:
    irregular = bool(rng.random() < 0.15)
    board, cell = _neutrophil_body(rng, grid, radius, irregular)
    _neutrophil_granules(rng, board, cell)
    ratio = nucleus(rng, board, kept_inside(grid, band(rng, grid, radius), cell, 0.25), _DARK)
    return _described(board, irregular, ratio, nucleus_shape="unsegmented-band", **_PINK)


def _eosinophil(rng: Generator, grid: Grid, radius: float) -> Board:
    irregular = bool(rng.random() < 0.1)
    stuff = Cytoplasm(0.14, azurophil=0.05, frost=0.2, grain_um=0.7)
    board, cell = body(rng, grid, radius, stuff, irregular=irregular)
    full = np.minimum(cell - 0.1, 1.8 + grid.noise(rng, 6.0))  # some rims stay free of granules
    packed = np.clip(1 + 0.22 * grid.noise(rng, 0.55) + 0.15 * grid.noise(rng, 1.3), 0.3, 1.8)
    board.add(EOSIN, grid.coverage(full, 0.9) * packed * np.float32(rng.uniform(0.4, 0.65)))
    granules(rng, board, full, rng.uniform(3, 6), (0.14, 0.28), {EOSIN: (0.2, 0.45), AZUROPHIL: (0, 0.08)}, 0.1)
    outer = np.minimum(full, 0.9 - cell)
    granules(rng, board, outer, 2.5, (0.2, 0.3), {EOSIN: (0.1, 0.3), AZUROPHIL: (0.05, 0.35)}, 0.1)
    count = int(rng.choice([2, 3], p=[0.8, 0.2]))
    shape, creases = lobes(rng, grid, radius, count, rng.uniform(0.26, 0.34))
    paler = Chromatin(0.74, grain_um=0.65, depth=0.16, specks=0.38, rim=0.36)
    ratio = nucleus(rng, board, kept_inside(grid, shape, cell, 0.25), paler, creases)
    granules(rng, board, np.minimum(full, shape), 0.5, (0.2, 0.3), {EOSIN: (0.05, 0.2)})
    shape_name = "segmented-bilobed" if count == 2 else "segmented-multilobed"
    said = {"granule_type": "round", "granule_colour": "red", "granularity": "yes"}
    return _described(board, irregular, ratio, nucleus_shape=shape_name, cytoplasm_colour="light blue", **said)


def _basophil(rng: Generator, grid: Grid, radius: float) -> Board:
    irregular = bool(rng.random() < 0.12)
    stuff = Cytoplasm(0.08, azurophil=0.2, eosin=0.06, frost=0.3, grain_um=0.8)
    board, cell = body(rng, grid, radius, stuff, irregular=irregular)
    name = str(rng.choice(["irregular", "segmented-bilobed", "segmented-multilobed"], p=[0.45, 0.35, 0.2]))
    creases = None
    if name == "irregular":
        shape = bean(rng, grid.warped(rng, 3.5, 0.5), radius, rng.uniform(0.6, 0.72), rng.uniform(0, 0.6))
    else:
        shape, creases = lobes(rng, grid, radius, 2 if name == "segmented-bilobed" else 3, rng.uniform(0.4, 0.5))
    soft = Chromatin(0.66, grain_um=0.7, depth=0.18, specks=0.3, rim=0.25, red=0.1)
    ratio = nucleus(rng, board, kept_inside(grid, shape, cell, 0.3), soft, creases)
    dark, clumps = {CHROMATIN: (0.3, 0.45), AZUROPHIL: (0.1, 0.3)}, grid.noise(rng, 2.0)
    granules(rng, board, np.minimum(cell - 0.05, clumps + 0.8), rng.uniform(2.5, 6), (0.14, 0.3), dark, 0.08)
    granules(rng, board, cell - 0.1, rng.uniform(0.3, 1.2), (0.2, 0.36), dark, 0.08)
    granules(rng, board, cell - 0.1, rng.uniform(1, 3), (0.08, 0.18), {AZUROPHIL: (0.3, 0.6)})
    said = {"granule_type": "coarse", "granule_colour": "purple", "granularity": "yes"}
    return _described(board, irregular, ratio, nucleus_shape=name, cytoplasm_colour="light blue", **said)


# -- lymphocytes and monocytes --------------------------------------------------------------------


def _lymphocyte(rng: Generator, grid: Grid, radius: float) -> Board:
    large = radius > 5.8
    irregular = bool(rng.random() < 0.3)
    colour = str(rng.choice(["blue", "purple blue", "light blue"], p=[0.6, 0.34, 0.06]))
    frosted = bool(rng.random() < 0.64)
    azure, azurophil = {"blue": (0.62, 0.08), "purple blue": (0.55, 0.26), "light blue": (0.34, 0.03)}[colour]
    stuff = Cytoplasm(
        azure, azurophil, frost=0.22 if frosted else 0.06, grain_um=0.7, border=rng.uniform(0.2, 0.8), frayed_um=0.07
    )
    board, cell = body(rng, grid, radius, stuff, irregular=irregular)
    size = rng.uniform(0.62, 0.72) if large else rng.uniform(0.8, 0.92)
    dent = rng.uniform(0.25, 0.5) if rng.random() < 0.2 else 0.0
    shape = bean(rng, grid, radius, size, dent)
    dense = Chromatin(rng.uniform(0.64, 0.84), 0.65, depth=0.12, specks=0.22, rim=0.3, red=rng.uniform(0.08, 0.22))
    ratio = nucleus(rng, board, kept_inside(grid, shape, cell, 0.15), dense)
    name = "unsegmented-indented" if dent else "unsegmented-round"
    texture = "frosted" if frosted else "clear"
    return _described(board, irregular, ratio, nucleus_shape=name, cytoplasm_colour=colour, cytoplasm_texture=texture)


def _monocyte(rng: Generator, grid: Grid, radius: float) -> Board:
    irregular = bool(rng.random() < 0.5)
    colour = str(rng.choice(["purple blue", "blue", "light blue"], p=[0.47, 0.44, 0.09]))
    frosted = bool(rng.random() < 0.88)
    azure, azurophil = {"blue": (0.38, 0.12), "purple blue": (0.31, 0.22), "light blue": (0.22, 0.08)}[colour]
    stuff = Cytoplasm(
        azure, azurophil, frost=0.15 if frosted else 0.05, grain_um=0.6, border=rng.uniform(0.15, 0.6), frayed_um=0.08
    )
    board, cell = body(rng, grid, radius, stuff, irregular=irregular)
    name = str(rng.choice(["unsegmented-indented", "irregular", "unsegmented-round"], p=[0.74, 0.19, 0.07]))
    if name == "irregular":
        shape = bean(rng, grid.warped(rng, 6.5, 0.8), radius, rng.uniform(0.62, 0.7), rng.uniform(0.3, 0.9))
    else:
        dent = rng.uniform(0.45, 1.0) if name == "unsegmented-indented" else 0.0
        shape = bean(rng, grid, radius, rng.uniform(0.66, 0.74) if dent else rng.uniform(0.6, 0.68), dent)
    loose = bool(rng.random() < 0.6)
    stain = rng.uniform(0.52, 0.62) if loose else rng.uniform(0.7, 0.82)
    lacy = Chromatin(stain, 0.6, depth=0.19, specks=0.34 if loose else 0.28, rim=0.4, red=rng.uniform(0.08, 0.2))
    folds = np.exp(-((grid.noise(rng, 5.0) / 0.1) ** 2)) * steps(0.5, 1.0, shape)
    ratio = nucleus(rng, board, kept_inside(grid, shape, cell, 0.3), lacy, folds.astype(np.float32))
    near = np.minimum(cell - 0.6, 0.5 - shape)
    holes = bool(rng.random() < 0.45) and vacuoles(rng, board, near, int(rng.integers(3, 14)), (0.18, 0.6))
    return _described(
        board,
        irregular,
        ratio,
        nucleus_shape=name,
        chromatin_density="loosely" if loose else "densely",
        cytoplasm_vacuole="yes" if holes else "no",
        cytoplasm_texture="frosted" if frosted else "clear",
        cytoplasm_colour=colour,
    )


# -- immature cells -------------------------------------------------------------------------------


def _promyelocyte(rng: Generator, grid: Grid, radius: float) -> Board:
    stuff = Cytoplasm(rng.uniform(0.4, 0.6), azurophil=0.1, frost=0.16, border=0.25, frayed_um=0.05)
    board, cell = body(rng, grid, radius, stuff, irregular=bool(rng.random() < 0.4))
    shape = bean(rng, grid, radius, rng.uniform(0.66, 0.76), rng.uniform(0, 0.25))
    open_ = Chromatin(rng.uniform(0.54, 0.66), grain_um=0.6, depth=0.15, specks=0.3, rim=0.25, red=0.14)
    nucleus(rng, board, kept_inside(grid, shape, cell, 0.3), open_)
    spot = rng.uniform(-0.25, 0.25, 2) * radius
    nucleolus = np.minimum(discs(grid, [[*spot, rng.uniform(0.7, 1.1)]], 0.2), shape - 0.8)
    board.displace(0.22 * grid.coverage(nucleolus, 0.5))
    purple = {AZUROPHIL: (0.35, 0.6), CHROMATIN: (0.05, 0.25)}
    granules(rng, board, cell - 0.1, rng.uniform(1.5, 4.5), (0.1, 0.22), purple)
    return board


def _myelocyte(rng: Generator, grid: Grid, radius: float) -> Board:
    stuff = Cytoplasm(rng.uniform(0.2, 0.34), azurophil=0.14, eosin=0.05, frost=0.13, grain_um=0.7, border=0.15)
    board, cell = body(rng, grid, radius, stuff, irregular=bool(rng.random() < 0.3))
    granules(rng, board, cell - 0.2, rng.uniform(1.5, 4), (0.1, 0.2), {AZUROPHIL: (0.3, 0.6)})
    shape = bean(rng, grid, radius, rng.uniform(0.58, 0.68), rng.uniform(0, 0.2))
    clumped = Chromatin(rng.uniform(0.68, 0.8), grain_um=0.7, depth=0.16, specks=0.32, rim=0.32, red=0.08)
    nucleus(rng, board, kept_inside(grid, shape, cell, 0.25), clumped)
    granules(rng, board, shape, 0.5, (0.1, 0.18), {AZUROPHIL: (0.1, 0.3)})
    return board


def _metamyelocyte(rng: Generator, grid: Grid, radius: float) -> Board:
    stuff = Cytoplasm(rng.uniform(0.13, 0.22), azurophil=0.12, eosin=0.08, frost=0.11, grain_um=0.6)
    board, cell = body(rng, grid, radius, stuff, irregular=bool(rng.random() < 0.2))
    granules(rng, board, cell - 0.2, rng.uniform(2, 5), (0.08, 0.18), {AZUROPHIL: (0.3, 0.6)})
    shape = bean(rng, grid, radius, rng.uniform(0.58, 0.66), rng.uniform(0.55, 0.95))
    clumped = Chromatin(rng.uniform(0.72, 0.84), grain_um=0.7, depth=0.16, specks=0.36, rim=0.32)
    nucleus(rng, board, kept_inside(grid, shape, cell, 0.25), clumped)
    return board


def _erythroblast(rng: Generator, grid: Grid, radius: float) -> Board:
    ripe = rng.random()  # from blue (full of RNA) to the colour of a red cell
    stuff = Cytoplasm(
        0.6 - 0.45 * ripe,
        azurophil=0.08 * (1 - ripe),
        haemoglobin=0.5 + 0.4 * ripe,
        frost=0.08,
        grain_um=0.8,
        border=0.1,
    )
    board, cell = body(rng, grid, radius, stuff, irregular=bool(rng.random() < 0.4))
    size = rng.uniform(0.62, 0.74) - 0.14 * ripe
    shape = bean(rng, grid, radius, size, 0.0)
    dense = Chromatin(0.85 + 0.2 * ripe, 0.8, depth=0.13 * (1 - ripe), specks=0.4 * (1 - ripe), rim=0.12)
    nucleus(rng, board, kept_inside(grid, shape, cell, 0.1), dense)
    return board


def _lysed(rng: Generator, grid: Grid, radius: float) -> Board:
    """A burst cell: a smear of pale chromatin in strands, without a body."""
    bent = grid.warped(rng, 6.0, 0.08 * radius)
    distance = outline(rng, bent, radius * 0.78, uneven=0.1, oval=rng.uniform(0.1, 0.5), waves=6)
    board = Board(grid, grid.coverage(distance, 1.2))
    turn = rng.uniform(0, np.pi)
    along_x, across = grid.x * np.cos(turn) + grid.y * np.sin(turn), grid.y * np.cos(turn) - grid.x * np.sin(turn)
    swirl = np.float32(rng.uniform(0.5, 1.2)) * grid.noise(rng, 7.0)
    ridges = np.cos(across * np.float32(2.2) + 2 * swirl + 0.15 * along_x) * 0.5 + 0.5 * grid.noise(rng, 3.5)
    cloud = grid.coverage(distance + 0.7 * ridges - 0.3, 2.4)
    amount = cloud * np.clip(1 + 0.22 * ridges + 0.1 * grid.noise(rng, 0.8), 0.2, 2)
    board.add(CHROMATIN, amount * np.float32(rng.uniform(0.18, 0.36)))
    board.add(AZUROPHIL, amount * np.float32(rng.uniform(0.2, 0.45)))
    board.add(AZURE, board.body * np.float32(0.06))
    return board


KINDS: dict[str, Kind] = {
    "segmented neutrophil": Kind((11.0, 15.2), _segmented),
    "band neutrophil": Kind((10.8, 14.6), _band),
    "eosinophil": Kind((10.6, 15.2), _eosinophil),
    "basophil": Kind((10.0, 13.6), _basophil),
    "lymphocyte": Kind((8.0, 11.2), _lymphocyte),
    "monocyte": Kind((11.8, 18.6), _monocyte),
    "promyelocyte": Kind((13.5, 18.5), _promyelocyte),
    "myelocyte": Kind((11.5, 16.0), _myelocyte),
    "metamyelocyte": Kind((11.5, 15.0), _metamyelocyte),
    "erythroblast": Kind((8.2, 12.0), _erythroblast),
    "lysed cell": Kind((13.0, 19.0), _lysed),
}
