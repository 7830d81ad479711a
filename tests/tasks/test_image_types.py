"""The cell type of an image: by the cells that were found, and by how many places are lit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolens.tasks.image_types import DensityRule, lit_places, majority, type_by_density

PLACES = (130 * 176, 65 * 88, 32 * 44, 16 * 22, 8 * 11)
LIT, DARK = 4.0, -4.0


def levels(*lit: int, anchors: int = 3) -> list[np.ndarray]:
    """Objectness of five levels in each of which as many places have one sure anchor."""
    maps = []
    for places, count in zip(PLACES, lit, strict=True):
        level = np.full((places, anchors), DARK)
        level[:count, 1] = LIT
        maps.append(level)
    return maps


def test_scores_are_votes():
    assert majority([0, 0, 1], [0.55, 0.6, 0.99], 0.5) == 0
    assert majority([0, 0, 1], [0.5, 0.3, 0.7], 0.5) == 1, "the unsure cell is not asked"
    assert majority([2, 2, 1], [0.1, 0.2, 0.25], 0.5) == 2, "with none that is sure all are asked"
    assert majority([], [], 0.5) is None
    assert majority([1, 0], [0.5, 0.5], 0.5) == 0, "of equal sums the first class"


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1, width=32)), min_size=1, max_size=12), st.floats(0, 1))
def test_majority_as_its_slow_twin(cells: list[tuple[int, float]], score_min: float):
    sure = [cell for cell in cells if cell[1] >= score_min] or cells
    sums = [sum(score for kind, score in sure if kind == wanted) for wanted in range(4)]
    chosen = majority([kind for kind, _ in cells], [score for _, score in cells], score_min)
    assert chosen is not None
    assert sums[chosen] == pytest.approx(max(sums))


@pytest.mark.parametrize(
    ("lit", "expected"),
    [
        ((0, 0, 0, 6, 5), "astro"),  # 11 in the two coarsest
        ((0, 0, 0, 6, 4), "cort"),  # 10 are not more than 10
        ((3000, 700, 799, 0, 0), "cort"),  # 4,499 in all
        ((3000, 700, 800, 0, 0), "shsy5y"),  # 4,500
        ((0, 749, 0, 0, 0), "cort"),
        ((0, 750, 0, 0, 0), "shsy5y"),
        ((9000, 5000, 0, 11, 0), "astro"),  # the coarsest levels are asked first
    ],
)
def test_type_by_density_at_its_limits(lit: tuple[int, ...], expected: str):
    assert type_by_density(levels(*lit)) == expected


def test_a_place_counts_once_and_has_to_be_above_the_limit():
    exactly = float(np.log(0.7 / (1 - 0.7)))
    level = np.array([[exactly, DARK], [exactly + 1e-6, LIT], [DARK, 900.0]])
    assert lit_places([level, np.zeros((0, 2))], 0.7).tolist() == [2, 0]
    assert lit_places([level], 0.0).tolist() == [3]


def test_types_and_limits_are_settings():
    rule = DensityRule(large="big", sparse="few", dense="many", sparse_below=5, coarse_levels=1, large_above=0)
    assert type_by_density(levels(0, 0, 0, 9, 0), rule) == "many"
    assert type_by_density(levels(0, 0, 0, 4, 0), rule) == "few"
    assert type_by_density(levels(0, 0, 0, 0, 1), rule) == "big"
    with pytest.raises(ValueError, match="there are 1 levels"):
        type_by_density(levels(0, 0, 0, 0, 0)[:1])
