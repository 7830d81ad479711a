"""Morphometry: known shapes have their known figures, however they are turned; nuclei belong to their cells."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from cytolens import masks
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.formats import regions
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.predict.morphometry import SCHEMA, morphometry
from cytolens.problems import DatasetError
from tests.apps.speaking import say

Mask = NDArray[np.bool_]
LABELS = LabelSet.of(["neutrophil", "erythrocyte", "nucleus"])
SIDE = 120
Y, X = np.mgrid[:SIDE, :SIDE] + 0.5


def ellipse(a: float, b: float, degrees: float = 0, at: tuple[float, float] = (60, 60)) -> Mask:
    """Half axes a and b, turned."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = X - at[0], Y - at[1]
    return ((c * x + s * y) / a) ** 2 + ((c * y - s * x) / b) ** 2 <= 1


def disc(radius: float, at: tuple[float, float] = (60, 60)) -> Mask:
    return ellipse(radius, radius, at=at)


small_masks = st.integers(1, 9).flatmap(
    lambda height: st.integers(1, 9).flatmap(
        lambda width: st.lists(st.booleans(), min_size=height * width, max_size=height * width).map(
            lambda flat: np.array(flat, bool).reshape(height, width)
        )
    )
)


def found(
    shapes: list[tuple[str | None, Mask]], pixels: NDArray[np.uint8] | None, folder: Path, **image: Any
) -> tuple[Cells, Images]:
    """Cells with these masks in one image."""
    height, width = shapes[0][1].shape if shapes else (SIDE, SIDE)
    path = None
    if pixels is not None:
        path = folder / "a.png"
        Image.fromarray(pixels).save(path)
    row = {"image_id": "a.png", "width_px": width, "height_px": height, "path": path and str(path)} | image
    codes = [masks.encode(shape) for _, shape in shapes]
    cells = Cells.of(
        LABELS,
        image_id=["a.png"] * len(shapes),
        boxes=np.array([masks.bounds(code, (height, width)) for code in codes]).reshape(-1, 4),
        label=[label for label, _ in shapes],
        source="bundle:x",
        score=[0.9] * len(shapes),
        mask=codes,
    )
    return cells, Images.of([row])


def figures(shape: Mask, folder: Path, **image: Any) -> dict[str, Any]:
    table, _ = morphometry(*found([("neutrophil", shape)], None, folder, **image))
    return table.row(0, named=True)


# -- shapes -----------------------------------------------------------------------------------------


@given(mask=small_masks)
def test_the_part_of_a_mask_is_what_its_bounds_hold(mask: Mask) -> None:
    part, x, y = masks.crop(masks.encode(mask), mask.shape)
    whole = np.zeros_like(mask)
    whole[y : y + part.shape[0], x : x + part.shape[1]] = part
    assert (whole == mask).all()
    assert part.shape == ((0, 0) if not mask.any() else part.shape)
    assert not part.size or (part.any(axis=0)[[0, -1]].all() and part.any(axis=1)[[0, -1]].all())
    with pytest.raises(ValueError, match="does not describe"):
        masks.crop(masks.encode(mask), (mask.shape[0] + 1, mask.shape[1]))


@given(mask=small_masks)
def test_figures_equal_those_of_slow_twins(mask: Mask) -> None:
    rows, columns = mask.shape
    value = lambda y, x: bool(0 <= y < rows and 0 <= x < columns and mask[y, x])  # noqa: E731
    grid = list(product(range(-1, rows + 1), range(-1, columns + 1)))
    crossed = {
        (dy, dx): sum(value(y, x) != value(y + dy, x + dx) for y, x in grid)
        for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1))
    }
    length = sum(count / math.hypot(*step) for step, count in crossed.items()) * math.pi / 8
    assert masks.perimeter(mask) == pytest.approx(length, abs=1e-9)
    points = [(x, y) for y, x in product(range(rows), range(columns)) if mask[y, x]]
    assert masks.solidity(mask) == pytest.approx(len(points) / hull_count(points) if points else 0, abs=1e-12)


def hull_count(points: list[tuple[int, int]]) -> int:
    """Grid points in the convex hull: those that no line through two points parts from all others."""

    def outside(x: int, y: int) -> bool:
        lines = [(a, b) for a in points for b in points if a != b] or [(points[0], points[0])]
        for (ax, ay), (bx, by) in lines:
            side = lambda px, py: (bx - ax) * (py - ay) - (by - ay) * (px - ax)  # noqa: B023, E731
            if side(x, y) < 0 and all(side(*point) >= 0 for point in points):
                return True
        return False

    xs, ys = [x for x, _ in points], [y for _, y in points]
    area = product(range(min(xs), max(xs) + 1), range(min(ys), max(ys) + 1))
    # Where all points lie on one line, that line has two sides but grid points beyond its ends are outside the box.
    return sum(not outside(x, y) for x, y in area)


