from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cytolens.cells import Cells
from cytolens.dataset import FORMAT_VERSION, Dataset, merge
from cytolens.edits import Edits
from cytolens.images import Images, load_image
from cytolens.labels import LabelSet
from cytolens.problems import DatasetError, LabelError
from tests.strategies import datasets

BCCD = LabelSet.shipped("bccd")


def smears(folder: Path = Path("/nowhere"), name: str = "smears") -> Dataset:
    images = Images.of(
        [
            {"image_id": "a.png", "path": str(folder / "a.png"), "split": "train", "group": "p1", "sha256": "0" * 64},
            {"image_id": "b/ü.png", "path": str(folder / "b" / "ü.png"), "split": "val"},
            {"image_id": "c.png", "split": "train", "complete_for": ["WBC"]},
        ]
    )
    cells = Cells.of(
        BCCD,
        image_id=["a.png", "b/ü.png", "a.png"],
        boxes=[[0, 0, 4, 4], [1, 1, 3, 2.5], [2, 2, 5, 5]],
        label=["WBC", "RBC", "Platelets"],
        source="import:bccd",
    )
    return Dataset(images, cells, name, ({"step": "import"},), "MIT")


def same(one: Dataset, other: Dataset) -> bool:
    return (
        one.images.frame.equals(other.images.frame)
        and one.cells.frame.equals(other.cells.frame)
        and (one.labels, one.name, one.licence) == (other.labels, other.name, other.licence)
        and [dict(step) for step in one.provenance] == [dict(step) for step in other.provenance]
    )


# -- what belongs together ------------------------------------------------------------------------


def test_every_cell_lies_in_an_image_of_the_table() -> None:
    dataset = smears()
    with pytest.raises(DatasetError, match=r"cells refer to 1 images that are not in the table: a\.png"):
        replace(dataset, images=dataset.images.where(split="val"), cells=dataset.cells)
    with pytest.raises(DatasetError, match="1 images that are not in the table: None"):
        replace(dataset, cells=dataset.cells.with_columns(image_id=None))
    assert "3 images, 3 cells" in repr(dataset)
    assert dataset.labels is dataset.cells.labels


def test_every_cell_has_an_id_of_its_own() -> None:
    dataset = smears()
    with pytest.raises(DatasetError, match=r"cell_id must be unique; repeated: [0-9a-f]{12}-0000, .*joined twice"):
        replace(dataset, cells=dataset.cells.concat(dataset.cells))


@given(datasets(), st.data())
@settings(max_examples=40)
def test_a_part_has_its_images_and_their_cells(dataset: Dataset, data: st.DataObject) -> None:
    wanted = data.draw(st.sets(st.sampled_from(dataset.images.ids))) if dataset.images.ids else set()
    part = dataset.where(image_id=wanted)
    assert part.images.ids == [image_id for image_id in dataset.images.ids if image_id in wanted]
    assert part.cells.frame.equals(dataset.cells.where(image_id=wanted).frame)
    assert (part.name, part.licence, part.provenance) == (dataset.name, dataset.licence, dataset.provenance)


def test_parts_by_split() -> None:
    assert smears().where(split="train").images.ids == ["a.png", "c.png"]
    assert smears().where(split="val").cells.label_names() == ["RBC"]
    with pytest.raises(DatasetError, match='no column "spilt"'):
        smears().where(spilt="val")


def test_a_part_has_to_be_there() -> None:
    assert smears().part("train").images.ids == ["a.png", "c.png"]
    with pytest.raises(DatasetError, match='the dataset has no part "test"; its parts: train, val'):
        smears().part("test")
    with pytest.raises(DatasetError, match="its parts: none"):
        smears().where(image_id=[]).part("train")


def test_parts_by_a_condition() -> None:
    dataset = replace(smears(), images=smears().images.with_columns(width_px=[360, 575, None]))
    assert dataset.select("width_px < 500").images.ids == ["a.png"]
    assert dataset.select("width_px < 500").cells.label_names() == ["WBC", "Platelets"]
    assert dataset.select("split = 'train' AND width_px IS NULL").images.ids == ["c.png"]
    assert dataset.select("image_id LIKE 'b/%'").images.ids == ["b/ü.png"]


@pytest.mark.parametrize("condition", ["width < 500", "width_px <", "width_px", "", "DROP TABLE images"])
def test_a_condition_that_is_none_is_an_error_that_names_it(condition: str) -> None:
    with pytest.raises(DatasetError, match=r"is not a condition on images .* Columns: image_id, path") as caught:
        smears().select(condition)
    assert str(caught.value).startswith(f'"{condition}"')


