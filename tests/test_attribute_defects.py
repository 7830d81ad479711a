"""What earlier programs for attributes of white cells got wrong, and no other test here shows to be right.

The first of each name is a row of the tables of known defects: of LeukemiaAttri's program, and of WBCAtt's baseline.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from cytolens import evaluate
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import LabelSet, attribute_schema
from cytolens.predict.overlays import colour, overlay
from cytolens.tasks.classify import ClassifyInput, crop_view
from cytolens.tasks.detect import DetectInput, picture


def test_cell_size_dropped_all_seven_attributes_are_there_and_size_is_ordered() -> None:
    schema = {attribute.name: attribute for attribute in attribute_schema("leukemia_attri")}
    assert len(schema) == 7
    assert schema["cell_size"].values == ("small", "medium", "large")
    assert schema["cell_size"].ordered
    assert [name for name, attribute in schema.items() if attribute.ordered] == ["cell_size"]


def test_stretched_to_a_square_fields_are_padded_and_boxes_come_back() -> None:
    shown, view = picture(np.full((448, 800, 3), 230, np.uint8), DetectInput(side_px=640))
    assert shown.shape == (384, 640, 3)  # 358 rows of picture, and padding up to whole strides
    cell = np.array([[400, 200, 480, 280]], np.float32)
    seen = view.forward_boxes(cell)
    assert seen[0, 2:] - seen[0, :2] == pytest.approx([64, 64], abs=0.1)  # stretched it would be 64 × 114.3
    assert view.back_boxes(seen) == pytest.approx(cell, abs=1e-3)


@pytest.mark.parametrize("size_wh", [(360, 363), (363, 360), (800, 300)])
def test_cut_by_the_centre_crop_the_whole_image_is_shown(size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    settings = ClassifyInput(side_px=160)
    view = crop_view(np.array([0, 0, width, height]), size_wh, settings)
    corners = view.forward_boxes(np.array([[0, 0, width, height]], np.float32))[0]
    assert corners[:2].min() >= -1e-3
    assert corners[2:].max() <= 160 + 1e-3
    assert max(corners[2] - corners[0], corners[3] - corners[1]) == pytest.approx(160, abs=1e-3)
    sides = (corners[2] - corners[0]) / width, (corners[3] - corners[1]) / height
    assert sides[0] == pytest.approx(sides[1], abs=1e-6)  # in the image's own proportions


def test_no_agreement_reference_two_annotators_are_compared_like_a_model() -> None:
    vacuole = next(a for a in attribute_schema("wbcatt") if a.name == "cytoplasm_vacuole")
    labels = LabelSet(("Lymphocyte", "Monocyte"), attributes=(vacuole,))

    def annotated(values: str, who: str) -> Dataset:
        names = [f"{number}.png" for number in range(len(values))]
        rows = [{"image_id": n, "path": None, "width_px": 90, "height_px": 90, "sha256": n} for n in names]
        cells = Cells.of(
            labels, image_id=names, boxes=[[0, 0, 90, 90]] * len(names), label=["Monocyte"] * len(names), source=who,
            attributes={vacuole.column: ["yes" if value == "y" else "no" for value in values]},
        )  # fmt: skip
        return Dataset(Images.of(rows), cells, who)

    first, second = annotated("yyyynnnnnn", "human:a"), annotated("yyynynnnnn", "human:b")
    own = evaluate(first, second, task="attributes").figures["per_attribute"]["cytoplasm_vacuole"]
    assert own["accuracy"] == pytest.approx(0.8)
    assert own["kappa"] == pytest.approx((0.8 - 0.52) / (1 - 0.52))  # by chance .4 · .4 + .6 · .6


@pytest.mark.parametrize("corner", [(0, 0), (200, 0), (0, 140), (200, 140)])
def test_clipped_at_the_border_names_are_whole_in_overlays(corner: tuple[int, int]) -> None:
    labels = LabelSet.of(("leukocyte", "lymphocyte"))

    shade = colour(labels, "lymphocyte")

    def ink(x: int, y: int) -> float:
        """How much white the letters have."""
        cells = Cells.of(
            labels, image_id=["a"], boxes=[[x, y, x + 40, y + 40]], label=["lymphocyte"], source="bundle:x@0",
            score=[0.9], counted=[True],
        )  # fmt: skip
        drawn = overlay(np.full((180, 240, 3), 128, np.uint8), cells).astype(int)
        return float((drawn[..., 0] - shade[0])[drawn[..., 1] >= shade[1]].sum())

    assert ink(*corner) == pytest.approx(ink(90, 80), rel=0.05)  # letters may lie between pixels
    assert ink(90, 80) > 1000


def test_none_means_nothing_is_known_and_nil_is_a_value() -> None:
    grains = {a.name: a for a in attribute_schema("wbcatt")}["granule_type"]
    assert "nil" in grains.values
    cells = Cells.of(
        LabelSet(("Monocyte",), attributes=(grains,)), image_id=["a", "b"], boxes=[[0, 0, 9, 9]] * 2,
        label=["Monocyte"] * 2, source="import:x", attributes={grains.column: ["nil", None]},
    )  # fmt: skip
    assert cells.frame[grains.column].cast(pl.String).to_list() == ["nil", None]
