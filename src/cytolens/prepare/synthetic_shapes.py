"""The drawing board of rendered cells: grids, band-limited noise, and shapes as signed distances.

A shape is the signed distance to its outline in micrometres, positive inside, as an array of the
patch's size. Distances are combined by smooth minima and maxima, so that lobes melt into each
other and cells that touch get rounded corners.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Plane = NDArray[np.floating]

_CUBIC_SPREAD = 0.855  # standard deviation that cubic interpolation leaves of independent knots of 1, measured
REACH = 0.25  # how far an outline may leave its mean radius, relative to it


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the pixels of a patch lie, seen from the cell's centre.

    Attributes:
        x, y: µm right of and below the centre, shape (height, width).
        px_per_um: the scale.
        left, top: the patch's corner in the image, px; may be negative.
        centre_xy: the cell's centre in the patch, px.
    """

    x: Plane
    y: Plane
    px_per_um: float
    left: int
    top: int
    centre_xy: tuple[float, float]

    @classmethod
    def around(cls, x_px: float, y_px: float, reach_um: float, px_per_um: float) -> Grid:
        """The grid of all pixels within `reach_um` of a point of the image, in x and in y."""
        reach = reach_um * px_per_um
        left, top = int(np.floor(x_px - reach)), int(np.floor(y_px - reach))
        right, bottom = int(np.ceil(x_px + reach)), int(np.ceil(y_px + reach))
        across = (np.arange(left, right, dtype=np.float32) + 0.5 - x_px) / px_per_um
        down = (np.arange(top, bottom, dtype=np.float32) + 0.5 - y_px) / px_per_um
        x, y = np.meshgrid(across.astype(np.float32), down.astype(np.float32))
        return cls(x, y, px_per_um, left, top, (x_px - left, y_px - top))

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in px."""
        return self.x.shape[0], self.x.shape[1]

    def noise(self, rng: np.random.Generator, wavelength_um: float) -> Plane:
        """Smooth noise of mean 0 and standard deviation 1; its bumps are about `wavelength_um` apart."""
        return noise(rng, self.size_hw, wavelength_um * self.px_per_um / 2)

    def warped(self, rng: np.random.Generator, wavelength_um: float, by_um: float) -> Grid:
        """The same grid seen through uneven glass: straight lines become slightly wavy."""
        x = self.x + by_um * self.noise(rng, wavelength_um)
        y = self.y + by_um * self.noise(rng, wavelength_um)
        return Grid(x, y, self.px_per_um, self.left, self.top, self.centre_xy)

    def coverage(self, distance_um: Plane, softness_um: float = 0.0) -> Plane:
        """How much of each pixel lies inside a shape, 0 to 1; `softness_um` widens the edge."""
        width = softness_um + 1 / self.px_per_um
        return np.clip(distance_um / np.float32(width) + np.float32(0.5), 0, 1)


def noise(rng: np.random.Generator, size_hw: tuple[int, int], spacing_px: float) -> Plane:
    """Noise of expected mean 0 and standard deviation 1: random heights every `spacing_px`, joined smoothly."""
    import cv2

    height, width = size_hw
    spacing = max(float(spacing_px), 1.0)
    rows, columns = int(np.ceil(height / spacing)) + 3, int(np.ceil(width / spacing)) + 3
    field = rng.standard_normal((rows, columns), dtype=np.float32)
    if spacing > 1:
        whole = (round(columns * spacing), round(rows * spacing))
        top, left = rng.integers(int(spacing), int(2 * spacing) + 1, 2)  # the outermost knots are repeated: not used
        field = cv2.resize(field, whole, interpolation=cv2.INTER_CUBIC)[top:, left:]
        field = field * np.float32(1 / _CUBIC_SPREAD)
    return np.asarray(field[:height, :width], np.float32)


def blurred(plane: Plane, sigma_px: float) -> Plane:
    """The plane under a Gaussian blur of `sigma_px`, shape (height, width)."""
    import cv2

    return np.asarray(cv2.GaussianBlur(plane, (0, 0), max(sigma_px, 0.25)), np.float32)


def steps(low: float, high: float, values: Plane) -> Plane:
    """A smooth step from 0 (at `low` and below) to 1 (at `high` and above); `low` may be the larger."""
    at = np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1)
    return at * at * (3 - 2 * at)


def outline(
    rng: np.random.Generator, grid: Grid, radius_um: float, *, uneven: float, oval: float = 0.0, waves: int = 6
) -> Plane:
    """A closed outline about the centre, as a signed distance.

    Args:
        rng: randomness.
        grid: where the pixels are.
        radius_um: mean radius.
        uneven: size of the bumps relative to the radius.
        oval: by how much the longer half axis exceeds the shorter, relative to the radius.
        waves: the most bumps around the outline.
    """
    angle, rho = np.arctan2(grid.y, grid.x), np.hypot(grid.x, grid.y)
    radius = np.full_like(rho, 1)
    radius += np.float32(oval / 2) * np.cos(2 * angle - np.float32(rng.uniform(0, 2 * np.pi)))
    for k in range(2, waves + 1):
        height = uneven * rng.normal() / (k - 1)
        radius += np.float32(height) * np.cos(k * angle - np.float32(rng.uniform(0, 2 * np.pi)))
    # Bumps and oval together stay within a quarter of the radius, so that no cell outgrows its patch.
    radius = 1 + REACH * np.tanh((radius - 1) / np.float32(REACH))
    return np.float32(radius_um) * radius - rho


def discs(grid: Grid, circles: ArrayLike, melt_um: float) -> Plane:
    """The smooth union of circles, rows (x, y, radius) in µm, as a signed distance.

    Source: the log-sum-exp form of the smooth maximum; `melt_um` is how far apart outlines melt together.
    """
    rows = np.asarray(circles, np.float32).reshape(-1, 3)
    inside = [(radius - np.hypot(grid.x - x, grid.y - y)) / np.float32(melt_um) for x, y, radius in rows]
    stack = np.stack(inside)
    top = stack.max(axis=0)
    return np.float32(melt_um) * (top + np.log(np.exp(np.maximum(stack - top, -30)).sum(axis=0)))


def both(a: Plane, b: Plane, melt_um: float) -> Plane:
    """The overlap of two shapes with rounded corners (a smooth minimum).

    Source: the polynomial smooth minimum of I. Quilez.
    """
    mix = np.maximum(np.float32(melt_um) - np.abs(a - b), 0) / np.float32(melt_um)
    return np.minimum(a, b) - mix * mix * np.float32(melt_um / 4)


def capsule(grid: Grid, start: ArrayLike, end: ArrayLike, radius_um: float) -> Plane:
    """A thick line with round ends between two points (x, y) in µm, as a signed distance."""
    (x0, y0), (x1, y1) = np.asarray(start, np.float32), np.asarray(end, np.float32)
    along_x, along_y = x1 - x0, y1 - y0
    length = max(float(along_x**2 + along_y**2), 1e-6)
    at = np.clip(((grid.x - x0) * along_x + (grid.y - y0) * along_y) / np.float32(length), 0, 1)
    return np.float32(radius_um) - np.hypot(grid.x - x0 - at * along_x, grid.y - y0 - at * along_y)


def along(points: ArrayLike, radii: ArrayLike, count: int) -> NDArray[np.float32]:
    """Circles strung along a curve through `points` (N, 2), their radii interpolated, shape (count, 3)."""
    knots, widths = np.asarray(points, np.float64), np.asarray(radii, np.float64)
    lengths = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(knots, axis=0).T))])
    at = np.linspace(0, lengths[-1], count)
    columns = [np.interp(at, lengths, column) for column in (knots[:, 0], knots[:, 1], widths)]
    return np.stack(columns, axis=1).astype(np.float32)


def scatter(rng: np.random.Generator, grid: Grid, inside_um: Plane, count: int) -> NDArray[np.float32]:
    """`count` random points (x, y) in µm where `inside_um` is positive, shape (count, 2); fewer where nothing is."""
    rows, columns = np.nonzero(inside_um > 0)
    if not len(rows):
        return np.zeros((0, 2), np.float32)
    picked = rng.integers(0, len(rows), count)
    jitter = rng.uniform(-0.5, 0.5, (count, 2)) / grid.px_per_um
    points = np.stack([grid.x[rows[picked], columns[picked]], grid.y[rows[picked], columns[picked]]], axis=1)
    return (points + jitter).astype(np.float32)


def dots(grid: Grid, points: ArrayLike, radii_um: ArrayLike, strength: ArrayLike) -> Plane:
    """Small discs with smooth edges, drawn one over the other; `strength` 0 to 1 each.

    Args:
        grid: where the pixels are.
        points: centres in µm, shape (N, 2).
        radii_um: shape (N,).
        strength: shape (N,).
    """
    import cv2

    height, width = grid.size_hw
    finer, digits = 3, 4  # drawn three times larger, because discs of a pixel or two would come out square
    board = np.zeros((height * finer, width * finer), np.uint8)
    centres = np.asarray(points, np.float64).reshape(-1, 2) * grid.px_per_um + np.asarray(grid.centre_xy)
    fixed = np.rint((centres * finer - 0.5) * 2**digits).astype(int)
    # cv2 counts a radius from the centre of a pixel to that of the last one drawn: half a pixel less than we mean.
    sizes = np.rint((np.asarray(radii_um) * grid.px_per_um * finer - 0.5) * 2**digits).astype(int)
    levels = np.rint(np.clip(np.asarray(strength), 0, 1) * 255).astype(int)
    for (x, y), size, level in zip(fixed.tolist(), sizes.tolist(), levels.tolist(), strict=True):
        cv2.circle(board, (x, y), max(size, 1), level, -1, cv2.LINE_AA, digits)
    return cv2.resize(board, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