# -- fingerprint ----------------------------------------------------------------------------------


@given(datasets())
@settings(max_examples=40)
def test_paths_names_and_order_do_not_change_the_fingerprint(dataset: Dataset) -> None:
    moved = dataset.images.with_columns(path="/elsewhere/x.png")
    images = Images(moved.frame.sort("image_id", descending=True))
    cells = Cells(dataset.cells.frame.sort("cell_id", descending=True), dataset.labels)
    turned = Dataset(images, cells, "x", (), "y")
    assert turned.fingerprint == dataset.fingerprint
    assert len(dataset.fingerprint) == 16


def changed_label(dataset: Dataset) -> Dataset:
    return replace(dataset, cells=dataset.cells.with_columns(label=["WBC", "RBC", "RBC"]))


def changed_box(dataset: Dataset) -> Dataset:
    boxes = dataset.cells.boxes()
    boxes[0, 0] = np.nextafter(boxes[0, 0], np.float32(1))
    return replace(dataset, cells=dataset.cells.with_boxes(boxes))


def changed_mask(dataset: Dataset) -> Dataset:
    return replace(dataset, cells=dataset.cells.with_masks([b"04", None, None]))


def changed_probability(dataset: Dataset) -> Dataset:
    return replace(dataset, cells=dataset.cells.with_columns(probabilities=[[0.5, 0.5, 0], None, None]))


def changed_split(dataset: Dataset) -> Dataset:
    return replace(dataset, images=dataset.images.with_columns(split=["val", "val", "train"]))


def changed_bytes(dataset: Dataset) -> Dataset:
    return replace(dataset, images=dataset.images.with_columns(sha256=["1" * 64, None, None]))


def changed_completeness(dataset: Dataset) -> Dataset:
    return replace(dataset, images=dataset.images.with_columns(complete_for=["WBC"]))


def without_an_image(dataset: Dataset) -> Dataset:
    return dataset.where(image_id=["a.png", "b/ü.png"])


def without_a_cell(dataset: Dataset) -> Dataset:
    return replace(dataset, cells=dataset.cells.where(label=["WBC", "RBC"]))


def other_alias(dataset: Dataset) -> Dataset:
    labels = LabelSet.from_dict(BCCD.to_dict() | {"aliases": {"blob": "WBC"}})
    return replace(dataset, cells=Cells(dataset.cells.frame, labels))


CHANGES = [
    changed_label, changed_box, changed_mask, changed_probability, changed_split, changed_bytes, changed_completeness,
    without_an_image, without_a_cell, other_alias,
]  # fmt: skip


def test_every_change_of_content_changes_the_fingerprint() -> None:
    prints = [smears().fingerprint, *(change(smears()).fingerprint for change in CHANGES)]
    assert len(set(prints)) == 1 + len(CHANGES)
    assert smears().fingerprint == smears().fingerprint


# -- reviewing and relabelling --------------------------------------------------------------------


def test_a_review_makes_a_new_dataset_and_is_written_down() -> None:
    dataset = smears()
    first = dataset.cells.frame["cell_id"][0]
    reviewed = dataset.apply(Edits.empty().note(dataset.cells, first, "label", "RBC", who="ab"))
    assert reviewed.cells.label_names() == ["RBC", "RBC", "Platelets"]
    assert reviewed.provenance == ({"step": "import"}, {"step": "edits", "count": 1})
    assert dataset.cells.label_names() == ["WBC", "RBC", "Platelets"]
    assert reviewed.fingerprint != dataset.fingerprint


def test_relabelling_takes_completeness_along() -> None:
    dataset = smears().relabel(LabelSet.shipped("txl_pbc"))
    assert dataset.cells.label_names() == ["WBC", "RBC", "Platelet"]
    assert dataset.images.frame["complete_for"].to_list() == [None, None, ["WBC"]]


def test_nothing_is_complete_for_a_label_that_was_not_looked_for() -> None:
    wider = LabelSet.of(["leukocyte", "lymphocyte", "erythrocyte", "platelet"])
    dataset = smears().relabel(wider)
    some = ["leukocyte", "erythrocyte", "platelet"]  # lymphocytes are among the cells, but nobody named them
    assert dataset.images.frame["complete_for"].to_list() == [some, some, ["leukocyte"]]


