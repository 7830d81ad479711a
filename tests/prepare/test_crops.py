"""What is cut; annotations at a detector's boxes: one to one, names kept, nothing lost; crops as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.formats import read
from cytolens.images import Images, load_image
from cytolens.labels import LabelSet
from cytolens.prepare.crops import CropFiles, CropSettings, labelled, region, relocated, write_crops
from cytolens.problems import DatasetError, FormatError, LabelError
from tests import reference
from tests.strategies import box_arrays

KINDS = LabelSet.of(["neutrophil", "lymphocyte", "Background"])
SEEN = LabelSet.of(["leukocyte"])


def dataset(cells: dict[str, list[tuple[list[float], str]]], size_wh: tuple[int, int] = (100, 80)) -> Dataset:
    images = Images.of([{"image_id": i, "width_px": size_wh[0], "height_px": size_wh[1]} for i in cells])
    rows = [(i, corners, name) for i, some in cells.items() for corners, name in some]
    table = Cells.of(
        KINDS,
        image_id=[i for i, _, _ in rows],
        boxes=np.array([corners for _, corners, _ in rows], np.float32).reshape(-1, 4),
        label=[name for _, _, name in rows],
        source="import:x",
    )
    return Dataset(images, table, "kinds")


def found(
    boxes: Mapping[str, Sequence[Sequence[float]]],
    score: Sequence[float] | None = None,
    counted: Sequence[bool] | bool = True,
) -> Cells:
    rows = [(i, corners) for i, some in boxes.items() for corners in some]
    return Cells.of(
        SEEN,
        image_id=[i for i, _ in rows],
        boxes=np.array([corners for _, corners in rows], np.float32).reshape(-1, 4),
        label=["leukocyte"] * len(rows),
        source="bundle:eyes@0123",
        score=[0.9] * len(rows) if score is None else score,
        counted=counted,
    )


def test_cells_move_to_where_they_were_found_and_keep_their_names() -> None:
    truth = dataset({"a": [([10, 10, 30, 30], "neutrophil"), ([60, 40, 80, 60], "lymphocyte")]})
    moved = relocated(truth, found({"a": [[61, 41, 82, 60], [9, 11, 30, 31], [0, 70, 5, 80]]}))
    assert moved.cells.boxes().tolist() == [[9, 11, 30, 31], [61, 41, 82, 60]]
    assert moved.cells.label_names() == ["neutrophil", "lymphocyte"]
    assert moved.cells.frame["cell_id"].to_list() == truth.cells.frame["cell_id"].to_list()
    assert moved.provenance[-1] == {"step": "relocate", "cells": 2, "moved": 2, "by": ["bundle:eyes@0123"]}
    assert truth.cells.boxes()[0].tolist() == [10, 10, 30, 30]  # the argument is not touched


def test_what_was_not_found_keeps_its_box() -> None:
    truth = dataset({"a": [([10, 10, 30, 30], "neutrophil")], "b": [([5, 5, 9, 9], "lymphocyte")]})
    moved = relocated(truth, found({"a": [[22, 22, 50, 50]]}))  # less than half overlaps
    assert moved.cells.boxes().tolist() == truth.cells.boxes().tolist()
    assert moved.provenance[-1]["moved"] == 0


def test_one_finding_is_the_place_of_one_cell() -> None:
    truth = dataset({"a": [([10, 10, 30, 30], "neutrophil"), ([12, 12, 32, 32], "lymphocyte")]})
    moved = relocated(truth, found({"a": [[11, 11, 30, 30]]}))
    assert moved.cells.boxes().tolist() == [[11, 11, 30, 30], [12, 12, 32, 32]]


def test_a_label_of_the_whole_image_takes_the_central_finding() -> None:
    truth = dataset({"a": [([0, 0, 100, 80], "neutrophil")]})
    off, near, corner = [30, 30, 58, 70], [40, 25, 70, 55], [0, 0, 20, 20]
    moved = relocated(truth, found({"a": [corner, off, near]}))
    assert moved.cells.boxes().tolist() == [near]  # its middle (55, 40) is 5 px from the image's, the other's 11.7


def test_a_label_of_the_whole_image_stays_where_no_finding_holds_the_middle() -> None:
    truth = dataset({"a": [([0, 0, 100, 80], "neutrophil")]})
    assert relocated(truth, found({"a": [[0, 0, 20, 20]]})).cells.boxes().tolist() == [[0, 0, 100, 80]]


def test_only_counted_findings_are_used() -> None:
    truth = dataset({"a": [([10, 10, 30, 30], "neutrophil")]})
    seen = found({"a": [[10, 10, 30, 31], [11, 11, 30, 30]]}, counted=[False, True])
    assert relocated(truth, seen).cells.boxes().tolist() == [[11, 11, 30, 30]]


def test_the_overlap_that_makes_a_pair_can_be_chosen() -> None:
    truth = dataset({"a": [([10, 10, 30, 30], "neutrophil")]})
    seen = found({"a": [[18, 10, 38, 30]]})  # IoU 12/28 = 0.43
    assert relocated(truth, seen).cells.boxes().tolist() == [[10, 10, 30, 30]]
    assert relocated(truth, seen, iou_min=0.4).cells.boxes().tolist() == [[18, 10, 38, 30]]


def test_findings_of_other_images_are_an_error() -> None:
    truth = dataset({"a": [([10, 10, 30, 30], "neutrophil")]})
    with pytest.raises(DatasetError, match="about other images than the dataset"):
        relocated(truth, found({"z": [[10, 10, 30, 30]]}))


@given(truth=box_arrays(least=1, most=6, grid_px=4), seen=box_arrays(least=1, most=6, grid_px=4))
def test_no_cell_is_lost_and_no_finding_is_used_twice(truth: np.ndarray, seen: np.ndarray) -> None:
    seen = np.unique(seen, axis=0)
    data = dataset({"a": [(corners, "neutrophil") for corners in truth.tolist()]}, (101, 81))
    moved = relocated(data, found({"a": seen.tolist()}))
    assert moved.cells.frame.drop("x_min", "y_min", "x_max", "y_max").equals(
        data.cells.frame.drop("x_min", "y_min", "x_max", "y_max")
    )
    changed = [
        tuple(new)
        for old, new in zip(truth.tolist(), moved.cells.boxes().tolist(), strict=True)
        if tuple(new) != tuple(old)
    ]
    assert len(set(changed)) == len(changed)
    assert set(changed) <= {tuple(corners) for corners in seen.tolist()}


def test_a_dataset_without_cells_stays_empty() -> None:
    truth = dataset({"a": []})
    assert len(relocated(truth, found({"a": [[1, 1, 2, 2]]})).cells) == 0


def test_the_central_finding_of_an_equal_pair_is_the_surer_one() -> None:
    truth = dataset({"a": [([0, 0, 100, 80], "neutrophil")]})
    seen = found({"a": [[40, 30, 60, 50], [35, 25, 65, 55]]}, score=[0.6, 0.8])
    assert relocated(truth, seen).cells.boxes().tolist() == [[35, 25, 65, 55]]


# -- what is cut ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "margin_px", "fit", "expected"),
    [
        ((30, 20, 50, 60), 16, "stretch", (14, 4, 66, 76)),  # CytologIA's crops
        ((5, 20, 50, 75), 16, "stretch", (0, 4, 66, 80)),  # clipped to 100 × 80, not wrapped around
        ((-9, -3, 20, 20), 16, "stretch", (0, 0, 36, 36)),
        ((30, 20, 50, 60), 16, "pad", (4, 4, 76, 76)),  # the longer side, 72 px, about the middle
        ((5, 20, 50, 75), 16, "pad", (-5, 4, 71, 80)),
        ((0, 0, 100, 80), 16, "pad", (0, -10, 100, 90)),
        ((0, 0, 100, 80), 16, "stretch", (0, 0, 100, 80)),
        ((30, 20, 50, 60), 0, "pad", (20, 20, 60, 60)),
        ((30, 20, 50, 60), None, "pad", (10, 10, 70, 70)),  # context 1.5
        ((30, 20, 50, 60), None, "stretch", (25, 10, 55, 70)),
        ((0, 0, 100, 80), None, "stretch", (0, 0, 100, 80)),
    ],
)
def test_what_is_cut_for_a_box(cell: tuple, margin_px: float | None, fit: str, expected: tuple) -> None:
    settings = CropSettings.model_validate({"context": 1.5, "margin_px": margin_px, "fit": fit})
    assert region(cell, (100, 80), settings).tolist() == list(expected)


@given(cells=box_arrays(least=1, most=1), margin_px=st.floats(0, 40))
def test_a_margin_never_leaves_the_image_and_a_square_holds_the_margin(cells: np.ndarray, margin_px: float) -> None:
    stretched = region(cells[0], (64, 64), CropSettings(margin_px=margin_px, fit="stretch"))
    for axis in (0, 1):
        assert stretched[axis] == pytest.approx(max(cells[0][axis] - margin_px, 0))
        assert stretched[axis + 2] == pytest.approx(min(cells[0][axis + 2] + margin_px, 64))
    square = region(cells[0], (64, 64), CropSettings(margin_px=margin_px))
    assert square[2] - square[0] == pytest.approx(square[3] - square[1])
    assert square[2] - square[0] == pytest.approx(max(stretched[2:] - stretched[:2]))
    assert (square[:2] <= stretched[:2] + 1e-9).all()
    assert (square[2:] >= stretched[2:] - 1e-9).all()


# -- names for findings ---------------------------------------------------------------------------

grid_boxes = box_arrays(most=4, side_px=32, grid_px=4)


@given(truth=grid_boxes, seen=grid_boxes, ignored=st.lists(st.booleans(), min_size=4, max_size=4))
def test_findings_are_named_one_to_one(truth: np.ndarray, seen: np.ndarray, ignored: list[bool]) -> None:
    """Against the slow twin, which tries every pairing."""
    ignored = ignored[: len(truth)]
    data = dataset({"a": [(corners, "neutrophil") for corners in truth.tolist()]}, (101, 81))
    data = Dataset(data.images, data.cells.with_columns(ignore=ignored))
    hidden = found({"a": [[90, 70, 95, 75]]}, counted=False).frame.with_columns(cell_id=pl.lit("hidden"))
    given_ = Cells(pl.concat([found({"a": seen.tolist()}).frame, hidden]), SEEN)
    result = labelled(data, given_, background="Background")
    names, step = result.cells.label_names(), result.provenance[-1]
    # every finding at most once, in order, at its own box
    order = [seen.tolist().index(corners) for corners in result.cells.boxes().tolist()]
    assert len(result.cells) <= len(seen)
    assert order == sorted(order) or len(np.unique(seen, axis=0)) < len(seen)
    # the ids of truth cells, each once; the pairs overlap enough, and together as much as can be
    ids = data.cells.frame["cell_id"].to_list()
    own = [ids.index(i) for i, name in zip(result.cells.frame["cell_id"], names, strict=True) if name == "neutrophil"]
    at = [corners for corners, name in zip(result.cells.boxes().tolist(), names, strict=True) if name == "neutrophil"]
    overlaps = [reference.iou(truth[t], corners) for t, corners in zip(own, at, strict=True)]
    assert len(set(own)) == len(own)
    assert not any(ignored[t] for t in own)
    assert all(overlap >= 0.5 for overlap in overlaps)
    scored = [corners for corners, skip in zip(truth.tolist(), ignored, strict=True) if not skip]
    table = [[reference.iou(corners, other) for other in scored] for corners in seen.tolist()]
    best = reference.best_total(table, 0.5) if len(seen) and scored else 0.0
    assert sum(overlaps) == pytest.approx(best)
    # what has no partner is background, unless half of it lies in an ignored cell
    regions = [corners for corners, skip in zip(truth.tolist(), ignored, strict=True) if skip]
    excused = sum(
        any(reference.intersection(corners, other) / reference.area(corners) >= 0.5 for other in regions)
        for corners in seen.tolist()
        if corners not in at
    )
    assert step["named"] == len(own)
    assert step["not_found"] == len(scored) - len(own)
    assert step["background"] == names.count("Background")
    assert step["named"] + step["background"] + step["left_out"] == len(seen)
    if len(np.unique(seen, axis=0)) == len(seen):
        assert step["left_out"] == excused


def test_a_finding_takes_name_id_and_place_of_its_cell() -> None:
    truth = dataset({"a": [([10, 10, 30, 30], "lymphocyte"), ([60, 40, 80, 60], "neutrophil")], "b": []})
    seen = found({"a": [[61, 41, 82, 60], [9, 11, 30, 31], [0, 70, 5, 80]], "b": [[1, 2, 3, 4]]})
    result = labelled(truth, seen, background="background")
    ids, by = truth.cells.frame["cell_id"], seen.frame["cell_id"]
    assert result.cells.label_names() == ["neutrophil", "lymphocyte", "Background", "Background"]
    assert result.cells.boxes().tolist() == seen.boxes().tolist()
    assert result.cells.frame["cell_id"].to_list() == [ids[1], ids[0], by[2], by[3]]
    assert result.cells.frame["source"].to_list() == ["import:x"] * 2 + ["bundle:eyes@0123"] * 2
    assert result.cells.frame["score"].is_null().all()
    assert result.cells.frame["counted"].all()
    assert result.images.frame["complete_for"].to_list() == [[], []]
    assert result.provenance[-1] == {
        "step": "label findings", "of": truth.fingerprint, "by": ["bundle:eyes@0123"], "iou_min": 0.5, "named": 2,
        "background": 2, "left_out": 0, "not_found": 0,
    }  # fmt: skip
    plain = labelled(truth, seen)
    assert plain.cells.label_names() == ["neutrophil", "lymphocyte"]
    assert plain.provenance[-1]["left_out"] == 2


def test_truths_that_were_not_found_are_counted() -> None:
    truth = dataset({"a": [([10, 10, 30, 30], "lymphocyte")], "b": [([60, 40, 80, 60], "neutrophil")]})
    result = labelled(truth, found({"a": [[24, 24, 50, 50]]}))
    assert len(result.cells) == 0
    assert result.provenance[-1]["not_found"] == 2


def test_nothing_is_called_background_where_the_annotation_may_lack_cells() -> None:
    truth = dataset({"a": [([10, 10, 30, 30], "neutrophil")], "b": [([0, 0, 100, 80], "lymphocyte")]})
    truth = Dataset(truth.images.with_columns(complete_for=pl.Series([["neutrophil"], None])), truth.cells)
    seen = found({"a": [[10, 10, 30, 30], [60, 40, 80, 60]], "b": [[40, 30, 60, 50], [0, 0, 20, 20]]})
    result = labelled(truth, seen, background="Background")
    assert result.cells.label_names() == ["neutrophil", "lymphocyte"]
    assert result.cells.boxes().tolist() == [[10, 10, 30, 30], [40, 30, 60, 50]]
    assert result.provenance[-1]["left_out"] == 2


def test_background_must_be_a_label_and_findings_of_these_images() -> None:
    truth = dataset({"a": [([10, 10, 30, 30], "neutrophil")]})
    with pytest.raises(LabelError, match="debris"):
        labelled(truth, found({"a": [[10, 10, 30, 30]]}), background="debris")
    with pytest.raises(DatasetError, match="about other images than the dataset"):
        labelled(truth, found({"z": [[10, 10, 30, 30]]}))


# -- files ----------------------------------------------------------------------------------------


def pictured(folder: Path, group: str | None = None) -> Dataset:
    """Two cells of one image of noise, one unnamed, one ignored and one outside it; and an image that is missing."""
    data = dataset({"s/a.png": [], "gone.png": []})
    pixels = np.random.default_rng(0).integers(0, 255, (80, 100, 3), np.uint8)
    (folder / "s").mkdir()
    Image.fromarray(pixels).save(folder / "s" / "a.png")
    paths = [str(folder / "s" / "a.png"), str(folder / "gone.png")]
    images = data.images.with_columns(path=paths, split=["train", "val"], group=[group, None])
    cells = Cells.of(
        KINDS,
        image_id=["s/a.png"] * 5 + ["gone.png"],
        boxes=[[30, 20, 50, 60], [5.5, 20, 50, 75], [1, 1, 9, 9], [2, 2, 9, 9], [200, 1, 220, 9], [1, 1, 5, 5]],
        label=["neutrophil", "lymphocyte", None, "neutrophil", "neutrophil", "neutrophil"],
        ignore=[False, False, False, True, False, False],
        source="import:x",
    )
    return Dataset(images, cells, "kinds")


def test_crops_are_the_pixels_of_the_image(tmp_path: Path) -> None:
    data = pictured(tmp_path)
    ids = data.cells.frame["cell_id"]
    problems = write_crops(data, tmp_path / "out", CropFiles(margin_px=16, fit="stretch"))
    assert [(p.kind, p.where) for p in problems] == [
        ("box-no-area", ids[4]),
        ("image-missing", str(tmp_path / "gone.png")),
    ]
    names = [f"neutrophil/{ids[0]}.png", f"lymphocyte/{ids[1]}.png"]
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert files == sorted([*names, "crops.csv"])
    pixels = load_image(tmp_path / "s" / "a.png").pixels
    assert (load_image(tmp_path / "out" / names[0]).pixels == pixels[4:76, 14:66]).all()
    assert (load_image(tmp_path / "out" / names[1]).pixels == pixels[4:80, 0:66]).all()
    assert (tmp_path / "out" / "crops.csv").read_text().splitlines() == [
        "image,label,split,group,cell_id,source_image,source_x_min,source_y_min,source_x_max,source_y_max",
        f"{names[0]},neutrophil,train,s/a.png,{ids[0]},s/a.png,30,20,50,60",
        f"{names[1]},lymphocyte,train,s/a.png,{ids[1]},s/a.png,5.5,20,50,75",
    ]


def test_crops_are_padded_with_the_edge_of_the_image(tmp_path: Path) -> None:
    data = pictured(tmp_path)
    write_crops(data, tmp_path / "out", CropFiles(margin_px=16))
    pixels = load_image(tmp_path / "s" / "a.png").pixels
    ids = data.cells.frame["cell_id"]
    shown = load_image(tmp_path / "out" / "neutrophil" / f"{ids[0]}.png").pixels
    assert (shown == pixels[4:76, 4:76]).all()
    shown = load_image(tmp_path / "out" / "lymphocyte" / f"{ids[1]}.png").pixels  # -5 to 71, 4 to 80
    assert shown.shape == (76, 76, 3)
    assert (shown[:, 5:] == pixels[4:80, :71]).all()
    assert (shown[:, :5] == pixels[4:80, :1]).all()


def test_crops_of_one_size_are_read_back_as_images_of_one_cell(tmp_path: Path) -> None:
    data = pictured(tmp_path, "patient 7")
    write_crops(data, tmp_path / "out", CropFiles(side_px=32))
    back = read(tmp_path / "out", "image_folder").dataset
    named = dict(zip(back.cells.frame["image_id"], back.cells.label_names(), strict=True))
    ids = data.cells.frame["cell_id"]
    assert named == {f"neutrophil/{ids[0]}.png": "neutrophil", f"lymphocyte/{ids[1]}.png": "lymphocyte"}
    assert back.cells.boxes().tolist() == [[0, 0, 32, 32]] * 2
    assert back.images.frame["group"].to_list() == ["patient 7"] * 2
    assert back.images.frame["split"].to_list() == ["train"] * 2


def test_crops_go_to_a_new_folder_and_labels_must_be_folder_names(tmp_path: Path) -> None:
    data = pictured(tmp_path)
    with pytest.raises(FormatError, match="not an empty folder"):
        write_crops(data, tmp_path)
    slashed = LabelSet.of(["a/b"])
    cells = Cells.of(slashed, image_id=["gone.png"], boxes=[[1, 1, 5, 5]], label=["a/b"], source="import:x")
    with pytest.raises(FormatError, match="cannot be the name of a folder"):
        write_crops(Dataset(data.images, cells), tmp_path / "out")
    assert not (tmp_path / "out").exists()
