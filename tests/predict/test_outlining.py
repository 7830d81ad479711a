"""Map networks at work: a field is read the same in any tiles and windows, and cells come back where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cytolens import masks
from cytolens.bundle import Bundle
from cytolens.cells import Cells
from cytolens.formats import regions
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.predict import tta
from cytolens.predict.differential import differential, without_parts
from cytolens.predict.field_blocks import joined_blocks
from cytolens.predict.field_cells import FieldCells, with_outlines
from cytolens.predict.fields import image_rows, predict_images
from cytolens.predict.outlining import CellOutliner, FieldOutliner, sampled_squares, turned_back
from cytolens.predict.pipeline import Predictor, PredictSettings
from cytolens.predict.tiles import Window
from cytolens.problems import BundleError
from cytolens.tasks.segment import Outlines
from tests.predict.doubles import Pixels
from tests.predict.outline_doubles import (
    Ellipse,
    Marks,
    Painter,
    Reader,
    cell_bundle,
    charted,
    connect,
    field_bundle,
    marked,
    told,
)

FOLDER = Path("nowhere")


def outliner(bundle: Bundle, reader: Reader | None = None) -> FieldOutliner:
    with pytest.MonkeyPatch.context() as patch:
        connect(patch, chart=reader or Reader())
        return FieldOutliner(bundle)


def seen(found: Outlines) -> set[tuple[bytes, float]]:
    """Every cell: its mask and its score."""
    return {(code, float(score)) for code, score in zip(found.masks, found.scores, strict=True)}


@st.composite
def fields(draw: st.DrawFn) -> tuple[Marks, int | None]:
    """Ellipses of all sizes that may touch, overlap and reach beyond the border, and the seed of noise."""
    width, height = draw(st.integers(70, 420)), draw(st.integers(70, 420))
    ellipse = st.tuples(
        st.floats(0, width), st.floats(0, height), st.floats(4, 60), st.floats(4, 60), st.floats(0, np.pi)
    )
    return marked((width, height), draw(st.lists(ellipse, max_size=14))), draw(st.none() | st.integers(0, 99))


# -- windows and tiles ------------------------------------------------------------------------------


@settings(max_examples=25)
@given(field=fields(), tile_px=st.sampled_from([64, 96, 160]), margin_px=st.sampled_from([0, 32, 64]))
def test_reading_in_windows_gives_the_cells_of_reading_the_whole(
    field: tuple[Marks, int | None], tile_px: int, margin_px: int
) -> None:
    marks, seed = field
    pixels = charted(marks, None if seed is None else np.random.default_rng(seed))
    whole = outliner(field_bundle(FOLDER, whole_px=5000)).look(pixels)
    parts = outliner(field_bundle(FOLDER, whole_px=64, tile_px=tile_px, margin_px=margin_px)).look(pixels)
    assert len(parts.masks) == len(whole.masks)
    assert seen(parts) == seen(whole)
    size_hw = marks.shape
    if parts.masks:
        np.testing.assert_array_equal(parts.boxes, [masks.bounds(code, size_hw) for code in parts.masks])
        assert (np.diff(parts.scores) <= 0).all()
        assert sum(masks.decode(code, size_hw).astype(int) for code in parts.masks).max() == 1


def test_no_cell_on_a_seam_is_doubled_or_cut() -> None:
    """Discs whose middles lie on every seam of tiles and windows, and about it."""
    places = [(x + dx, y + dy) for x in (64, 128, 256) for y in (64, 128, 256) for dx, dy in ((0, 0), (0.5, 0.5))]
    for x, y in places:
        marks = marked((384, 384), [(x, y, 17, 13, 0.4), (x + 32, y, 14, 14, 0)])
        found = outliner(field_bundle(FOLDER, whole_px=64, tile_px=64)).look(charted(marks))
        assert len(found.masks) == 2
        truth = [masks.encode(marks == number) for number in (1, 2)]
        assert masks.iou(truth, found.masks, (384, 384)).max(axis=1).min() > 0.99
        assert found.counted.all()


def test_tiles_see_their_margin_and_are_made_once() -> None:
    reader = Reader()
    pixels = charted(marked((300, 200), [(100, 100, 20, 20, 0)]))
    outliner(field_bundle(FOLDER, whole_px=64, tile_px=64, margin_px=32), reader).look(pixels)
    assert len(reader.shapes) == 5 * 4
    assert max(reader.shapes) == (128, 128, 3)
    # The lower right tile: 44 px and a margin of 32, 8 px and 32, both brought to whole strides.
    assert reader.shapes.count((64, 96, 3)) >= 1


def test_a_field_of_no_cells_and_one_of_a_pixel() -> None:
    for side in (1, 40, 130):
        found = outliner(field_bundle(FOLDER, whole_px=64, tile_px=64)).look(np.zeros((side, side, 3), np.uint8))
        assert found.boxes.shape == (0, 4)
        assert (found.masks, len(found.scores), len(found.counted)) == ([], 0, 0)


def test_the_type_of_a_field_gives_its_limits_and_names() -> None:
    labels = ("astro", "cort", "shsy5y")
    few, many = (
        [(80.0, 80.0, 20.0, 20.0, 0.0)],
        [(x, y, 24.0, 24.0, 0.0) for x in (25, 75, 125) for y in (25, 75, 125)],
    )
    for ellipses, kind in ((few, 0), (many, 2)):
        bundle = field_bundle(FOLDER, names=labels)
        limits = {labels[kind]: {"score_min": 0.99}}
        output = bundle.info.outline_output.model_validate({"per_label": limits})
        bundle = replace(bundle, info=bundle.info.model_copy(update={"outline_output": output}))
        found = outliner(bundle, Reader(types=3)).look(charted(marked((150, 150), ellipses)))
        assert found.classes.tolist() == [kind] * len(ellipses)
        assert not found.counted.any()


def test_large_tiled_files_are_read_through_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(regions.open_regions, "__defaults__", (1000,))
    marks = marked((350, 270), [(64, 64, 15, 12, 0), (128, 100, 20, 14, 1), (340, 260, 15, 15, 0), (200, 128, 9, 9, 0)])
    tifffile.imwrite(tmp_path / "a.tif", charted(marks), tile=(64, 64), photometric="rgb")
    connect(monkeypatch, chart=Reader())
    predictor = Predictor(field_bundle(FOLDER, whole_px=64, tile_px=64), PredictSettings(jobs=1))
    prediction = predict_images(predictor, image_rows([tmp_path / "a.tif"]))
    assert "read by tiles." in [problem.what for problem in prediction.problems]
    codes = prediction.cells.masks()
    truth = [masks.encode(marks == number) for number in range(1, 5)]
    assert len(codes) == 4
    assert masks.iou(truth, [code or b"" for code in codes], (270, 350)).max(axis=1).min() > 0.99
    assert prediction.cells.label_names() == ["nucleus"] * 4


def test_levels_are_measured_on_pixels_as_they_are() -> None:
    """Small bright cells on dark: an overview would mix them with the dark between."""
    pixels = np.full((3000, 2000, 3), 10, np.uint8)
    pixels[::40, ::40] = pixels[1::40, ::40] = 200
    shown = sampled_squares(lambda x, y, w, h: pixels[y : y + h, x : x + w], (2000, 3000))
    assert shown.shape == (1024, 1024, 3)
    assert (shown == 200).mean() == pytest.approx((pixels == 200).mean(), rel=0.1)
    small = sampled_squares(lambda x, y, w, h: pixels[y : y + h, x : x + w], (50, 70))
    assert small.shape == (560, 400, 3)


def test_a_bundle_of_another_kind_is_refused() -> None:
    with pytest.raises(BundleError, match='"paint" has no network that outlines the cells of fields'):
        FieldOutliner(cell_bundle(FOLDER))
    with pytest.raises(BundleError, match='"chart" has no network that outlines single cells'):
        CellOutliner(field_bundle(FOLDER))


# -- views ------------------------------------------------------------------------------------------


@given(
    number=st.integers(0, 7),
    size_wh=st.tuples(st.integers(3, 40), st.integers(3, 40)),
    cells=st.lists(
        st.tuples(st.floats(0, 40), st.floats(0, 40), st.floats(2, 15), st.floats(2, 15), st.floats(0, 3)), max_size=4
    ),
)
def test_maps_of_a_view_are_turned_back(number: int, size_wh: tuple[int, int], cells: list[Ellipse]) -> None:
    """The maps that the turned marks have, turned back, are those that the marks have: by the view's pixels alone."""
    marks = marked(size_wh, cells)
    view = tta.symmetries(size_wh, 8)[number]
    seen_marks = view.pixels(np.repeat(marks[..., None], 3, axis=2).astype(np.uint8))[..., 0].astype(np.int32)
    back = turned_back(told(charted(seen_marks)), view)
    assert back.shape == (4, *marks.shape)
    # A way is stored in half px, and rounded the other way where it points the other way.
    np.testing.assert_allclose(back, told(charted(marks)), atol=0.51 / 16)


