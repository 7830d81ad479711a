from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cytolens import formats
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.formats import Imported, ReadOptions
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.problems import FormatError
from tests.contracts import FormatContract, save_picture, small_dataset


class TestVoc(FormatContract):
    format = "voc"
    annotation_suffixes = (".xml", ".txt")


_OBJECT = """
  <object><name>{name}</name><pose>Left</pose><truncated>1</truncated><difficult>{difficult}</difficult>
    <bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
    <part><name>nucleus</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>1</xmax><ymax>1</ymax></bndbox></part>
  </object>"""


def page(
    path: Path,
    filename: str | None,
    *objects: tuple[str, tuple[object, ...]],
    size: tuple[int, int] | None = (20, 10),
    difficult: object = 0,
) -> None:
    """Write an XML file as annotation programs do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    named = "" if filename is None else f"<filename>{filename}</filename>"
    sized = "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    body = "".join(_OBJECT.format(name=name, difficult=difficult, box=box) for name, box in objects)
    path.write_text(f"<annotation>{named}{sized}{body}</annotation>", encoding="utf-8")


def read(folder: Path, **options: object) -> Imported:
    return formats.read(folder, "voc", ReadOptions.model_validate(options))


def test_what_a_page_says(tmp_path: Path) -> None:
    save_picture(tmp_path / "JPEGImages" / "a.png")
    page(tmp_path / "Annotations" / "a.xml", "a.png", ("WBC", (1, 2, 11.5, 9)), ("RBC", (0, 0, 20, 10)), difficult=1)
    data = read(tmp_path).dataset
    assert data.images.ids == ["JPEGImages/a.png"]
    assert np.array_equal(data.cells.boxes(), [[1, 2, 11.5, 9], [0, 0, 20, 10]])
    assert data.cells.label_names() == ["WBC", "RBC"]
    assert data.cells.frame["ignore"].to_list() == [True, True]
    assert data.labels.names == ("WBC", "RBC")


@pytest.mark.parametrize("filename", [None, "", "a", "a.jpg", "C:\\pictures\\a.jpg", "renamed later.png"])
def test_an_image_is_found_without_a_proper_filename(tmp_path: Path, filename: str | None) -> None:
    save_picture(tmp_path / "images" / "a.png")
    page(tmp_path / "Annotations" / "a.xml", filename, ("WBC", (1, 2, 3, 4)))
    back = read(tmp_path)
    assert back.dataset.images.ids == ["images/a.png"]
    assert len(back.dataset.cells) == 1
    assert not list(back.problems)


def test_an_image_called_like_the_page_wins(tmp_path: Path) -> None:
    """After renaming files together with their XML, the old name inside may be that of another image."""
    for number, name in enumerate("ab"):
        save_picture(tmp_path / "JPEGImages" / f"{name}.png", number=number)
        page(tmp_path / "Annotations" / f"{name}.xml", "b.png", (name, (1, 2, 3, 4)))
    back = read(tmp_path)
    assert [p.where for p in back.problems.of("filename-mismatch")] == ["Annotations/a.xml"]
    assert dict(zip(back.dataset.cells.frame["image_id"], back.dataset.cells.label_names(), strict=True)) == {
        "JPEGImages/a.png": "a",
        "JPEGImages/b.png": "b",
    }


def test_pages_beside_their_images(tmp_path: Path) -> None:
    for number, name in enumerate(("p1/a", "p2/a")):
        save_picture(tmp_path / f"{name}.png", number=number)
        page(tmp_path / f"{name}.xml", "a.png", ("WBC", (number, 2, 3, 4)))
    save_picture(tmp_path / "p1" / "empty.png", number=5)
    save_picture(tmp_path / "masks" / "a.png", number=6)
    back = read(tmp_path, group_pattern="p[0-9]")
    assert back.dataset.images.ids == ["p1/a.png", "p1/empty.png", "p2/a.png"]
    assert back.dataset.images.frame["group"].to_list() == ["p1", "p1", "p2"]
    assert back.dataset.cells.boxes()[:, 0].tolist() == [0, 1]


def test_an_image_without_a_page_is_not_one_without_cells(tmp_path: Path) -> None:
    for number, name in enumerate(("annotated", "empty", "silent")):
        save_picture(tmp_path / "JPEGImages" / f"{name}.png", number=number)
    page(tmp_path / "Annotations" / "annotated.xml", "annotated.png", ("WBC", (1, 2, 3, 4)))
    page(tmp_path / "Annotations" / "empty.xml", "empty.png")
    back = read(tmp_path)
    assert back.dataset.images.frame["complete_for"].to_list() == [None, None, []]
    (note,) = back.problems
    assert (note.kind, note.severity) == ("images-without-cells", "note")
    assert "2 of 3" in note.what


def test_another_size_than_that_of_the_image(tmp_path: Path) -> None:
    for number, size in enumerate([(20, 10), (0, 0), None, (21, 10)]):
        save_picture(tmp_path / "JPEGImages" / f"{number}.png", number=number)
        page(tmp_path / "Annotations" / f"{number}.xml", f"{number}.png", ("WBC", (1, 2, 3, 4)), size=size)
    (problem,) = read(tmp_path).problems
    assert (problem.kind, problem.where) == ("size-mismatch", "Annotations/3.xml")
    assert "(21, 10)" in problem.what


def test_the_declared_size_stands_in_for_a_missing_image(tmp_path: Path) -> None:
    page(tmp_path / "Annotations" / "a.xml", "a.png", ("WBC", (1, 2, 30, 4)))
    back = read(tmp_path, allow_missing_images=True)
    row = back.dataset.images.row("a.png")
    assert (row["width_px"], row["height_px"], row["sha256"], row["path"]) == (20, 10, None, None)
    assert back.problems.counts() == {"image-missing": 1, "box-outside-image": 1}


@pytest.mark.parametrize("box", [("", 2, 3, 4), ("one", 2, 3, 4), ("nan", 2, 3, 4), (1, 2, "1e99", 4)])
def test_a_box_that_is_not_a_number(tmp_path: Path, box: tuple[object, ...]) -> None:
    save_picture(tmp_path / "JPEGImages" / "a.png")
    page(tmp_path / "Annotations" / "a.xml", "a.png", ("WBC", (1, 2, 3, 4)), ("WBC", box))
    back = read(tmp_path)
    (problem,) = back.problems
    assert (problem.kind, problem.where) == ("box-not-a-number", "Annotations/a.xml: object 2")
    assert len(back.dataset.cells) == 1


@pytest.mark.parametrize(
    "text",
    [
        "<annotation><object>",
        "<html></html>",
        "",
        '<?xml version="1.0" encoding="no-such"?><annotation/>',
        '<!DOCTYPE a [<!ENTITY x "y">]><annotation><filename>&x;</filename></annotation>',
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
    ],
)
def test_a_page_that_cannot_be_read_leaves_its_image_out(tmp_path: Path, text: str) -> None:
    for number, name in enumerate("ab"):
        save_picture(tmp_path / "JPEGImages" / f"{name}.png", number=number)
        page(tmp_path / "Annotations" / f"{name}.xml", f"{name}.png", ("WBC", (1, 2, 3, 4)))
    (tmp_path / "Annotations" / "a.xml").write_text(text)
    back = read(tmp_path)
    (problem,) = back.problems
    assert (problem.kind, problem.where) == ("annotation-unreadable", "Annotations/a.xml")
    assert back.dataset.images.ids == ["JPEGImages/b.png"]


def test_labels_without_a_name_and_of_two_spellings(tmp_path: Path) -> None:
    save_picture(tmp_path / "JPEGImages" / "a.png")
    names = ["WBC", "wbc", " ", "Neutrophill"]
    page(tmp_path / "Annotations" / "a.xml", "a.png", *((name, (1, 2, 3, 4)) for name in names))
    back = read(tmp_path)
    assert back.dataset.cells.label_names() == ["WBC", "WBC", None, "Neutrophill"]
    assert back.problems.counts() == {"label-spelling": 1, "label-empty": 1, "label-unfamiliar": 1}
    (unfamiliar,) = back.problems.of("label-unfamiliar")
    assert (unfamiliar.fix, unfamiliar.severity) == ('Did you mean "neutrophil"?', "note")


class TestSplits:
    def source(self, folder: Path, **lists: str) -> Path:
        for number, name in enumerate(("a", "b", "c 1")):
            save_picture(folder / "JPEGImages" / f"{name}.png", number=number)
            page(folder / "Annotations" / f"{name}.xml", f"{name}.png", ("WBC", (1, 2, 3, 4)))
        (folder / "ImageSets" / "Main").mkdir(parents=True)
        for name, text in lists.items():
            (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
        return folder

    def test_trainval_is_the_union_of_two(self, tmp_path: Path) -> None:
        back = read(self.source(tmp_path, train="a\n", val="b.png\n", trainval="a\nb\nc 1\n"))
        assert back.dataset.images.frame["split"].to_list() == ["train", "val", "trainval"]
        assert not list(back.problems)
        part = read(tmp_path, split="trainval").dataset
        assert part.images.frame["split"].to_list() == ["trainval"] * 3

    def test_lists_per_class_are_not_splits(self, tmp_path: Path) -> None:
        back = read(self.source(tmp_path, train="a\nc 1\n", WBC_train="a  1\nb -1\n", empty=""))
        assert back.dataset.images.frame["split"].to_list() == ["train", None, "train"]
        assert not list(back.problems)

    def test_an_image_in_two_splits_and_an_entry_for_none(self, tmp_path: Path) -> None:
        back = read(self.source(tmp_path, val="a\nb\n", train="a\nghost\n"))
        assert back.dataset.images.frame["split"].to_list() == ["train", "val", None]
        (overlap,), (stray,) = back.problems.of("split-overlap"), back.problems.of("split-entry-missing")
        assert "train, val" in overlap.what
        assert "ghost" in stray.what
        assert len(read(tmp_path, split="val").dataset.images) == 2

    def test_a_bare_name_means_the_image_at_the_top_first(self, tmp_path: Path) -> None:
        self.source(tmp_path, train="a\nb\n")
        for number, name in enumerate(("p/a", "p/d"), 7):
            save_picture(tmp_path / "JPEGImages" / f"{name}.png", number=number)
            page(tmp_path / "Annotations" / f"{name}.xml", f"{name}.png")
        assert read(tmp_path).dataset.images.frame["split"].to_list() == ["train", "train", None, None, None]
        (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("d")
        assert read(tmp_path).dataset.images.row("JPEGImages/p/d.png")["split"] == "val"


def test_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((10, 20, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    (tmp_path / "JPEGImages").mkdir()
    image.save(tmp_path / "JPEGImages" / "a.jpg", exif=exif)
    page(tmp_path / "Annotations" / "a.xml", "a.jpg", ("WBC", (1, 2, 10, 20)), size=(10, 20))
    back = read(tmp_path)
    assert not list(back.problems)
    assert back.dataset.images.frame.select("width_px", "height_px").row(0) == (10, 20)


def test_what_is_no_voc_folder(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="wanted XML files"):
        read(tmp_path)
    (tmp_path / "a.xml").write_text("<annotation/>")
    with pytest.raises(FormatError, match="VOC is a folder"):
        read(tmp_path / "a.xml")


# -- writing ----------------------------------------------------------------------------------------


def test_the_file_that_is_written(tmp_path: Path) -> None:
    data = small_dataset(tmp_path / "images", boxes=[[1, 2, 11.5, 9], [0, 0, 20, 10]], ignore=[False, True])
    formats.write(data, tmp_path / "out", "voc")
    text = (tmp_path / "out" / "Annotations" / "one.xml").read_text().replace("\t", "").replace("\n", "")
    assert "<filename>one.png</filename><size><width>20</width><height>10</height>" in text
    assert "<difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11.5</xmax><ymax>9</ymax>" in text
    assert (tmp_path / "out" / "ImageSets" / "Main" / "train.txt").read_text() == "one\n"
    assert not (tmp_path / "out" / "JPEGImages").exists()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a.png", "a.jpg"], "annotation files would have the same name"),
        (["p/a.png", "P/A.png"], "annotation files would have the same name"),
        (["a.png", "../a.png"], "no path below a folder"),
        (["a.png", "/etc/a.png"], "no path below a folder"),
    ],
)
def test_names_that_cannot_be_exported(tmp_path: Path, ids: list[str], message: str) -> None:
    labels = LabelSet.of(["WBC"])
    data = Dataset(Images.of({"image_id": i} for i in ids), Cells.empty(labels))
    with pytest.raises(FormatError, match=message):
        formats.write(data, tmp_path / "out", "voc")
    assert not (tmp_path / "out").exists()


def test_labels_and_splits_that_cannot_be_exported(tmp_path: Path) -> None:
    data = small_dataset(tmp_path / "images")
    odd = LabelSet(("W\x07C", "RBC"))
    cells = Cells.of(odd, image_id=["one.png"], boxes=[[0, 0, 1, 1]], label=["W\x07C"], source="human:ab")
    with pytest.raises(FormatError, match="control character"):
        formats.write(Dataset(data.images, cells), tmp_path / "out", "voc")
    moved = Dataset(data.images.with_columns(split="../train"), data.cells)
    with pytest.raises(FormatError, match="cannot be the name of a folder"):
        formats.write(moved, tmp_path / "out", "voc")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(FormatError, match="not an empty folder"):
        formats.write(small_dataset(tmp_path / "images"), tmp_path / "out", "voc")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