@pytest.mark.parametrize(
    ("complete_for", "expected"),
    [
        (["band neutrophil"], []),  # there may be segmented ones without a box
        (["band neutrophil", "segmented neutrophil", "neutrophil"], ["neutrophil"]),
        (["WBC"], None),  # a wider word takes in its kinds: everything is complete
        (["lymphocyte"], ["lymphocyte"]),
        ([], []),
        (None, None),
    ],
)
def test_a_wider_label_is_complete_where_all_that_becomes_it_is(
    complete_for: list[str] | None, expected: list[str] | None
) -> None:
    fine = LabelSet.of(["WBC", "neutrophil", "band neutrophil", "segmented neutrophil", "lymphocyte"])
    images = Images.of([{"image_id": "a", "complete_for": complete_for}])
    coarse = Dataset(images, Cells.empty(fine)).relabel(LabelSet.of(["neutrophil", "lymphocyte"]), missing="null")
    assert coarse.images.frame["complete_for"].to_list() == [expected]


def test_relabelling_without_counterpart_is_an_error() -> None:
    with pytest.raises(LabelError, match="no counterpart for RBC, WBC"):
        smears().relabel(LabelSet.shipped("pbc"))
    assert smears().relabel(LabelSet.shipped("pbc"), missing="drop").cells.label_names() == ["PLATELET"]


# -- on disk --------------------------------------------------------------------------------------


@given(dataset=datasets())
@settings(max_examples=40)
def test_a_dataset_comes_back_from_disk(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> None:
    folder = tmp_path_factory.getbasetemp() / "färbung [2] *"
    dataset.write(folder)
    again = Dataset.read(folder)
    assert same(again, dataset)
    assert again.fingerprint == dataset.fingerprint


def test_the_folder_holds_what_the_design_says(tmp_path: Path) -> None:
    smears().write(tmp_path / "new" / "set")
    folder = tmp_path / "new" / "set"
    assert sorted(path.name for path in folder.iterdir()) == ["cells.parquet", "dataset.json", "images.parquet"]
    description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert description["format_version"] == FORMAT_VERSION == 1
    assert description["fingerprint"] == smears().fingerprint
    assert (description["images"], description["cells"], description["licence"]) == (3, 3, "MIT")
    assert LabelSet.from_dict(description["labels"]) == BCCD


def picture(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (grey, grey, grey)).save(path)


@pytest.mark.parametrize("place", ["beside", "inside"])
def test_a_folder_that_moves_with_its_images_still_finds_them(place: str, tmp_path: Path) -> None:
    root = tmp_path / "old place"
    images, folder = (root / "images", root / "set") if place == "beside" else (root / "set" / "images", root / "set")
    picture(images / "a.png", 10)
    picture(images / "b" / "ü.png", 20)
    smears(images).write(folder)
    (tmp_path / "new place" / "deeper").mkdir(parents=True)
    shutil.move(root, tmp_path / "new place" / "deeper" / "ö")
    moved = tmp_path / "new place" / "deeper" / "ö"
    again = Dataset.read(moved / "set")
    paths = again.images.frame["path"].to_list()
    assert [load_image(path).pixels[0, 0, 0] for path in paths[:2]] == [10, 20]
    assert paths[0] == str(moved / images.relative_to(root) / "a.png")
    assert all(Path(path).is_absolute() for path in paths[:2])
    assert paths[2] is None
    assert again.fingerprint == smears().fingerprint


def test_a_dataset_that_moves_alone_still_finds_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "images" / "a.png", 10)
    smears(tmp_path / "images").write(tmp_path / "one")
    Dataset.read(tmp_path / "one").write(tmp_path / "other" / "place")
    monkeypatch.chdir(tmp_path / "other")
    again = Dataset.read("place")
    assert again.images.row("a.png")["path"] == str(tmp_path / "images" / "a.png")


def test_writing_again_replaces(tmp_path: Path) -> None:
    smears().write(tmp_path)
    smears().where(split="val").write(tmp_path)
    assert Dataset.read(tmp_path).images.ids == ["b/ü.png"]


