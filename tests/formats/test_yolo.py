from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cytolens import formats, masks
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.formats import Imported, ReadOptions
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.problems import FormatError
from tests.contracts import FormatContract, save_picture, small_dataset


class TestYolo(FormatContract):
    format = "yolo"
    annotation_suffixes = (".txt", ".yaml")
    box_error = 1e-9  # twelve decimals at most, and float32
    score_error = 1e-6


def read(source: Path, **options: object) -> Imported:
    return formats.read(source, "yolo", ReadOptions.model_validate(options))


def fill(folder: Path, files: dict[str, str | None]) -> Path:
    """Write text files; a name with None becomes a picture of 20 × 10 px."""
    for number, (name, text) in enumerate(files.items()):
        if text is None:
            save_picture(folder / name, number=number)
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def one(folder: Path, label_text: str, classes: str = "WBC\nRBC\nPlatelet\n") -> Path:
    """A data set of one image."""
    return fill(folder, {"images/a.png": None, "labels/a.txt": label_text, "classes.txt": classes})


def test_fractions_become_pixels(tmp_path: Path) -> None:
    data = read(one(tmp_path, "2 0.5 0.5 0.2 0.4\n\n0 0.25 0.5 0.5 1 \n")).dataset
    assert np.allclose(data.cells.boxes(), [[8, 3, 12, 7], [0, 0, 10, 10]])
    assert data.cells.label_names() == ["Platelet", "WBC"]
    assert data.labels.names == ("WBC", "RBC", "Platelet")
    assert data.cells.frame["score"].to_list() == [None, None]


def test_a_sixth_number_is_a_confidence(tmp_path: Path) -> None:
    back = read(one(tmp_path, "0 0.5 0.5 0.2 0.4 0.75\n0 0.5 0.5 0.2 0.4\n0 0.5 0.5 0.2 0.4 nan\n"))
    assert back.dataset.cells.frame["score"].to_list() == [0.75, None, None]
    assert [problem.kind for problem in back.problems] == ["score-not-a-number"]
    assert back.problems[0].where == "labels/a.txt:3"


def test_a_polygon_becomes_mask_and_box(tmp_path: Path) -> None:
    data = read(one(tmp_path, "1 0.1 0.2 0.5 0.2 0.5 0.8 0.1 0.8\n")).dataset
    assert np.allclose(data.cells.boxes(), [[2, 2, 10, 8]])
    (code,) = data.cells.masks()
    assert code is not None
    mask = masks.decode(code, (10, 20))
    wanted = np.zeros((10, 20), bool)
    wanted[2:8, 2:10] = True
    assert np.array_equal(mask, wanted)


@pytest.mark.parametrize("points", ["0.1 0.2 nan 0.2 0.5 0.8", "0.1 0.2 1e9 0.2 0.5 0.8"])
def test_a_polygon_of_no_use(tmp_path: Path, points: str) -> None:
    back = read(one(tmp_path, f"1 {points}\n"))
    assert back.problems.counts()["mask-unreadable"] == 1
    assert back.dataset.cells.masks() in ([], [None])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 0.5 0.2", "4 numbers"),
        ("0 0.5 0.5 0.2 0.4 0.9 0.1 0.3", "8 numbers"),
        ("0.5 0.5 0.5 0.2 0.4", "whole number"),
        ("WBC 0.5 0.5 0.2 0.4", "WBC"),
        ("0 0.5 half 0.2 0.4", "half"),
        ("2 0.4125 0.3882 0.0828 0.1289 1 0 1 0 0 1 0", "12 numbers"),  # six numbers and seven attributes
        ("2 0.4125 0.3882 0.0828 0.1289 1 0 1 0 0 1", "attributes"),
    ],
)
def test_a_line_that_cannot_be_read_leaves_its_image_out(tmp_path: Path, line: str, reason: str) -> None:
    one(tmp_path, f"0 0.5 0.5 0.2 0.4\n{line}\n")
    fill(tmp_path, {"images/b/b.png": None, "labels/b/b.txt": ""})
    back = read(tmp_path)
    (problem,) = back.problems.of("annotation-unreadable")
    assert (problem.where, problem.severity) == ("labels/a.txt:2", "error")
    assert reason in problem.what
    assert back.dataset.images.ids == ["images/b/b.png"]