@given(mask=small_masks.filter(np.any), turns=st.integers(0, 3), flipped=st.booleans())
def test_turns_and_flips_change_nothing(mask: Mask, turns: int, flipped: bool) -> None:
    turned = np.rot90(mask, turns)
    turned = turned[:, ::-1] if flipped else turned
    assert masks.perimeter(turned) == pytest.approx(masks.perimeter(mask), rel=1e-12)
    assert masks.solidity(turned) == masks.solidity(mask)
    assert masks.eccentricity(turned) == pytest.approx(masks.eccentricity(mask), abs=1e-6)


@pytest.mark.parametrize("radius", [10, 15.3, 30, 50])
def test_a_disc(radius: float, tmp_path: Path) -> None:
    shape = figures(disc(radius), tmp_path)
    assert shape["area_px"] == pytest.approx(math.pi * radius**2, rel=0.02)
    assert shape["perimeter_px"] == pytest.approx(2 * math.pi * radius, rel=0.02)
    assert shape["equivalent_diameter_px"] == pytest.approx(2 * radius, rel=0.01)
    assert shape["circularity"] == pytest.approx(1, abs=0.03)
    assert shape["eccentricity"] == pytest.approx(0, abs=0.05)
    assert shape["solidity"] == 1
    assert (shape["centroid_x_px"], shape["centroid_y_px"]) == pytest.approx((60, 60))


@pytest.mark.parametrize("degrees", [0, 17, 30, 45, 90, 123])
def test_an_ellipse_however_it_is_turned(degrees: float, tmp_path: Path) -> None:
    a, b = 40.0, 20.0
    shape = figures(ellipse(a, b, degrees), tmp_path)
    # Ramanujan's approximation, "Modular equations and approximations to π", 1914.
    around = math.pi * (3 * (a + b) - math.sqrt((3 * a + b) * (a + 3 * b)))
    assert shape["area_px"] == pytest.approx(math.pi * a * b, rel=0.01)
    assert shape["perimeter_px"] == pytest.approx(around, rel=0.03)
    assert shape["eccentricity"] == pytest.approx(math.sqrt(0.75), abs=0.01)
    assert shape["solidity"] > 0.99


def test_rectangles(tmp_path: Path) -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[10:30, 20:60] = True
    shape = figures(mask, tmp_path)
    assert shape["area_px"] == 800
    assert shape["eccentricity"] == pytest.approx(math.sqrt(1 - 0.25))
    assert shape["solidity"] == 1
    assert shape["perimeter_px"] == pytest.approx(120, rel=0.065)
    assert (shape["centroid_x_px"], shape["centroid_y_px"]) == (40, 20)
    square = np.ones((20, 20), bool)
    assert masks.eccentricity(square) == pytest.approx(0, abs=1e-7)
    assert masks.perimeter(square) == pytest.approx(math.pi / 8 * (80 + 2 * 78 / math.sqrt(2)))
    assert figures(np.ones((1, 1), bool), tmp_path)["circularity"] == 1
    empty = np.zeros((3, 3), bool)
    assert (masks.perimeter(empty), masks.eccentricity(empty), masks.solidity(empty)) == (0, 0, 0)


def test_a_ring_and_a_crescent(tmp_path: Path) -> None:
    ring = disc(40) & ~disc(20)
    shape = figures(ring, tmp_path)
    assert shape["perimeter_px"] == pytest.approx(2 * math.pi * 60, rel=0.02)
    assert shape["solidity"] == pytest.approx(0.75, abs=0.01)
    assert shape["circularity"] == pytest.approx(4 * math.pi * (math.pi * 1200) / (120 * math.pi) ** 2, abs=0.02)
    bitten = disc(40) & ~disc(30, at=(85, 60))
    assert figures(bitten, tmp_path)["solidity"] < 0.9


def test_micrometres_follow_the_scale(tmp_path: Path) -> None:
    shape = figures(disc(30), tmp_path, um_per_px=0.25)
    assert shape["area_um2"] == shape["area_px"] / 16
    assert shape["perimeter_um"] == shape["perimeter_px"] / 4
    assert shape["equivalent_diameter_um"] == shape["equivalent_diameter_px"] / 4
    unscaled = figures(disc(30), tmp_path)
    assert [unscaled[name] for name in ("area_um2", "perimeter_um", "equivalent_diameter_um")] == [None] * 3


# -- colour, nuclei, and what cannot be measured ------------------------------------------------------


