"""Where the cells of a rendered field lie: white cells first, red cells around them, then platelets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cytolens.prepare.synthetic_cells import Wall, scale
from cytolens.prepare.synthetic_leukocytes import KINDS, draw_radius
from cytolens.prepare.synthetic_optics import Slide
from cytolens.prepare.synthetic_settings import RED_CELL_UM, SyntheticSettings

Generator = np.random.Generator

_TRIES = 24  # places tried for a cell before the best of them is taken
_SEEN = 0.12  # a cell is put only where at least this share of it can be seen
_OUTSIDE = 0.7  # a cell's centre lies at most this many radii outside the image
_GAP_UM = 0.14  # what stays free between cells that touch
_FLAT_UM = 80.0  # a wall of this radius is as good as straight


@dataclass(frozen=True, slots=True)
class Place:
    """One cell to be drawn: label, centre in px, radius in µm, and the walls it grows against."""

    label: str
    x: float
    y: float
    radius_um: float
    piled: bool = False
    walls: tuple[Wall, ...] = ()


@dataclass(frozen=True, slots=True)
class Counts:
    """How many cells of each kind a field gets."""

    white: int
    red: int
    platelets: int


def draw_counts(rng: Generator, settings: SyntheticSettings, share: float = 1.0) -> Counts:
    """Counts within the settings' ranges; `share` scales them to a part of the field (rounded)."""
    ranges = (settings.white_cells, settings.red_cells, settings.platelets)
    return Counts(*(round(int(rng.integers(low, high + 1)) * share) for low, high in ranges))


def draw_labels(rng: Generator, settings: SyntheticSettings, count: int) -> list[str]:
    """Labels of white cells, by the mix."""
    shares = np.array([share for _, share in sorted(settings.mix.items())])
    return [str(name) for name in rng.choice(sorted(settings.mix), count, p=shares / shares.sum())]


def lay_out(
    rng: Generator,
    slide: Slide,
    settings: SyntheticSettings,
    counts: Counts,
    size_wh: tuple[int, int],
    fixed: Sequence[Place] = (),
) -> list[Place]:
    """Places of all cells of a field in the order they are counted: white, red, platelets.

    There are as many as counted, unless the image is too small for them.

    Args:
        rng: randomness.
        slide: gives the scale and how unequal red cells are.
        settings: the mix of white cells, and how many red cells lie in piles.
        counts: how many cells to place beside the fixed ones.
        size_wh: of the image, px.
        fixed: cells that have their place already.
    """
    table = _Table(rng, size_wh, scale(slide), list(fixed))
    for label in draw_labels(rng, settings, counts.white):
        table.put(label, draw_radius(rng, slide, label), overlap=0.0)
    piled = rng.uniform(*settings.piled)
    for _ in range(counts.red):
        radius = RED_CELL_UM / 2 * float(np.clip(1 + slide.red_cell_spread * rng.normal(), 0.6, 1.4))
        if not (rng.random() < piled and table.put_on_another(radius)):
            table.put("erythrocyte", radius, overlap=0.2)
    for _ in range(counts.platelets):
        giant = rng.random() < 0.05
        radius = rng.uniform(2.2, 3.4) if giant else rng.uniform(0.9, 1.7)
        table.put("platelet", radius, overlap=0.0 if rng.random() < 0.75 else 9.0)
    return with_walls(table.places, scale(slide))


