"""Attributes in overlays: which, what is written, and where it stands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolens import boxes as box
from cytolens.cells import Cells
from cytolens.labels import AttributeSchema, LabelSet, attribute_schema
from cytolens.predict.overlay_notes import noted_attributes, notes, placed
from cytolens.predict.overlays import overlay
from cytolens.problems import SettingError

OTHER = AttributeSchema("other", "cell_size", ("s", "l"))
LABELS = LabelSet.of(["lymphocyte", "erythrocyte"], (*attribute_schema("wbcatt"), OTHER))
GREY = np.full((300, 400, 3), 200, np.uint8)


def cells(corners: list[list[float]], sizes: list[str | None]) -> Cells:
    return Cells.of(
        LABELS,
        image_id=["a.png"] * len(corners),
        boxes=corners,
        label=["lymphocyte"] * len(corners),
        source="bundle:x@0",
        score=[0.9] * len(corners),
        counted=[True] * len(corners),
        attributes={"wbcatt.cell_size": sizes, "wbcatt.nucleus_shape": ["unsegmented-round"] * len(corners)},
    )


def test_attributes_are_meant_by_name_column_or_schema() -> None:
    assert [a.column for a in noted_attributes(LABELS, ["cell_size"])] == ["wbcatt.cell_size", "other.cell_size"]
    assert [a.column for a in noted_attributes(LABELS, ["other.cell_size"])] == ["other.cell_size"]
    both = noted_attributes(LABELS, ["other", "wbcatt.granularity", "other.cell_size"])
    assert [a.column for a in both] == ["other.cell_size", "wbcatt.granularity"]
    assert len(noted_attributes(LABELS, ["wbcatt"])) == 11
    assert noted_attributes(LABELS, []) == ()
    with pytest.raises(SettingError, match=r'no attribute "cellsize" .* Did you mean "cell_size"\? Allowed: .*cell_s'):
        noted_attributes(LABELS, ["cellsize"])
    with pytest.raises(SettingError, match="nothing here describes cells"):
        noted_attributes(LabelSet.of(["lymphocyte"]), ["cell_size"])


def test_what_is_not_known_is_not_written() -> None:
    chosen = noted_attributes(LABELS, ["nucleus_shape", "wbcatt.cell_size", "granularity"])
    assert notes(cells([[0, 0, 9, 9], [9, 9, 20, 20]], ["big", None]), chosen) == [
        ["nucleus shape: unsegmented-round", "cell size: big"],
        ["nucleus shape: unsegmented-round"],
    ]


numbers = st.integers(0, 380)


@given(x=numbers, y=numbers, side=st.integers(5, 120), block=st.tuples(st.integers(20, 130), st.integers(10, 90)))
def test_a_block_lies_in_the_picture_and_beside_its_cell(x: int, y: int, side: int, block: tuple[int, int]) -> None:
    corners = np.array([min(x, 395), min(y, 295), min(x + side, 400), min(y + side, 300)], float)
    left, top = placed(corners, block, (400, 300), corners[None])
    own = np.array([[left, top, left + block[0], top + block[1]]])
    assert own.min() >= 0
    assert (own[0, 2:] <= [400, 300]).all()
    assert box.intersections(own, corners[None])[0, 0] == 0  # such cells leave room at one of their sides


def test_a_block_goes_where_it_covers_least() -> None:
    corners, above = np.array([100.0, 100, 140, 140]), np.array([90.0, 60, 200, 95])
    assert placed(corners, (60, 30), (400, 300), corners[None]) == (100, 70)
    assert placed(corners, (60, 30), (400, 300), np.stack([corners, above])) == (100, 140)
    assert placed(corners, (600, 400), (400, 300), corners[None]) == (0, 0)  # nothing fits


@pytest.mark.parametrize("corner", [(0, 0), (340, 0), (0, 240), (340, 240), (170, 120)])
def test_pixels_change_near_cells_only_and_not_inside(corner: tuple[int, int]) -> None:
    x, y = corner
    table = cells([[x, y, x + 60, y + 60]], ["small"])
    chosen = noted_attributes(LABELS, ["wbcatt.cell_size", "nucleus_shape"])
    plain, noted = overlay(GREY, table), overlay(GREY, table, attributes=chosen)
    changed = (noted != GREY).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert x - 215 <= columns.min()
    assert columns.max() < x + 60 + 215
    assert y - 65 <= rows.min()
    assert rows.max() < y + 60 + 65
    assert not changed[y + 3 : y + 57, x + 3 : x + 57].any()  # the cell stays to be seen
    assert changed.sum() > (plain != GREY).any(axis=2).sum()


def test_without_attributes_nothing_is_changed() -> None:
    table = cells([[100, 100, 160, 160], [250, 90, 300, 150]], ["small", None])
    assert np.array_equal(overlay(GREY, table), overlay(GREY, table, attributes=()))
    other = noted_attributes(LABELS, ["other"])  # of which nothing is known
    assert np.array_equal(overlay(GREY, table), overlay(GREY, table, attributes=other))