@pytest.mark.parametrize("killed_at", ["images.parquet", "cells.parquet", "dataset.json"])
@pytest.mark.parametrize("there_before", [False, True])
def test_a_killed_write_leaves_no_dataset(
    killed_at: str, there_before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there_before:
        smears().write(tmp_path)
    whole = Path.replace

    def killed(self: Path, target: Any) -> Path:
        if Path(target).name == killed_at:
            raise KeyboardInterrupt
        return whole(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        smears().where(split="val").write(tmp_path)
    assert not (tmp_path / "dataset.json").exists()
    assert list(tmp_path.glob(".*")) == []
    with pytest.raises(DatasetError, match=r"is not a dataset \(no dataset\.json\)"):
        Dataset.read(tmp_path)


def no_description(folder: Path) -> None:
    (folder / "dataset.json").unlink()


def cut_description(folder: Path) -> None:
    file = folder / "dataset.json"
    file.write_bytes(file.read_bytes()[:40])


def description_that_is_a_list(folder: Path) -> None:
    (folder / "dataset.json").write_text("[]")


def later_version(folder: Path) -> None:
    file = folder / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"format_version": 2}))


def no_images(folder: Path) -> None:
    (folder / "images.parquet").unlink()


def cut_images(folder: Path) -> None:
    file = folder / "images.parquet"
    file.write_bytes(file.read_bytes()[:-9])


def images_without_paths(folder: Path) -> None:
    pl.DataFrame({"image_id": ["a"]}).write_parquet(folder / "images.parquet")


def no_cells(folder: Path) -> None:
    (folder / "cells.parquet").unlink()


def cells_of_other_images(folder: Path) -> None:
    smears().where(split="val").images.frame.write_parquet(folder / "images.parquet")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_description, r"is not a dataset \(no dataset\.json\)\. Make one: cytolens import"),
        (cut_description, r"dataset\.json: damaged .*; import the data again"),
        (description_that_is_a_list, r"dataset\.json: damaged"),
        (later_version, r"format version 2; this program reads version 1\. Use the program that wrote it"),
        (no_images, r"images\.parquet: cannot be read"),
        (cut_images, r"images\.parquet: cannot be read"),
        (images_without_paths, r"images\.parquet: cannot be read"),
        (no_cells, r"cells\.parquet: there is no such file"),
        (cells_of_other_images, "cells refer to 1 images that are not in the table"),
    ],
)
def test_a_damaged_folder_says_what_is_wrong(spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    smears().write(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DatasetError, match=message):
        Dataset.read(tmp_path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="--out absent"):
        Dataset.read(tmp_path / "absent")


# -- merging --------------------------------------------------------------------------------------


def pbc() -> Dataset:
    labels = LabelSet.shipped("pbc")
    cells = Cells.of(labels, image_id=["a.png"], boxes=[[0, 0, 9, 9]], label=["LY"], source="import:pbc")
    return Dataset(Images.of([{"image_id": "a.png"}]), cells, "pbc", licence="CC BY 4.0")


def test_merging_keeps_images_apart_and_speaks_one_language() -> None:
    coarse = LabelSet.of(["leukocyte", "erythrocyte", "platelet"])
    merged = merge([smears(), pbc()], "both", coarse)
    assert merged.images.ids == ["smears/a.png", "smears/b/ü.png", "smears/c.png", "pbc/a.png"]
    assert merged.cells.label_names() == ["leukocyte", "erythrocyte", "platelet", "leukocyte"]
    assert merged.cells.frame["image_id"].to_list() == ["smears/a.png", "smears/b/ü.png", "smears/a.png", "pbc/a.png"]
    assert merged.cells.frame["cell_id"].to_list() == [
        *smears().cells.frame["cell_id"].to_list(),
        *pbc().cells.frame["cell_id"].to_list(),
    ], "ids are kept for life"
    assert (merged.name, merged.licence) == ("both", "CC BY 4.0; MIT")
    assert [step["name"] for step in merged.provenance[0]["from"]] == ["smears", "pbc"]
    assert merged.images.frame["complete_for"].to_list() == [None, None, ["leukocyte"], ["leukocyte", "platelet"]]


def test_merging_asks_for_names_and_words() -> None:
    with pytest.raises(DatasetError, match=r"need names of their own; got \['smears', 'smears'\]"):
        merge([smears(), smears()], "both", BCCD)
    with pytest.raises(LabelError, match="no counterpart for"):
        merge([smears(), pbc()], "both", LabelSet.shipped("pbc"))
    with pytest.raises(DatasetError, match="cell_id must be unique"):
        merge([smears(), smears(name="copy")], "both", BCCD)


def test_merging_nothing_is_an_empty_dataset() -> None:
    merged = merge([], "none", BCCD)
    assert (len(merged.images), len(merged.cells), merged.labels) == (0, 0, BCCD)