class _Table:
    """The cells placed so far; it only grows."""

    def __init__(self, rng: Generator, size_wh: tuple[int, int], px_per_um: float, places: list[Place]) -> None:
        self.rng, self.size_wh, self.px_per_um, self.places = rng, size_wh, px_per_um, places
        self.under: set[int] = set()  # red cells on which another lies already

    def put(self, label: str, radius_um: float, overlap: float) -> None:
        """Put a cell where it overlaps others by at most `overlap` radii, or the least of `_TRIES` places.

        Where none of them can be seen, the image is full, and the cell is left out.
        """
        radius = radius_um * self.px_per_um
        best, best_gap = None, -np.inf
        for _ in range(_TRIES):
            x, y = self.spot(radius, label)
            if not self.seen(x, y, radius, label):
                continue
            gap = self.gap(x, y, radius)
            if best is None or gap > best_gap:
                best, best_gap = (x, y), gap
            if gap >= -overlap * radius:
                break
        if best is not None:
            self.places.append(Place(label, *best, radius_um))

    def spot(self, radius: float, label: str) -> tuple[float, float]:
        """A random centre; that of a red cell often beside another cell, because blood spreads in chains."""
        if label == "erythrocyte" and self.places and self.rng.random() < 0.5:
            beside = self.places[int(self.rng.integers(len(self.places)))]
            angle, reach = self.rng.uniform(0, 2 * np.pi), radius + beside.radius_um * self.px_per_um
            reach *= self.rng.uniform(0.9, 1.04)
            x, y = beside.x + float(reach * np.cos(angle)), beside.y + float(reach * np.sin(angle))
            if self.within(x, y, radius):
                return x, y
        out = _OUTSIDE if label not in KINDS or self.rng.random() < 0.25 else -0.9  # white cells: most of them whole
        x, y = (self._between(-out * radius, side + out * radius) for side in self.size_wh)
        return x, y

    def _between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(min(low, high), max(low, high)))

    def put_on_another(self, radius_um: float) -> bool:
        """Put a red cell half on one that is there, or on the end of a pile; False where none fits."""
        free = [i for i, place in enumerate(self.places) if place.label == "erythrocyte" and i not in self.under]
        radius = radius_um * self.px_per_um
        for _ in range(_TRIES if free else 0):
            under = free[int(self.rng.integers(len(free)))]
            below = self.places[under]
            angle = self.rng.uniform(0, 2 * np.pi)
            reach = (below.radius_um * self.px_per_um + radius) * self.rng.uniform(0.45, 0.95)
            x, y = below.x + float(reach * np.cos(angle)), below.y + float(reach * np.sin(angle))
            if self.within(x, y, radius) and self.seen(x, y, radius, "erythrocyte"):
                self.under.add(under)
                self.places.append(Place("erythrocyte", x, y, radius_um, piled=True))
                return True
        return False

    def within(self, x: float, y: float, radius: float) -> bool:
        """Whether a centre is allowed."""
        return all(
            -_OUTSIDE * radius <= at <= side + _OUTSIDE * radius for at, side in zip((x, y), self.size_wh, strict=True)
        )

    def gap(self, x: float, y: float, radius: float) -> float:
        """Free room between a disc and the nearest cell, px; negative where they overlap."""
        table = self.discs(self.places)
        if not len(table):
            return np.inf
        return float((np.hypot(table[:, 0] - x, table[:, 1] - y) - table[:, 2] - radius).min())

    def seen(self, x: float, y: float, radius: float, label: str) -> bool:
        """Whether enough of a disc lies inside the image and beside the white cells, and its middle not under one."""
        white = self.discs([place for place in self.places if place.label in KINDS])
        if label in KINDS and len(white):
            return bool((np.hypot(white[:, 0] - x, white[:, 1] - y) > 0.75 * (white[:, 2] + radius)).all())
        if len(white) and (np.hypot(white[:, 0] - x, white[:, 1] - y) < white[:, 2] + 0.5 * radius).any():
            return False
        points = _SUNFLOWER * radius + (x, y)
        free = ((points >= 0) & (points < self.size_wh)).all(axis=1)
        for centre_x, centre_y, reach in white:
            free &= np.hypot(points[:, 0] - centre_x, points[:, 1] - centre_y) > reach
        return bool(free.mean() >= _SEEN)

    def discs(self, places: Sequence[Place]) -> NDArray[np.float64]:
        """Centre and radius in px, shape (N, 3)."""
        return np.array([(p.x, p.y, p.radius_um * self.px_per_um) for p in places], np.float64).reshape(-1, 3)


def _sunflower(count: int) -> NDArray[np.float64]:
    """Points spread evenly over the unit disc, shape (count, 2)."""
    rank = np.arange(count) + 0.5
    angle, rho = np.pi * (1 + 5**0.5) * rank, np.sqrt(rank / count)
    return np.stack([rho * np.cos(angle), rho * np.sin(angle)], axis=1)


_SUNFLOWER = _sunflower(80)


def with_walls(places: Sequence[Place], px_per_um: float) -> list[Place]:
    """The same places; red cells that touch get a common flat side, and bend around white cells.

    Red cells that lie on one another (piled, or overlapping deeply) do not press.
    """
    out = []
    for i, place in enumerate(places):
        walls = []
        for j, other in enumerate(places):
            if i == j or place.label != "erythrocyte" or other.label in ("platelet", "lysed cell"):
                continue
            x, y = (other.x - place.x) / px_per_um, (other.y - place.y) / px_per_um
            away = float(np.hypot(x, y))
            if not 1e-6 < away < place.radius_um + other.radius_um + _GAP_UM:
                continue
            if other.label in KINDS:
                walls.append(Wall(x, y, other.radius_um + _GAP_UM))
            elif not (place.piled or other.piled) and away > 0.68 * (place.radius_um + other.radius_um):
                border = (away**2 + place.radius_um**2 - other.radius_um**2) / (2 * away) - _GAP_UM / 2
                far = (border + _FLAT_UM) / away
                walls.append(Wall(x * far, y * far, _FLAT_UM))
        out.append(replace(place, walls=tuple(walls)))
    return out