def test_the_colour_is_that_under_the_outline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.full((SIDE, SIDE, 3), 7, np.uint8)
    mask = disc(10, at=(30, 90))
    pixels[mask] = np.stack([X[mask], np.full(mask.sum(), 50), np.full(mask.sum(), 250)], axis=1)
    cells, images = found([("neutrophil", mask)], pixels, tmp_path)
    row = morphometry(cells, images)[0].row(0, named=True)
    wanted = pixels[mask].mean(axis=0)
    colour = [row[name] for name in ("mean_red", "mean_green", "mean_blue")]
    assert colour == pytest.approx(wanted.tolist())
    # Slides are read around each cell only, with the same result.
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(32, 32))
    monkeypatch.setattr(regions, "LARGE_PIXELS", 100)
    tiled, _ = morphometry(cells, images.with_columns(path=str(tmp_path / "a.tif")))
    assert [tiled[0, name] for name in ("mean_red", "mean_green", "mean_blue")] == pytest.approx(colour)


def test_an_image_that_is_gone_leaves_the_forms(tmp_path: Path) -> None:
    cells, images = found([("neutrophil", disc(10))], None, tmp_path)
    for path, kind in ((None, "image-missing"), (str(tmp_path / "gone.png"), "image-missing")):
        table, problems = morphometry(cells, images.with_columns(path=pl.lit(path, pl.String)))
        assert table["mean_red"].to_list() == [None]
        assert table["area_px"].to_list() == [int(disc(10).sum())]
        assert [problem.kind for problem in problems] == [kind], [str(problem) for problem in problems]


def test_nuclei_belong_to_the_cell_that_holds_most_of_them(tmp_path: Path) -> None:
    whole, beside = disc(20, at=(40, 60)), disc(20, at=(85, 60))
    lobes = [disc(6, at=(35, 55)), disc(6, at=(45, 65))]
    astray = disc(6, at=(10, 10))
    red = disc(25, at=(40, 60))
    shapes = [
        *(("erythrocyte", red), ("neutrophil", whole), ("nucleus", lobes[0]), ("nucleus", lobes[1])),
        *((None, beside), ("nucleus", astray), ("nucleus", disc(9, at=(62, 60)))),
    ]
    cells, images = found(shapes, None, tmp_path)
    ids = cells.frame["cell_id"].to_list()
    table, _ = morphometry(cells, images)
    # The last nucleus lies in a cell with less than half of its pixels.
    assert table["inside"].to_list() == [None, None, ids[1], ids[1], None, None, None]
    inner = int(lobes[0].sum() + lobes[1].sum())
    assert table["nucleus_area_px"].to_list() == [None, inner, *[None] * 5]
    assert table["nucleus_to_cytoplasm"][1] == pytest.approx(inner / (whole.sum() - inner))
    assert table["nucleus_to_cytoplasm"].null_count() == 6


def test_a_nucleus_that_fills_its_cell_has_no_ratio(tmp_path: Path) -> None:
    table, _ = morphometry(*found([("neutrophil", disc(9)), ("nucleus", disc(12))], None, tmp_path))
    assert table["nucleus_area_px"].to_list() == [int(disc(9).sum()), None]
    assert table["nucleus_to_cytoplasm"].to_list() == [None, None]


def test_only_counted_cells_with_an_outline_are_measured(tmp_path: Path) -> None:
    cells, images = found([("neutrophil", disc(9)), ("neutrophil", disc(8)), ("neutrophil", disc(7))], None, tmp_path)
    cells = cells.with_masks([cells.masks()[0], cells.masks()[1], None]).with_columns(counted=[False, True, True])
    table, problems = morphometry(cells, images)
    assert table["area_px"].to_list() == [int(disc(8).sum())]
    assert "1 of 2 counted cells have no outline" in problems.of("cells-without-outline")[0].what
    empty, problems = morphometry(Cells.empty(LABELS), images)
    assert (dict(empty.schema), len(empty), len(problems)) == (SCHEMA, 0, 0)


def test_sizes_that_are_unknown_or_wrong_are_refused(tmp_path: Path) -> None:
    cells, images = found([("neutrophil", disc(9))], None, tmp_path)
    with pytest.raises(DatasetError, match="is not known, and its outlines need it"):
        morphometry(cells, images.with_columns(width_px=None))
    with pytest.raises(DatasetError, match=r"cannot be measured: .* does not describe"):
        morphometry(cells, images.with_columns(width_px=7))


def test_the_command_writes_the_table(tmp_path: Path) -> None:
    pixels = np.full((SIDE, SIDE, 3), 9, np.uint8)
    cells, images = found([("neutrophil", disc(9))], pixels, tmp_path, um_per_px=0.5)
    Dataset(images, cells, "found").write(tmp_path / "found")
    out = tmp_path / "morphometry.csv"
    assert say("export", tmp_path / "found", "--format", "morphometry", "--out", out).code == 0
    table = pl.read_csv(out)
    assert table.columns == list(SCHEMA)
    assert table.row(0, named=True)["area_um2"] == disc(9).sum() / 4
    assert table["mean_green"].to_list() == [9.0]
    (tmp_path / "found" / "images.parquet").unlink()
    (tmp_path / "found" / "dataset.json").unlink()
    refused = say("export", tmp_path / "found", "--format", "morphometry", "--out", out)
    assert "the images are not known" in refused.complaint