@given(number=st.integers(0, 7), seed=st.integers(0, 999), size_wh=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_turning_back_goes_pixel_by_pixel(number: int, seed: int, size_wh: tuple[int, int]) -> None:
    """A slow twin: each pixel's values lie where the view puts the pixel, its arrow turned as the view turns arrows."""
    view = tta.symmetries(size_wh, 8)[number]
    maps = np.random.default_rng(seed).normal(size=(4, *view.wh[::-1])).astype(np.float32)
    back = turned_back(maps, view)
    for y in range(size_wh[1]):
        for x in range(size_wh[0]):
            to_x, to_y = view.matrix @ [x + 0.5, y + 0.5, 1] - 0.5
            values = maps[:, round(to_y), round(to_x)]
            np.testing.assert_array_equal(back[:2, y, x], values[:2])
            arrow = view.matrix[:, :2] @ [back[3, y, x], back[2, y, x]]
            np.testing.assert_allclose(arrow, [values[3], values[2]], rtol=1e-6)


def test_the_mean_over_views_is_that_of_each() -> None:
    """A network that knows no direction answers all views alike, so their mean reads as one of them."""
    marks = marked((90, 60), [(30, 30, 16, 10, 0.3), (65, 30, 12, 18, 0)])

    class Knowing(Reader):
        """Sees every view as it is charted, whichever way it is turned."""

        def run(self, outputs: Sequence[str], feeds: dict[str, Pixels]) -> list[NDArray[np.float32]]:
            (pixels,) = feeds["images"]
            numbers = pixels[..., 2].astype(np.int32)
            return [told(charted(numbers))[None]]

    pixels = np.repeat(marks[..., None], 3, axis=2).astype(np.uint8)
    one, all_ = (outliner(field_bundle(FOLDER, views=views), Knowing()).look(pixels) for views in (1, 8))
    overlap = masks.iou(one.masks, all_.masks, (60, 90))
    assert overlap.shape == (2, 2)
    assert overlap.max(axis=1).min() > 0.97


# -- cells in their boxes ---------------------------------------------------------------------------


def cell_outliner(views: int = 1, **more: int) -> CellOutliner:
    with pytest.MonkeyPatch.context() as patch:
        connect(patch, paint=Painter())
        return CellOutliner(cell_bundle(FOLDER, views, **more))


def painted_cell(size_wh: tuple[int, int], cell: Ellipse, nucleus: Ellipse | None) -> tuple[Pixels, list[bytes]]:
    """A field with one cell, and the codes of the cell and its nucleus."""
    pixels = np.full((*size_wh[::-1], 3), 240, np.uint8)
    shapes = [marked(size_wh, [one]) > 0 for one in (cell, nucleus) if one is not None]
    pixels[shapes[0]] = (120, 200, 240)
    if nucleus is not None:
        pixels[shapes[1]] = (120, 160, 120)
    return pixels, [masks.encode(shape) for shape in shapes]


@pytest.mark.parametrize("views", [1, 2, 4, 8])
@pytest.mark.parametrize("side_px", [64, 128])
def test_a_cell_comes_back_where_it_is(views: int, side_px: int) -> None:
    size_wh = (310, 240)
    for cell, nucleus in (
        ((150.3, 120.8, 46.0, 30.0, 0.6), (155.0, 124.0, 22.0, 15.0, 1.2)),
        ((20.0, 200.0, 40.0, 36.0, 2.0), (18.0, 205.0, 18.0, 15.0, 0.0)),  # beyond the border
    ):
        pixels, truth = painted_cell(size_wh, cell, nucleus)
        box = masks.bounds(truth[0], size_wh[::-1])
        (drawn,) = cell_outliner(views, side_px=side_px).look(pixels, box[None])
        assert list(drawn) == ["WBC", "nucleus"]
        for code, name in zip(truth, drawn, strict=True):
            assert masks.iou([code], [drawn[name]], size_wh[::-1])[0, 0] > (0.97 if side_px == 128 else 0.94)


def test_a_nucleus_lies_in_its_cell_and_a_neighbour_is_no_cell_of_this_box() -> None:
    pixels, (own,) = painted_cell((300, 200), (100, 100, 40, 34, 0), None)
    pixels[80:88, 60:140] = 240  # a slit
    pixels[120:126, 90:110] = 240  # and a hole in the larger part
    pixels[60:140, 145:150] = (120, 200, 240)  # a neighbour
    (drawn,) = cell_outliner().look(pixels, masks.bounds(own, (200, 300))[None])
    assert list(drawn) == ["WBC"]
    mask = masks.decode(drawn["WBC"], (200, 300))
    assert mask[122, 100]  # filled
    assert not mask[:82].any()
    assert not mask[:, 143:].any()


def test_what_is_drawn_outside_the_box_is_not_its_cell() -> None:
    pixels = np.full((200, 300, 3), 240, np.uint8)
    pixels[60:140, 145:160] = (120, 200, 240)
    assert cell_outliner().look(pixels, np.array([[60, 60, 140, 140]], np.float32)) == [{}]


# -- outlines laid over the cells of a field -----------------------------------------------------------

LABELS = LabelSet.of(["neutrophil", "erythrocyte", "nucleus"])


def found_cells(boxes: list[list[float]], names: list[str | None], counted: list[bool]) -> FieldCells:
    count = len(boxes)
    return FieldCells(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=names,
        scores=np.linspace(0.9, 0.6, count).astype(np.float32),
        probabilities=np.full((count, len(LABELS.leaves)), 0.3, np.float32),
        counted=np.array(counted, bool),
        refer=np.array([True] * count, bool),
        reasons={"unsure name": np.ones(count, bool)},
        attributes={"a.b": np.full((count, 2), 0.5, np.float32)},
    )


def test_parts_follow_behind_the_cells() -> None:
    pixels, truth = painted_cell((310, 240), (150, 120, 46, 30, 0.6), (155, 124, 22, 15, 1.2))
    near = [100.0, 85.0, 200.0, 160.0]
    before = found_cells(
        [near, near, near, [5, 5, 30, 30]], ["neutrophil", "erythrocyte", "neutrophil", None], [True, True, False, True]
    )
    after = with_outlines(before, cell_outliner(), pixels, LABELS)
    assert after.labels == [*before.labels, "nucleus"]
    assert after.masks is not None
    assert [code is not None for code in after.masks] == [True, False, False, False, True]
    codes = [code for code in after.masks if code is not None]
    assert np.diag(masks.iou(truth, codes, (240, 310))).min() > 0.97
    np.testing.assert_array_equal(after.boxes[[0, 4]], [masks.bounds(code, (240, 310)) for code in codes])
    np.testing.assert_array_equal(after.boxes[1:4], before.boxes[1:])
    np.testing.assert_array_equal(after.scores, [*before.scores, before.scores[0]])
    assert np.isnan(after.probabilities[4]).all()
    assert np.isnan(after.attributes["a.b"][4]).all()
    assert after.counted.tolist() == [True, True, False, True, True]
    assert after.refer.tolist() == [True] * 4 + [False]
    assert after.reasons["unsure name"].tolist() == [True] * 4 + [False]
    np.testing.assert_array_equal(before.boxes[0], near)  # nothing modifies its argument


def test_a_field_without_such_cells_stays_as_it_is() -> None:
    pixels = np.full((50, 60, 3), 240, np.uint8)
    for cells in (found_cells([], [], []), found_cells([[5, 5, 30, 30]], ["erythrocyte"], [True])):
        after = with_outlines(cells, cell_outliner(), pixels, LABELS)
        assert (after.labels, after.masks) == (cells.labels, [None] * len(cells.labels))
        np.testing.assert_array_equal(after.boxes, cells.boxes)


def test_cells_of_a_name_that_no_taxonomy_knows_are_those_of_that_name() -> None:
    with pytest.MonkeyPatch.context() as patch:
        connect(patch, paint=Painter())
        yeast = CellOutliner(cell_bundle(FOLDER, whole="yeast"))
    labels = LabelSet.of(["yeast", "debris of ours", "nucleus"])
    pixels, _ = painted_cell((310, 240), (150, 120, 46, 30, 0.6), None)
    near = [100.0, 85.0, 200.0, 160.0]
    after = with_outlines(found_cells([near, near], ["debris of ours", "yeast"], [True, True]), yeast, pixels, labels)
    assert after.masks is not None
    assert [code is not None for code in after.masks] == [False, True]


def test_a_differential_counts_no_parts() -> None:
    images = Images.of([{"image_id": "a", "width_px": 90, "height_px": 90}])
    boxes = [[0, 0, 10, 10], [2, 2, 6, 6], [20, 20, 40, 40]]
    cells = Cells.of(
        LABELS, image_id=["a"] * 3, boxes=boxes, label=["neutrophil", "nucleus", "erythrocyte"], source="bundle:x"
    )
    whole = without_parts(cells)
    assert whole.label_names() == ["neutrophil", "erythrocyte"]
    table = differential(cells, images)
    assert "nucleus" not in table["label"].to_list()
    assert (
        table.select("label", "count", "percent").rows()
        == differential(whole, images).select("label", "count", "percent").rows()
    )


def test_where_all_labels_are_parts_they_are_the_cells() -> None:
    cells = Cells.of(
        LabelSet.of(["nucleus"]), image_id=["a"], boxes=[[0, 0, 9, 9]], label=["nucleus"], source="bundle:x"
    )
    assert len(without_parts(cells)) == 1


def test_nuclei_do_not_stand_for_their_cells_where_blocks_are_joined() -> None:
    """A nucleus that fills most of its cell overlaps it as much as the cell found twice does."""
    size_wh = (300, 100)
    blocks = [Window(0, 0, 200, 100), Window(100, 0, 200, 100)]
    parts = []
    for window in blocks:
        cells = found_cells([[150, 40, 190, 80], [152, 42, 188, 78]], ["neutrophil", "nucleus"], [True, True])
        codes: list[bytes | None] = []
        for left, top, right, bottom in (cells.boxes - window.shift).astype(int):
            mask = np.zeros((100, 200), bool)
            mask[top:bottom, left:right] = True
            codes.append(masks.encode(mask))
        parts.append((window, replace(cells, boxes=cells.boxes - window.shift, masks=codes)))
    joined = joined_blocks(parts, size_wh, {"nucleus"})
    assert joined.labels == ["neutrophil", "nucleus"]
    assert joined.masks is not None
    for code, corners in zip(joined.masks, joined.boxes, strict=True):
        assert code is not None
        np.testing.assert_array_equal(masks.bounds(code, size_wh[::-1]), corners)
