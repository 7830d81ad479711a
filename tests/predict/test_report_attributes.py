"""The report's sections on attributes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cytolens.cells import Cells
from cytolens.evaluate.page import Page, Picture
from cytolens.labels import AttributeSchema, LabelSet
from cytolens.predict.outputs import flat
from cytolens.predict.report_attributes import attribute_sections, shares_plot
from tests.predict.doubles import NAMES, describing

SIZE = AttributeSchema("s", "cell_size", ("small", "large"))
LABELS = LabelSet.of(NAMES, (SIZE,))
KINDS = {"monocyte": {SIZE.column: (0.004, 0.996)}, "lymphocyte": {SIZE.column: (0.6, 0.4)}}


@pytest.fixture
def found() -> Cells:
    names = ["monocyte"] * 30 + ["lymphocyte"] * 10 + ["band neutrophil"]
    sizes = ["small"] + ["large"] * 29 + ["small"] * 5 + ["large"] * 5 + [None]
    return Cells.of(
        LABELS, image_id=["a.png"] * 41, boxes=[[0, 0, 9, 9]] * 41, label=names, source="x",
        attributes={SIZE.column: sizes}, counted=[True] * 40 + [False],
    )  # fmt: skip


def portrait(row: dict[str, Any]) -> Picture:
    return Picture(None, f"portrait of {row['label']}")


def test_values_stand_with_their_share_and_interval_and_outliers_are_shown(found: Cells, tmp_path: Path) -> None:
    page = attribute_sections(Page("x"), found, describing(tmp_path, (SIZE,), kinds=KINDS), portrait)
    kinds = [block["kind"] for block in page.blocks]
    assert kinds == ["section", "figures", "table", "notes", "section", "grid"]
    assert page.blocks[2]["rows"] == [
        ["cell size", "small", "6", "15.0", "7.1 – 29.1"],
        ["cell size", "large", "34", "85.0", "70.9 – 92.9"],
    ]
    (strange,) = page.blocks[5]["pictures"]
    assert (strange.caption, strange.detail) == ("portrait of monocyte", "cell_size small (0.4 %)")


def test_without_attributes_nothing_is_added(found: Cells, tmp_path: Path) -> None:
    page = Page("x")
    plain = found.relabel(replace(LABELS, attributes=()))
    assert attribute_sections(page, plain, describing(tmp_path, (SIZE,)), portrait) is page
    empty = found.filter(pl.col(SIZE.column).is_null())
    assert attribute_sections(page, empty, describing(tmp_path, (SIZE,)), portrait) is page


def test_the_plot_is_svg_with_and_without_values(found: Cells) -> None:
    for table in (found, found.filter(pl.col(SIZE.column).is_null())):
        assert shares_plot(table, SIZE).lstrip().startswith(b"<?xml")


def test_the_table_for_spreadsheets_has_values_and_a_sentence(found: Cells) -> None:
    table = flat(found)
    assert table[SIZE.column].cast(pl.String).to_list()[:2] == ["small", "large"]
    assert table["description"].to_list()[0] == "cell size: small"
    assert table["description"].to_list()[-1] == ""
    assert "description" not in flat(found.relabel(LabelSet.of(NAMES))).columns