def test_a_class_number_without_a_name(tmp_path: Path) -> None:
    back = read(one(tmp_path, "7 0.5 0.5 0.2 0.4\n0 0.5 0.5 0.2 0.4\n7 0.5 0.5 0.2 0.4\n-1 0.5 0.5 0.2 0.4\n"))
    assert [(p.kind, p.where) for p in back.problems] == [
        ("class-id-out-of-range", "labels/a.txt:4"),
        ("class-id-out-of-range", "labels/a.txt:1"),
    ]
    assert "2 cells" in back.problems[1].what
    assert back.dataset.cells.label_names() == [None, "WBC", None, None]


@pytest.mark.parametrize(
    ("numbers", "suspicious"), [((1, 2, 3), True), ((1, 2), False), ((0, 1, 3), False), ((), False)]
)
def test_classes_counted_from_one(tmp_path: Path, numbers: tuple[int, ...], suspicious: bool) -> None:
    back = read(one(tmp_path, "".join(f"{number} 0.5 0.5 0.2 0.4\n" for number in numbers)))
    assert len(back.problems.of("class-id-off-by-one")) == suspicious


class TestClassNames:
    @pytest.mark.parametrize(
        "names",
        ["[WBC, 'no', null]", "\n- WBC\n- no\n- null", "\n  0: WBC\n  1: no\n  2: null", "{2: null, 0: WBC, 1: no}"],
    )
    def test_a_yaml_file_names_them_word_for_word(self, tmp_path: Path, names: str) -> None:
        fill(tmp_path, {"images/a.png": None, "labels/a.txt": "1 0.5 0.5 0.2 0.4\n", "data.yaml": f"names: {names}\n"})
        data = read(tmp_path).dataset
        assert data.labels.names == ("WBC", "no", "null")
        assert data.cells.label_names() == ["no"]
        assert read(tmp_path / "data.yaml").dataset.fingerprint == data.fingerprint

    def test_gaps_in_the_numbers_are_kept(self, tmp_path: Path) -> None:
        text = "names:\n  3: WBC\n  5: RBC\n"
        fill(
            tmp_path,
            {"images/a.png": None, "labels/a.txt": "5 0.5 0.5 0.2 0.4\n4 0.5 0.5 0.2 0.4\n", "data.yaml": text},
        )
        back = read(tmp_path)
        assert back.dataset.cells.label_names() == ["RBC", None]
        assert "numbers: 3, 5" in back.problems.of("class-id-out-of-range")[0].what

    @pytest.mark.parametrize(
        "text",
        ["names: WBC", "names:\n  WBC: 0\n", "names: [[WBC]]", "names: [a", "names:\n  -1: a\n", 'names: ["\\ud800"]'],
    )
    def test_a_yaml_file_that_cannot_be_used(self, tmp_path: Path, text: str) -> None:
        fill(tmp_path, {"images/a.png": None, "labels/a.txt": "", "data.yaml": text})
        with pytest.raises(FormatError, match=r"data\.yaml: (names must be|cannot be read as YAML)"):
            read(tmp_path)

    def test_two_lists_that_differ(self, tmp_path: Path) -> None:
        one(tmp_path, "0 0.5 0.5 0.2 0.4\n")
        fill(tmp_path, {"data.yaml": "names: [RBC]"})
        back = read(tmp_path)
        assert [problem.kind for problem in back.problems] == ["classes-differ"]
        assert back.dataset.cells.label_names() == ["RBC"]
        fill(tmp_path, {"other.yaml": "names: [x]", "data.yaml": "nc: 1"})
        assert read(tmp_path).dataset.cells.label_names() == ["x"]
        fill(tmp_path, {"third.yml": "names: [y]"})
        with pytest.raises(FormatError, match=r"several files name classes: other\.yaml, third\.yml"):
            read(tmp_path)

    def test_lists_beside_the_labels_must_agree(self, tmp_path: Path) -> None:
        files: dict[str, str | None] = {"images/a.png": None, "labels/a.txt": "0 0.5 0.5 0.2 0.4\n"}
        fill(tmp_path, files | {"labels/train/classes.txt": "WBC\n", "labels/val/classes.txt": "WBC\n\n"})
        assert read(tmp_path).dataset.cells.label_names() == ["WBC"]
        fill(tmp_path, {"labels/val/classes.txt": "RBC\n"})
        with pytest.raises(FormatError, match="class lists differ"):
            read(tmp_path)
        fill(tmp_path, {"classes.txt": "Platelet\n"})
        assert read(tmp_path).dataset.cells.label_names() == ["Platelet"]

    def test_a_label_set_stands_in_for_a_missing_list(self, tmp_path: Path) -> None:
        fill(tmp_path, {"images/a.png": None, "labels/a.txt": "1 0.5 0.5 0.2 0.4\n"})
        with pytest.raises(FormatError, match="no class names"):
            read(tmp_path)
        back = read(tmp_path, labels=LabelSet.of(["WBC", "RBC"]))
        assert back.dataset.cells.label_names() == ["RBC"]
        assert [(problem.kind, problem.severity) for problem in back.problems] == [("classes-missing", "note")]

    def test_the_same_name_twice_and_an_empty_one(self, tmp_path: Path) -> None:
        text = "".join(f"{number} 0.5 0.5 0.2 0.4\n" for number in range(4))
        back = read(one(tmp_path, text, classes="WBC\n\nwbc\nRBC\n"))
        assert back.dataset.cells.label_names() == ["WBC", None, "WBC", "RBC"]
        assert back.problems.counts() == {"label-empty": 1, "label-spelling": 1}


