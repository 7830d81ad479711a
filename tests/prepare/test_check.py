"""What a check says of images, splits, labels and sizes: each fault planted, and nothing in clean data."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import AttributeSchema, LabelSet
from cytolens.prepare.check import KINDS, MENDED, CheckSettings, check, findings
from cytolens.prepare.check_sizes import robust_z
from cytolens.prepare.synthetic import SyntheticSettings, write_synthetic
from cytolens.problems import Problem
from tests.prepare.faulty import dataset_of, faulty_datasets
from tests.strategies import datasets

TABLES = CheckSettings(images=False)
_BOX = (10.0, 10.0, 40.0, 40.0)


def told(dataset: Dataset, kind: str, settings: CheckSettings = TABLES) -> list[Problem]:
    return check(dataset, settings).of(kind)


# -- in general -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smears(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    settings = SyntheticSettings(width_px=480, height_px=360, white_cells=(3, 5))
    return write_synthetic(tmp_path_factory.mktemp("check") / "smears", 4, 11, settings, fields_per_slide=1)


def test_nothing_is_found_in_clean_data(smears: Dataset) -> None:
    shares = {label for label in smears.cells.label_names() if label is not None}
    labels = LabelSet.of(sorted(shares), smears.labels.attributes)
    clean = smears.relabel(labels)
    assert list(check(clean, CheckSettings(label_cells_min=0))) == []


def test_the_labels_of_which_there_are_few_are_only_noted(smears: Dataset) -> None:
    problems = check(smears)
    assert set(problems.counts()) == {"label-unused", "label-rare"}
    assert problems.worst == "note"


@given(datasets() | faulty_datasets())
def test_every_finding_says_where_what_and_what_to_do(dataset: Dataset) -> None:
    ids, cells = set(dataset.images.ids), dict(dataset.cells.frame.select("cell_id", "image_id").iter_rows())
    for one in findings(dataset, TABLES):
        problem = one.problem
        assert problem.kind in KINDS
        assert all((problem.where, problem.what, problem.fix))
        assert problem.what.rstrip().endswith(".")
        assert one.image_id is None or one.image_id in ids
        assert all(cells[cell_id] == one.image_id for cell_id in one.cell_ids)
        assert one.cell_ids == () or one.cell_ids[0] in problem.where
        assert ("cytolens repair" in problem.fix) == (problem.kind in MENDED)


def test_an_empty_dataset_has_no_faults() -> None:
    nothing = Dataset(Images.empty(), Cells.empty(LabelSet(())))
    assert len(check(nothing)) == 0


# -- images -----------------------------------------------------------------------------------------


def picture(path: Path, size_wh: tuple[int, int] = (100, 80), **options: Any) -> dict[str, Any]:
    """A file, and its row as an import would write it."""
    Image.new("RGB", size_wh, "white").save(path, **options)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {
        "image_id": path.name, "path": str(path), "width_px": size_wh[0], "height_px": size_wh[1], "sha256": digest,
    }  # fmt: skip


def of_images(rows: list[dict[str, Any]]) -> Dataset:
    return dataset_of([(row["image_id"], _BOX, "RBC") for row in rows], rows)


def test_files_that_are_gone_empty_or_damaged_are_told(tmp_path: Path) -> None:
    names = ("fine.png", "gone.png", "empty.png", "cut.png", "text.png")
    rows = [picture(tmp_path / name, (100 + i, 80)) for i, name in enumerate(names)]
    (tmp_path / "gone.png").unlink()
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((tmp_path / "fine.png").read_bytes()[:-30])
    (tmp_path / "text.png").write_text("no picture")
    rows.append({"image_id": "never.png"})
    problems = check(of_images(rows))
    wrong = {one.where: (one.kind, one.severity) for one in problems if one.kind.startswith("image")}
    assert wrong == {
        "gone.png": ("image-missing", "error"),
        "empty.png": ("image-empty", "error"),
        "cut.png": ("image-damaged", "error"),
        "text.png": ("image-not-an-image", "error"),
        "faulty": ("image-without-file", "note"),
    }
    assert str(tmp_path / "gone.png") in problems.of("image-missing")[0].what


def test_without_images_no_file_is_touched(tmp_path: Path) -> None:
    row = picture(tmp_path / "a.png") | {"path": str(tmp_path / "elsewhere.png"), "width_px": 7}
    assert not [one for one in check(of_images([row]), TABLES) if one.kind.startswith(("image", "size"))]
    assert told(of_images([row]), "image-missing", CheckSettings())


def test_too_large_an_image_is_not_decoded(tmp_path: Path) -> None:
    dataset = of_images([picture(tmp_path / "a.png")])
    assert told(dataset, "image-too-large", CheckSettings(max_pixels=7_999))
    assert not told(dataset, "image-too-large", CheckSettings(max_pixels=8_000))


def test_a_file_that_was_exchanged_is_told(tmp_path: Path) -> None:
    dataset = of_images([picture(tmp_path / "a.png"), picture(tmp_path / "b.png", (100, 81))])
    assert not told(dataset, "image-changed", CheckSettings())
    picture(tmp_path / "a.png", (100, 80), compress_level=0)
    (one,) = told(dataset, "image-changed", CheckSettings())
    assert (one.where, one.severity) == ("a.png", "error")


def test_a_size_that_is_wrong_in_the_table_is_told(tmp_path: Path) -> None:
    row = picture(tmp_path / "a.png")
    (one,) = told(of_images([row | {"width_px": 90}]), "size-mismatch", CheckSettings())
    assert one.what == "the table says 90 × 80 px, the file is 100 × 80 px."
    (one,) = told(of_images([row | {"width_px": None, "height_px": None}]), "size-mismatch", CheckSettings())
    assert "the table says nothing" in one.what
    (one,) = told(of_images([row | {"width_px": 80, "height_px": 100}]), "size-other-version", CheckSettings())
    assert one.severity == "error"


def test_boxes_are_held_against_the_size_of_the_file_where_the_table_is_wrong(tmp_path: Path) -> None:
    row = picture(tmp_path / "a.png") | {"width_px": 30}
    rows = [("a.png", (50.0, 10.0, 70.0, 40.0), "RBC"), ("a.png", (80.0, 10.0, 103.0, 40.0), "RBC")]
    problems = check(dataset_of(rows, [row]))
    assert len(problems.of("size-mismatch")) == 1
    (one,) = problems.of("box-outside-image")
    assert "reaches 3 px outside of the 100 × 80 px image" in one.what
    assert len(check(dataset_of(rows, [row]), TABLES).of("box-outside-image")) == 2  # nobody knows better


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_picture_turned_by_its_exif_orientation_is_told(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    row = picture(tmp_path / "a.jpg", (100, 80), exif=exif)
    if orientation == 6:  # a quarter turn: the import applies it
        row |= {"width_px": 80, "height_px": 100}
    problems = check(of_images([row]))
    assert len(problems.of("image-turned")) == (orientation != 1)
    assert not problems.of("size-mismatch") + problems.of("size-other-version")


def test_progress_is_told(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    rows = [picture(tmp_path / name) for name in ("a.png", "b.png")]
    findings(of_images([*rows, {"image_id": "c.png"}]), CheckSettings(threads=1), lambda *now: heard.append(now))
    assert heard == [(1, 2), (2, 2)]


# -- splits -----------------------------------------------------------------------------------------


def image(name: str, **columns: Any) -> dict[str, Any]:
    return {"image_id": name, "width_px": 100, "height_px": 80} | columns


@pytest.mark.parametrize(("column", "values"), [("split", ("train", "val")), ("fold", (0, 1))])
def test_a_group_on_both_sides_leaks(column: str, values: tuple[Any, Any]) -> None:
    rows = [
        image("a.png", group="patient 1", **{column: values[0]}),
        image("b.png", group="patient 1", **{column: values[1]}),
        image("c.png", group="patient 2", **{column: values[1]}),
        image("d.png", group="patient 2"),
        image("e.png", **{column: values[0]}),
    ]
    (one,) = told(of_images(rows), "group-straddles")
    assert (one.where, one.severity) == ('group "patient 1"', "error")
    assert f"{values[0]}, {values[1]}" in one.what


def test_one_file_in_two_splits_leaks_and_in_one_is_repeated() -> None:
    rows = [
        image("a.png", sha256="1" * 64, split="train"),
        image("b.png", sha256="1" * 64, split="val"),
        image("c.png", sha256="2" * 64, split="val"),
        image("d.png", sha256="2" * 64, split="val"),
        image("e.png", split="val"),
        image("f.png", split="train"),
    ]
    dataset = dataset_of(
        [(row["image_id"], _BOX, "WBC" if row["image_id"] == "d.png" else "RBC") for row in rows], rows
    )
    (leak,) = told(dataset, "image-in-several-splits")
    assert leak.severity == "error"
    assert (leak.where, leak.what) == ("a.png", "is the same file as b.png, in several splits: train, val.")
    (again,) = told(dataset, "image-repeated")
    assert (again.where, again.what) == (
        "c.png",
        "is the same file as d.png. They are annotated differently: 1 RBC; 1 WBC.",
    )


def test_images_without_cells_are_noted() -> None:
    rows = [image("a.png"), image("b.png"), image("c.png", complete_for=[])]
    empty = told(dataset_of([("a.png", _BOX, "RBC")], rows), "image-without-cells")
    assert [(one.where, one.severity) for one in empty] == [("b.png", "note"), ("c.png", "note")]
    assert "nobody looked" in empty[1].what
    assert "nobody looked" not in empty[0].what


# -- labels -----------------------------------------------------------------------------------------


def labelled(names: list[str], used: list[str | None], **columns: Any) -> Dataset:
    """A dataset whose cells have these labels; the label set is exactly `names`."""
    boxes = [(10.0 * i, 10.0, 10.0 * i + 9, 20.0) for i in range(len(used))]
    rows = [("a.png", box, label) for box, label in zip(boxes, used, strict=True)]
    wide = [{"image_id": "a.png", "width_px": 2_000, "height_px": 80}]
    return dataset_of(rows, wide, LabelSet.of(names), **columns)


def test_a_misspelt_label_is_asked_about() -> None:
    dataset = labelled(["neutrophill", "lymphocyte"], ["neutrophill", "lymphocyte"])
    (one,) = told(dataset, "label-typo")
    assert (one.where, one.severity) == ("neutrophill", "warning")
    assert 'Did you mean "neutrophil"?' in one.fix


def test_of_two_unknown_spellings_the_rarer_is_the_slip() -> None:
    dataset = labelled(["Lysisform", "Lysisfrom"], ["Lysisform", "Lysisform", "Lysisfrom"])
    (one,) = told(dataset, "label-typo")
    assert one.where == "Lysisfrom"
    assert "Lysisform" in one.fix


def test_names_of_ones_own_and_codes_are_no_misspellings() -> None:
    dataset = labelled(["my own kind", "QX1", "QX2"], ["my own kind", "QX1", "QX2"])
    problems = check(dataset, TABLES)
    assert problems.of("label-typo") == []
    assert [one.severity for one in problems.of("label-unfamiliar")] == ["note"] * 3


@pytest.mark.parametrize("name", ["cytologia", "pbc", "bccd", "txl_pbc", "leukemia_attri", "celluscan"])
def test_published_label_sets_are_spelt_right(name: str) -> None:
    labels = LabelSet.shipped(name)
    dataset = labelled(list(labels.names), list(labels.names))
    kinds = set(check(dataset, TABLES).counts())
    assert kinds <= {"label-rare", "label-synonyms"}


def test_background_in_front_is_told() -> None:
    (one,) = told(labelled(["background", "WBC"], ["WBC"]), "label-background")
    assert "0 cells are called so" in one.what
    assert told(labelled(["__Background__", "WBC"], ["WBC"]), "label-background")
    assert not told(labelled(["WBC", "background"], ["WBC"]), "label-background")
    assert not told(labelled(["None", "WBC"], ["WBC"]), "label-background")  # a kind of cell in LeukemiaAttri


def test_numbers_for_names_are_told() -> None:
    (one,) = told(labelled(["1", "2"], ["1", "2"]), "label-number")
    assert "counted from 1" in one.what
    (one,) = told(labelled(["0", "1", "WBC"], ["0", "1", "WBC"]), "label-number")
    assert "counted from 1" not in one.what


def test_class_numbers_that_start_at_one_are_suspected() -> None:
    names = ["RBC", "WBC", "Platelets"]
    (one,) = told(labelled(names, ["WBC", "Platelets", None]), "label-shift")
    assert one.where == "RBC"
    assert not told(labelled(names, ["WBC", "Platelets"]), "label-shift")
    assert not told(labelled(names, ["RBC", "Platelets", None]), "label-shift")


def test_labels_and_cells_are_counted() -> None:
    used = ["neutrophil"] * 12 + ["lymphocyte"] * 3 + [None]
    problems = check(labelled(["leukocyte", "neutrophil", "lymphocyte", "monocyte"], list(used)), TABLES)
    assert [one.where for one in problems.of("label-unused")] == ["monocyte"]  # leukocyte has kinds that are used
    assert [one.where for one in problems.of("label-rare")] == ["lymphocyte"]
    assert "1 of 16 cells" in problems.of("label-missing")[0].what
    settings = CheckSettings(images=False, label_cells_min=3)
    assert not told(labelled(["lymphocyte"], ["lymphocyte"] * 3), "label-rare", settings)


def test_two_names_for_one_cell_are_noted() -> None:
    (one,) = told(labelled(["SNE", "NGS", "LY"], ["SNE", "NGS", "LY"]), "label-synonyms")
    assert "SNE, NGS" in one.what
    assert "segmented neutrophil" in one.what


def test_attributes_are_held_against_their_schema() -> None:
    attributes = (
        AttributeSchema("wbcatt", "cell_size", ("small", "bigg")),
        AttributeSchema("wbcatt", "cell_sise", ("small", "big")),
        AttributeSchema("mine", "mood", ("good", "bad")),
    )
    labels = LabelSet(("WBC",), attributes=attributes)
    values = {"wbcatt.cell_size": ["bigg", "small"]}
    dataset = dataset_of([("a.png", _BOX, "WBC"), ("b.png", _BOX, "WBC")], labels=labels, attributes=values)
    value, name = told(dataset, "attribute-unfamiliar")
    assert (value.where, value.fix) == ("wbcatt.cell_size", 'Did you mean "big"?')
    assert '1 cells have the value "bigg"' in value.what
    assert (name.where, name.fix) == ("wbcatt.cell_sise", 'Did you mean "cell_size"?')


# -- sizes ------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_the_robust_z_score_is_that_of_its_definition(values: list[float]) -> None:
    middle = float(np.median(values))
    spread = 1.4826 * float(np.median([abs(value - middle) for value in values]))
    expected = [(value - middle) / max(spread, 0.06) for value in values]
    table = np.array(values)
    assert robust_z(table, table) == pytest.approx(np.array(expected))


def crowd(sides: list[tuple[float, float]], **columns: Any) -> Dataset:
    """Cells of these widths and heights, far from each other and from the border."""
    rows = [("a.png", (50 + 300 * i, 50, 50 + 300 * i + w, 50 + h), "WBC") for i, (w, h) in enumerate(sides)]
    wide = [{"image_id": "a.png", "width_px": 100_000, "height_px": 1_000}]
    return dataset_of(rows, wide, **columns)


def test_a_box_of_another_size_than_its_label_stands_out() -> None:
    generator = np.random.default_rng(0)
    usual = [(float(w), float(h)) for w, h in generator.normal(100, 5, (30, 2))]
    dataset = crowd([*usual, (250.0, 250.0), (20.0, 20.0)])
    large, small = told(dataset, "box-odd-size")
    ids = dataset.cells.frame["cell_id"]
    assert (large.where, small.where) == (f"a.png, cell {ids[30]}", f"a.png, cell {ids[31]}")
    assert {large.severity, small.severity} == {"note"}
    assert "usual are about 100 × 100 px" in large.what or "usual are about 99 × 99 px" in large.what
    assert not told(crowd([*usual[:18], (250.0, 250.0)]), "box-odd-size")  # too few to know what is usual
    ignored = [False] * 30 + [True] * 2
    assert not told(crowd([*usual, (250.0, 250.0), (20.0, 20.0)], ignore=ignored), "box-odd-size")


def test_equal_sizes_leave_room_for_slight_differences() -> None:
    assert not told(crowd([(100.0, 100.0)] * 25 + [(105.0, 104.0)]), "box-odd-size")
    assert len(told(crowd([(100.0, 100.0)] * 25 + [(150.0, 140.0)]), "box-odd-size")) == 1


def test_cells_cut_by_the_border_may_be_small_and_long() -> None:
    image = [{"image_id": "a.png", "width_px": 10_000, "height_px": 1_000}]
    rows = [("a.png", (50.0 + 300 * i, 50.0, 150.0 + 300 * i, 150.0), "WBC") for i in range(25)]
    cut = ("a.png", (9_990.0, 500.0, 10_000.0, 600.0), "WBC")
    free = ("a.png", (9_000.0, 500.0, 9_010.0, 600.0), "WBC")
    assert not [one for one in check(dataset_of([*rows, cut], image), TABLES) if "odd" in one.kind]
    odd = check(dataset_of([*rows, free], image), TABLES).counts()
    assert (odd["box-odd-size"], odd["box-odd-shape"]) == (1, 1)
    unknown = [{"image_id": "a.png"}]  # where the border is unknown, any cell may be cut
    assert not [one for one in check(dataset_of([*rows, free], unknown), TABLES) if "odd" in one.kind]


def test_a_long_box_stands_out() -> None:
    settings = CheckSettings(images=False, aspect_max=3)
    dataset = crowd([(100.0, 30.0), (100.0, 35.0)])
    (one,) = told(dataset, "box-odd-shape", settings)
    assert "3.3 times" in one.what
