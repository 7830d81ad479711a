from __future__ import annotations

import re
from pathlib import Path

import pytest

from cytolens import formats
from cytolens.dataset import Dataset
from cytolens.formats import Imported, ReadOptions, WriteOptions
from cytolens.problems import FormatError
from tests.contracts import FormatContract, save_picture, small_dataset


class TestImageFolder(FormatContract):
    format = "image_folder"
    annotation_suffixes = (".csv",)

    def can_copy(self, data: Dataset) -> bool:
        return all(re.fullmatch(r'[^."/][^"/]*', name) for name in data.labels.names)


def read(source: Path, **options: object) -> Imported:
    return formats.read(source, "image_folder", ReadOptions.model_validate(options))


def pictures(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        save_picture(folder / name, (20 + number, 10), number)
    return folder


def seen(data: Dataset) -> dict[str, tuple[str | None, str | None]]:
    """Image id → label and split."""
    label_of = dict(zip(data.cells.frame["image_id"], data.cells.label_names(), strict=True))
    return {i: (label_of.get(i), split) for i, split in data.images.frame.select("image_id", "split").iter_rows()}


def test_a_folder_per_class(tmp_path: Path) -> None:
    pictures(tmp_path, "RBC/a.png", "WBC/patient 1/b.png", "c.png")
    back = read(tmp_path)
    assert seen(back.dataset) == {
        "RBC/a.png": ("RBC", None),
        "WBC/patient 1/b.png": ("WBC", None),
        "c.png": (None, None),
    }
    assert back.dataset.cells.boxes().tolist() == [[0, 0, 20, 10], [0, 0, 21, 10]]
    assert back.dataset.labels.names == ("WBC", "RBC")  # the order of the taxonomy
    assert back.dataset.images.frame["complete_for"].to_list() == [None, None, []]


def test_a_folder_per_split_and_class(tmp_path: Path) -> None:
    pictures(tmp_path, "train/RBC/a.png", "Test/RBC/a.png", "train/b.png")
    assert seen(read(tmp_path).dataset) == {
        "Test/RBC/a.png": ("RBC", "Test"),
        "train/RBC/a.png": ("RBC", "train"),
        "train/b.png": (None, "train"),
    }
    assert seen(read(tmp_path, split="Test").dataset) == {"Test/RBC/a.png": ("RBC", "Test")}


def test_a_class_may_be_called_test_beside_others(tmp_path: Path) -> None:
    pictures(tmp_path, "test/a.png", "RBC/a.png")
    assert seen(read(tmp_path).dataset) == {"RBC/a.png": ("RBC", None), "test/a.png": ("test", None)}


def test_the_cells_come_from_the_folders(tmp_path: Path) -> None:
    """Without an annotation file, what the folders say stands for it in the cells' source."""
    pictures(tmp_path, "RBC/a.png", "WBC/b.png")
    before = set(read(tmp_path, name="x").dataset.cells.frame["source"])
    (tmp_path / "RBC").rename(tmp_path / "Platelet")
    after = set(read(tmp_path, name="x").dataset.cells.frame["source"])
    assert len(before) == len(after) == 1
    assert before != after


def test_a_table_beside_a_folder_of_images(tmp_path: Path) -> None:
    pictures(tmp_path, "images/a.png", "images/b.png", "images/c.png", "images/d.png")
    (tmp_path / "labels.csv").write_text(
        "image,label,split,source_folder\na.png,None,train,x\nb,NA,val,x\nc.png,,val,x\n"
    )
    for source in (tmp_path, tmp_path / "labels.csv"):
        back = read(source)
        assert seen(back.dataset) == {
            "images/a.png": ("None", "train"),
            "images/b.png": ("NA", "val"),
            "images/c.png": (None, "val"),
        }
    assert back.dataset.name == "labels"
    columns = {"label": "source_folder"}
    assert set(read(tmp_path, columns=columns).dataset.cells.label_names()) == {"x"}


def test_an_image_with_two_labels(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "t.csv").write_text("image,label\na.png,WBC\na.png,RBC\nb.png,WBC\n")
    back = read(tmp_path)
    (problem,) = back.problems
    assert (problem.kind, problem.where) == ("image-several-labels", "t.csv:2")
    assert back.dataset.cells.label_names() == ["WBC", "RBC", "WBC"]


def test_missing_images_have_no_box(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,label\na.png,WBC\nb.png,RBC\n")
    back = read(tmp_path, allow_missing_images=True)
    assert (len(back.dataset.images), len(back.dataset.cells)) == (2, 0)
    assert "2 cells are left out" in back.problems.of("image-size-unknown")[0].what


def test_what_is_no_image_folder(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="found neither"):
        read(tmp_path)
    pictures(tmp_path, "a.png", "b.png")
    with pytest.raises(FormatError, match="2 images, but no folder per class"):
        read(tmp_path)
    (tmp_path / "t.csv").write_text("image,kind\na.png,WBC\n")
    with pytest.raises(FormatError, match=r"no column for label .*Columns there: image, kind"):
        read(tmp_path / "t.csv")


# -- writing ----------------------------------------------------------------------------------------


def test_the_table_that_is_written(tmp_path: Path) -> None:
    problems = formats.write(small_dataset(tmp_path / "images"), tmp_path / "out.csv", "image_folder")
    text = "image,label,split,group\none.png,WBC,train,patient one\ntwo.png,RBC,val,patient two\n"
    assert (tmp_path / "out.csv").read_text() == text
    assert {problem.where for problem in problems} == {"cell ids", "sources", "label trees"}


def test_the_folders_that_are_written(tmp_path: Path) -> None:
    data = small_dataset(tmp_path / "images")
    formats.write(data, tmp_path / "out", "image_folder", WriteOptions(copy_images=True))
    assert {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")} == {
        "labels.csv",
        "train/WBC/one.png",
        "val/RBC/two.png",
    }
    (tmp_path / "out" / "labels.csv").unlink()
    assert seen(read(tmp_path / "out").dataset) == {
        "train/WBC/one.png": ("WBC", "train"),
        "val/RBC/two.png": ("RBC", "val"),
    }
    unsplit = Dataset(data.images.with_columns(split=None), data.cells)
    formats.write(unsplit, tmp_path / "flat", "image_folder", WriteOptions(copy_images=True))
    assert (tmp_path / "flat" / "WBC" / "one.png").exists()


def test_images_with_several_cells_are_left_out_and_said(tmp_path: Path) -> None:
    data = small_dataset(tmp_path / "images", boxes=[[0, 0, 20, 10], [1, 1, 5, 5]])
    crowded = Dataset(data.images, data.cells.concat(data.cells.where(image_id="one.png").with_columns(cell_id="x")))
    problems = formats.write(crowded, tmp_path / "out.csv", "image_folder")
    assert (tmp_path / "out.csv").read_text().splitlines()[1:] == ["two.png,RBC,val,patient two"]
    said = {problem.where: problem.what for problem in problems}
    assert "(1 images)" in said["images with several cells"]
    assert "(1 cells)" in said["boxes other than the whole image"]