class TestLayouts:
    LINE = "0 0.5 0.5 0.2 0.4\n"

    def splits(self, folder: Path, **options: object) -> dict[str, str | None]:
        images = read(folder, **options).dataset.images.frame
        return dict(images.select("image_id", "split").iter_rows())

    def test_a_folder_per_split_below_images(self, tmp_path: Path) -> None:
        fill(tmp_path, {"images/train/train.png": None, "images/val/val.png": None})
        fill(tmp_path, {"labels/train/train.txt": self.LINE, "labels/val/val.txt": self.LINE, "classes.txt": "WBC"})
        assert self.splits(tmp_path) == {"images/train/train.png": "train", "images/val/val.png": "val"}

    def test_a_folder_per_split_above_images(self, tmp_path: Path) -> None:
        fill(tmp_path, {"train/images/a.png": None, "valid/images/a.png": None, "test/images/c.png": None})
        fill(tmp_path, {"train/labels/a.txt": self.LINE, "valid/labels/a.txt": self.LINE * 2})
        fill(tmp_path, {"data.yaml": "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['WBC']\n"})
        back = read(tmp_path)
        assert self.splits(tmp_path) == {
            "test/images/c.png": "test",
            "train/images/a.png": "train",
            "valid/images/a.png": "val",
        }
        # Nobody said what is in the test images: they have no labels folder.
        assert back.dataset.images.frame["complete_for"].to_list() == [[], None, None]
        assert back.dataset.cells.frame["image_id"].to_list() == ["train/images/a.png", *["valid/images/a.png"] * 2]

    def test_labels_beside_images(self, tmp_path: Path) -> None:
        fill(tmp_path, {"a.png": None, "b.png": None, "pictures for the paper/c.png": None})
        fill(tmp_path, {"a.txt": self.LINE, "classes.txt": "WBC", "LICENSE.txt": "free for all", "gone.txt": self.LINE})
        back = read(tmp_path)
        assert back.dataset.images.ids == ["a.png", "b.png"]
        assert [(p.kind, p.where) for p in back.problems.of("image-missing")] == [("image-missing", "gone.txt")]

    def test_images_elsewhere(self, tmp_path: Path) -> None:
        fill(tmp_path / "pictures", {"p/a.png": None, "b.png": None})
        fill(tmp_path / "data", {"labels/train/a.txt": self.LINE, "labels/val/b.txt": "", "classes.txt": "WBC"})
        assert self.splits(tmp_path / "data", images=tmp_path / "pictures") == {"b.png": "val", "p/a.png": "train"}

    def test_splits_as_lists_of_files(self, tmp_path: Path) -> None:
        fill(tmp_path, {"images/a.png": None, "images/b.png": None, "images/c.png": None, "labels/a.txt": self.LINE})
        fill(
            tmp_path,
            {"train.txt": "./images/a.png\n/home/me/ds/images/b.png\n", "names.yaml": "names: [WBC]\ntrain: train.txt"},
        )
        assert self.splits(tmp_path) == {"images/a.png": "train", "images/b.png": "train", "images/c.png": None}

    def test_an_image_in_two_splits(self, tmp_path: Path) -> None:
        fill(tmp_path, {"images/train/a.png": None, "labels/train/a.txt": self.LINE})
        fill(tmp_path, {"data.yaml": "train: images/train\nval: [images/train]\nnames: [WBC]"})
        back = read(tmp_path)
        assert back.dataset.images.frame["split"].to_list() == ["train"]
        assert [problem.kind for problem in back.problems] == ["split-overlap"]

    def test_a_suffix_inside_a_name(self, tmp_path: Path) -> None:
        fill(tmp_path, {"images/scan.tif.png": None, "images/b.png": None, "classes.txt": "WBC"})
        fill(tmp_path, {"labels/scan.tif.txt": self.LINE, "labels/b.png.txt": self.LINE})
        assert len(read(tmp_path).dataset.cells) == 2


