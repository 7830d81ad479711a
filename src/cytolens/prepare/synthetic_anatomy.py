"""What white cells are made of: bodies of cytoplasm, nuclei of several shapes, granules and vacuoles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolens.prepare.synthetic_cells import Board
from cytolens.prepare.synthetic_optics import AZURE, AZUROPHIL, CHROMATIN, EOSIN, HAEMOGLOBIN
from cytolens.prepare.synthetic_shapes import (
    Grid,
    Plane,
    along,
    blurred,
    both,
    capsule,
    discs,
    dots,
    outline,
    scatter,
    steps,
)

Circles = NDArray[np.float32]
Generator = np.random.Generator


# -- bodies ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cytoplasm:
    """How cytoplasm is stained: amounts, unevenness, and how dark and frayed its border is."""

    azure: float
    azurophil: float = 0.0
    eosin: float = 0.0
    haemoglobin: float = 0.0
    frost: float = 0.12
    grain_um: float = 0.9
    border: float = 0.0
    frayed_um: float = 0.05


def body(
    rng: Generator, grid: Grid, radius_um: float, stuff: Cytoplasm, *, irregular: bool = False
) -> tuple[Board, Plane]:
    """A cell without its nucleus, and the signed distance to its outline."""
    uneven = rng.uniform(0.045, 0.1) if irregular else rng.uniform(0.012, 0.028)
    distance = outline(
        rng, grid, radius_um, uneven=uneven, oval=abs(rng.normal(0, 0.12 if irregular else 0.06)), waves=7
    )
    distance += np.float32(stuff.frayed_um) * (grid.noise(rng, 0.9) + 0.6 * grid.noise(rng, 2.2))
    board = Board(grid, grid.coverage(distance, 0.25), hides=1.0)
    rim = np.exp(-np.maximum(distance, 0) / np.float32(0.45))
    seam = 1 - 0.4 * steps(1.0, 0.0, distance) * (stuff.border == 0)  # bodies thin out, where nothing thickens the rim
    shared = 0.8 * grid.noise(rng, stuff.grain_um) + 0.6 * grid.noise(rng, 2.5 * stuff.grain_um)
    amounts = {AZURE: stuff.azure, AZUROPHIL: stuff.azurophil, EOSIN: stuff.eosin, HAEMOGLOBIN: stuff.haemoglobin}
    for plane, strength in amounts.items():
        if strength:  # each stain has patches of its own, so the tone wanders
            own = 0.7 * grid.noise(rng, 1.6 * stuff.grain_um) + 0.8 * grid.noise(rng, 4.5)
            texture = 1 + stuff.frost * (shared + 0.7 * own) + stuff.border * rim
            amount = board.body * np.clip(texture, 0.1, 2.5) * seam
            board.add(plane, amount * np.float32(strength * rng.uniform(0.85, 1.15)))
    return board, distance


# -- nuclei ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chromatin:
    """How a nucleus is stained: density, size and depth of its texture, light specks, dark rim, reddish tone."""

    density: float
    grain_um: float = 0.8
    depth: float = 0.1
    specks: float = 0.5
    rim: float = 0.2
    red: float = 0.0


def nucleus(rng: Generator, board: Board, distance: Plane, stuff: Chromatin, creases: Plane | None = None) -> float:
    """Paint a nucleus, given as a signed distance, and return the share of the cell's area it takes.

    Args:
        rng: randomness.
        board: painted on.
        distance: to the nucleus's outline, µm.
        stuff: how it is stained.
        creases: 0 to 1 where lobes are folded over each other and look darker.
    """
    grid = board.grid
    cover = grid.coverage(distance, 0.1) * board.body
    board.displace(cover * 0.92)
    rim = steps(0.6, 0.05, distance) * np.clip(0.8 + 0.4 * grid.noise(rng, 1.8), 0.1, 1.4)
    coarse, middle, fine = (grid.noise(rng, size * stuff.grain_um) for size in (2.4, 1.0, 0.55))
    texture = 0.5 * coarse + 0.75 * middle + 0.45 * fine
    holes = steps(0.2, 2.2, texture) * (1 - 0.9 * rim)
    amount = 1 - stuff.depth * np.clip(texture, -2, 2) * (1 - 0.6 * rim) + stuff.rim * rim - stuff.specks * holes
    if creases is not None:
        amount += 0.16 * creases
    board.add(CHROMATIN, cover * np.float32(stuff.density) * np.clip(amount, 0.4, 1.5))
    if stuff.red:
        board.add(AZUROPHIL, cover * np.float32(stuff.red) * (1 + 0.3 * coarse))
    return float((cover > 0.5).sum() / max((board.body > 0.5).sum(), 1))


def kept_inside(grid: Grid, distance: Plane, cell: Plane, margin_um: float) -> Plane:
    """A nucleus that stays `margin_um` within its cell, without sharp corners."""
    inner = both(distance, cell - np.float32(margin_um), 0.8)
    return blurred(inner, 0.18 * grid.px_per_um)


def lobes(rng: Generator, grid: Grid, radius_um: float, count: int, share: float) -> tuple[Plane, Plane]:
    """A nucleus of `count` lobes joined by bridges that takes about `share` of the cell, and its creases."""
    size = radius_um * np.sqrt(share / count) * 1.02
    ring = radius_um * rng.uniform(0.4, 0.5) if count > 2 else size * rng.uniform(1.08, 1.4)
    step = min(2 * np.arcsin(min(size * rng.uniform(1.04, 1.3) / ring, 0.98)), 2 * np.pi / count * 0.98)
    angles = rng.uniform(0, 2 * np.pi) + step * (np.arange(count) - (count - 1) / 2) + rng.normal(0, 0.08, count)
    centres = np.stack([np.cos(angles), np.sin(angles)], 1) * ring * rng.uniform(0.85, 1.1, (count, 1))
    centres += rng.uniform(-0.12, 0.12, 2) * radius_um
    warped = grid.warped(rng, 3.0, 0.18).warped(rng, 1.1, 0.06)
    parts = [discs(warped, _lobe(rng, centre, size * rng.uniform(0.82, 1.16)), 0.3) for centre in centres]
    thin = rng.uniform(0.26, 0.44 * size, count - 1)
    links = [capsule(warped, centres[i], centres[i + 1], thin[i]) for i in range(count - 1)]
    whole = np.max([*parts, *links], axis=0)
    folds = [np.exp(-((part / np.float32(0.22)) ** 2)) * (whole > 0.35) for part in parts]
    return whole, np.max(folds, axis=0).astype(np.float32)


def _lobe(rng: Generator, centre: NDArray[np.float64], size: float) -> Circles:
    turn, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0.12, 0.55) * size
    shift = np.array([np.cos(turn), np.sin(turn)]) * stretch
    small = size * rng.uniform(0.78, 0.95)
    return np.array([[*(centre - shift), small], [*(centre + shift), small * rng.uniform(0.8, 1)]], np.float32)


def band(rng: Generator, grid: Grid, radius_um: float) -> Plane:
    """A bent sausage: a horseshoe, or an S."""
    span = rng.uniform(2.6, 4.3)
    ring = radius_um * rng.uniform(0.44, 0.54)
    at = np.linspace(-span / 2, span / 2, 9)
    if rng.random() < 0.25:  # an S: the second half bends the other way
        points = np.stack([at / span * 2.5 * ring, 0.75 * ring * np.sin(at / span * 2 * np.pi)], 1)
    else:
        points = np.stack([np.cos(at), np.sin(at)], 1) * ring
        points -= points.mean(axis=0) * rng.uniform(0.3, 0.8)
    turn = rng.uniform(0, 2 * np.pi)
    points = points @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    widths = radius_um * rng.uniform(0.2, 0.26) * (1 + 0.12 * rng.normal(size=9))
    widths[[0, 1, -2, -1]] *= 1.12
    return discs(grid.warped(rng, 3.0, 0.2).warped(rng, 1.1, 0.06), along(points, widths, 18), 0.3)


def bean(rng: Generator, grid: Grid, radius_um: float, size: float, dent: float) -> Plane:
    """A round or oval nucleus of radius `size` × the cell's with a dent of depth 0 (none) to 1 (half through)."""
    turn = rng.uniform(0, 2 * np.pi)
    toward = np.array([np.cos(turn), np.sin(turn)])
    big = radius_um * size
    shift = -toward * (radius_um - big) * rng.uniform(0.2, 0.75)
    warped = grid.warped(rng, 4.5, 0.035 * big).warped(rng, 1.6, 0.01 * big)
    side = np.array([-toward[1], toward[0]]) * big * (0.1 + 0.28 * dent)
    ends = big * (0.94 - 0.16 * dent)
    middles = [shift + side, shift - side, shift - toward * big * 0.12]
    shape = discs(warped, [[*middle, ends] for middle in middles], 0.5)
    if dent > 0:
        at = shift + toward * big * (1.32 - 0.5 * dent)
        notch = discs(warped, [[*at, big * (0.3 + 0.22 * dent)]], 0.3)
        shape = both(shape, -notch, 1.1)
    return blurred(shape, 0.4 * grid.px_per_um)  # rounds the horns beside the dent