def test_missing_images_leave_nothing_to_place_cells_in(tmp_path: Path) -> None:
    one(tmp_path, "0 0.5 0.5 0.2 0.4\n" * 3)
    (tmp_path / "images" / "a.png").unlink()
    back = read(tmp_path, allow_missing_images=True)
    assert back.dataset.images.ids == ["images/a"]
    assert len(back.dataset.cells) == 0
    assert "3 cells are left out" in back.problems.of("image-size-unknown")[0].what


# -- writing ----------------------------------------------------------------------------------------


def test_the_files_that_are_written(tmp_path: Path) -> None:
    data = small_dataset(tmp_path / "images", boxes=[[8, 3, 12, 7], [0, 0, 20, 10]], score=[0.75, 0.5])
    formats.write(data, tmp_path / "out", "yolo")
    assert (tmp_path / "out/labels/train/one.txt").read_text() == "0 0.500000 0.500000 0.200000 0.400000 0.750000\n"
    assert (tmp_path / "out/classes.txt").read_text() == "WBC\nRBC\n"
    text = "train: images/train\nval: images/val\nnc: 2\nnames:\n  0: WBC\n  1: RBC\n"
    assert (tmp_path / "out/data.yaml").read_text() == text


def test_fractions_need_the_size_of_the_image(tmp_path: Path) -> None:
    labels = LabelSet.of(["WBC"])
    cells = Cells.of(labels, image_id=["a.png"], boxes=[[0, 0, 1, 1]], label=["WBC"], source="human:ab")
    with pytest.raises(FormatError, match=r'size of "a\.png" is not known'):
        formats.write(cells, tmp_path / "out", "yolo")
    assert not (tmp_path / "out").exists()
    problems = formats.write(Dataset(Images.of([{"image_id": "a.png"}]), Cells.empty(labels)), tmp_path / "out", "yolo")
    assert (tmp_path / "out/labels/a.txt").read_text() == ""
    assert set(problems.counts()) == {"not-kept"}


@pytest.mark.parametrize(("split", "names"), [("names", ("WBC",)), ("train", ("W\nBC",)), ("a/b", ("WBC",))])
def test_names_that_cannot_be_exported(tmp_path: Path, split: str, names: tuple[str, ...]) -> None:
    images = Images.of([{"image_id": "a.png", "split": split}])
    with pytest.raises(FormatError, match="Rename it first"):
        formats.write(Dataset(images, Cells.empty(LabelSet(names))), tmp_path / "out", "yolo")
    assert not (tmp_path / "out").exists()