# -- granules and vacuoles ------------------------------------------------------------------------


def granules(
    rng: Generator,
    board: Board,
    inside: Plane,
    per_um2: float,
    radius_um: tuple[float, float],
    stains: dict[int, tuple[float, float]],
    soft_um: float = 0.06,
) -> None:
    """Strew granules where `inside` is positive; `stains` gives each plane's amount (low, high)."""
    grid = board.grid
    count = round(per_um2 * float((inside > 0).sum()) / grid.px_per_um**2)
    points = scatter(rng, grid, inside, count)
    cover = dots(grid, points, rng.uniform(*radius_um, len(points)), rng.uniform(0.4, 1, len(points))) * board.body
    cover = blurred(cover, soft_um * grid.px_per_um)
    for plane, amount in stains.items():
        board.add(plane, cover * np.float32(rng.uniform(*amount)))


def vacuoles(rng: Generator, board: Board, inside: Plane, count: int, radius_um: tuple[float, float]) -> bool:
    """Make round clear holes where `inside` is positive; False where there is no room."""
    points = scatter(rng, board.grid, inside, count)
    holes = dots(board.grid, points, rng.uniform(*radius_um, len(points)), rng.uniform(0.6, 0.95, len(points)))
    board.displace(blurred(holes, 0.06 * board.grid.px_per_um))
    return len(points) > 0
