from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from cytolens import formats, masks
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.formats import Imported, ReadOptions
from cytolens.formats.label_files import label_values
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.problems import FormatError
from tests.contracts import FormatContract, save_picture


class TestLabelImages(FormatContract):
    format = "label_images"
    annotation_suffixes = (".csv", ".png")

    def annotation_files(self, folder: Path) -> list[Path]:
        return [path for path in super().annotation_files(folder) if path.parts[len(folder.parts)] == "masks"]

    def image_files(self, folder: Path) -> list[Path]:
        return [path for path in super().image_files(folder) if path.parts[len(folder.parts)] != "masks"]


# Two cells of 5 × 4 px: number 3 with a hole, number 7 in a corner.
VALUES = np.array([[3, 3, 3, 0, 7], [3, 0, 3, 0, 0], [3, 3, 3, 0, 0], [0, 0, 0, 0, 0]])


def read(source: Path, **options: object) -> Imported:
    return formats.read(source, "label_images", ReadOptions.model_validate(options))


def save(path: Path, values: NDArray[Any] = VALUES, kind: Any = np.uint8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(values.astype(kind)).save(path)
    else:
        tifffile.imwrite(path, values.astype(kind))
    return path


def pair(folder: Path, photo: str = "images/a.png", label: str = "masks/a.png", kind: Any = np.uint8) -> Path:
    save_picture(folder / photo, (5, 4), len(photo))
    save(folder / label, kind=kind)
    return folder


# -- numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        (".png", np.uint8),
        (".png", np.uint16),
        (".tif", np.uint8),
        (".tif", np.uint16),
        (".tif", np.uint32),
        (".tif", np.int32),
        (".tiff", np.float32),  # as ImageJ saves its count masks
    ],
)
def test_every_value_is_a_cell(tmp_path: Path, suffix: str, kind: Any) -> None:
    back = read(pair(tmp_path, label=f"masks/a{suffix}", kind=kind))
    cells = back.dataset.cells
    assert cells.boxes().tolist() == [[0, 0, 3, 3], [4, 0, 5, 1]]
    assert cells.masks() == [masks.encode(VALUES == 3), masks.encode(VALUES == 7)]
    assert {problem.kind for problem in back.problems} == {"labels-missing"}


@pytest.mark.parametrize("number", [255, 256, 65_535, 65_536, 2**31])
def test_large_numbers_are_kept(tmp_path: Path, number: int) -> None:
    path = save(tmp_path / "a.tif", np.full((2, 3), number), np.uint32)
    assert label_values(path.read_bytes()).tolist() == [[number] * 3] * 2


def test_a_palette_is_read_by_its_numbers(tmp_path: Path) -> None:
    image = Image.fromarray(VALUES.astype(np.uint8), "L").convert("P")
    image.putdata(VALUES.ravel().tolist())
    image.putpalette([255 - i // 3 for i in range(768)])
    image.save(tmp_path / "a.png")
    assert label_values((tmp_path / "a.png").read_bytes()).tolist() == VALUES.tolist()


_WRONG: dict[str, tuple[Any, str]] = {
    "colour": (lambda p: save_picture(p, (5, 4)), "a colour picture perhaps"),
    "negative": (lambda p: tifffile.imwrite(p, -VALUES.astype(np.int32)), "the negative number -7"),
    "fractions": (lambda p: tifffile.imwrite(p, VALUES.astype(np.float32) / 2), "not whole"),
    "no numbers": (lambda p: tifffile.imwrite(p, np.full((4, 5), np.nan, np.float32)), "not whole"),
    "JPEG": (lambda p: Image.new("L", (5, 4)).save(p, "JPEG"), "neither PNG nor TIFF"),
    "cut": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n\0\0"), "cannot be decoded"),
    "empty": (lambda p: p.write_bytes(b""), "neither PNG nor TIFF"),
}


@pytest.mark.parametrize("case", list(_WRONG))
def test_what_is_no_label_image_is_collected(tmp_path: Path, case: str) -> None:
    pair(tmp_path)
    pair(tmp_path, "images/b.png", "masks/b.png")
    (tmp_path / "masks" / "b.png").unlink()
    make, said = _WRONG[case]
    make(tmp_path / "masks" / ("b.tif" if case in ("negative", "fractions", "no numbers") else "b.png"))
    back = read(tmp_path)
    (problem,) = back.problems.of("annotation-unreadable")
    assert said in problem.what
    assert problem.where.startswith("masks/b.")
    assert back.dataset.images.ids == ["images/a.png"]  # b is not taken for an image without cells


def test_a_label_image_of_another_size_is_not_used(tmp_path: Path) -> None:
    pair(tmp_path)
    save(tmp_path / "masks" / "a.png", VALUES.T)
    back = read(tmp_path)
    (problem,) = back.problems.of("mask-unreadable")
    assert "(4, 5) px" in problem.what
    assert len(back.dataset.cells) == 0


def test_masks_of_kinds_of_pixels_are_noticed(tmp_path: Path) -> None:
    pair(tmp_path)
    save(tmp_path / "masks" / "a.png", np.array([[255, 0, 255, 0, 0]] * 4))
    (note,) = read(tmp_path).problems.of("cells-in-parts")
    assert note.what.startswith("1 of 1 cells are in several parts")
    assert note.severity == "note"


# -- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("photo", "label"),
    [
        ("images/a.png", "masks/a.tif"),
        ("a.png", "labels/a.png"),
        ("train/images/a.png", "train/masks/a.png"),
        ("images/train/a.jpg", "masks/train/a_mask.png"),
        ("a.png", "a_cp_masks.png"),  # Cellpose
        ("a.tif", "a-labelled.png"),  # QuPath
    ],
)
def test_which_image_is_meant(tmp_path: Path, photo: str, label: str) -> None:
    back = read(pair(tmp_path, photo, label))
    assert back.dataset.images.ids == [photo]
    assert len(back.dataset.cells) == 2
    assert back.dataset.images.frame["split"].to_list() == ["train" if "train" in photo else None]


def test_images_may_lie_elsewhere(tmp_path: Path) -> None:
    save_picture(tmp_path / "photos" / "a.png", (5, 4))
    save(tmp_path / "outlines" / "a.png")
    with pytest.raises(FormatError, match="name the images' folder with --images DIR"):
        read(tmp_path / "outlines")
    assert len(read(tmp_path / "outlines", images=tmp_path / "photos").dataset.cells) == 2


def test_a_label_image_is_never_its_own_image(tmp_path: Path) -> None:
    pair(tmp_path)
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(FormatError, match="none of the 1 images"):
        read(tmp_path)


def test_images_without_a_label_image_are_not_annotated(tmp_path: Path) -> None:
    pair(tmp_path)
    save_picture(tmp_path / "images" / "b.png", (5, 4), 9)
    complete = read(tmp_path).dataset.images.frame.select("image_id", "complete_for").rows()
    assert complete == [("images/a.png", None), ("images/b.png", [])]


# -- labels -----------------------------------------------------------------------------------------


def labels_of(folder: Path, text: str | None, **options: object) -> tuple[list[str | None], set[str]]:
    pair(folder)
    if text is not None:
        (folder / "masks" / "cells.csv").write_text(text)
    back = read(folder, **options)
    return back.dataset.cells.label_names(), {problem.kind for problem in back.problems} - {"label-unfamiliar"}


@pytest.mark.parametrize(
    ("text", "options", "labels", "kinds"),
    [
        (None, {"label": "WBC"}, ["WBC", "WBC"], set()),
        (None, {}, [None, None], {"labels-missing"}),
        ("value,label\n3,WBC\n7,RBC\n", {}, ["WBC", "RBC"], set()),
        ("image,value,label\na,3,WBC\na,7,RBC\n", {}, ["WBC", "RBC"], set()),
        ("image,value,label\nmasks/a.png,3,WBC\nb,7,RBC\n", {}, ["WBC", None], {"value-unlisted", "value-missing"}),
        ("value,label\n3,WBC\n", {"label": "RBC"}, ["WBC", "RBC"], set()),
        ("value,label\n3,WBC\n3,RBC\nx,RBC\n7,\n", {}, ["WBC", None], {"value-unreadable"}),
    ],
)
def test_what_the_values_are_called(
    tmp_path: Path, text: str | None, options: dict[str, object], labels: list[str | None], kinds: set[str]
) -> None:
    assert labels_of(tmp_path, text, **options) == (labels, kinds)


def test_two_tables_of_labels_are_not_guessed_between(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("value,label\n1,x\n")
    with pytest.raises(FormatError, match=r"several files say what the numbers mean: masks/cells\.csv, labels\.csv"):
        labels_of(tmp_path, "value,label\n3,WBC\n")


# -- writing ----------------------------------------------------------------------------------------


def dataset(layers: list[NDArray[np.bool_]], score: list[float] | None = None) -> Dataset:
    height, width = layers[0].shape
    images = Images.of([{"image_id": "a.png", "width_px": width, "height_px": height}])
    cells = Cells.of(
        LabelSet.of(["WBC"]),
        image_id=["a.png"] * len(layers),
        boxes=[[0, 0, 1, 1]] * len(layers),
        label=["WBC"] * len(layers),
        source="human:ab",
        mask=[masks.encode(layer) for layer in layers],
        score=score,
    )
    return Dataset(images, cells)


def block(x_min: int, x_max: int) -> NDArray[np.bool_]:
    mask = np.zeros((2, 8), bool)
    mask[:, x_min:x_max] = True
    return mask


@pytest.mark.parametrize(
    ("score", "row"),
    [
        (None, [1, 1, 1, 1, 2, 2, 0, 0]),  # the first keeps its pixels
        ([0.2, 0.9, 0.5], [1, 1, 2, 2, 2, 2, 0, 0]),  # the best does; the third is covered
    ],
)
def test_overlaps_are_said_and_settled(tmp_path: Path, score: list[float] | None, row: list[int]) -> None:
    data = dataset([block(0, 4), block(2, 6), block(3, 5)], score)
    problems = formats.write(data, tmp_path / "out", "label_images")
    path = tmp_path / "out" / "masks" / "a.png"
    assert label_values(path.read_bytes()).tolist() == [row, row]
    (lost,) = (problem for problem in problems if problem.where == "overlaps of masks")
    assert f"({2 * (4 + 4 + 2) - 2 * 6} pixels)" in lost.what
    assert lost.severity == "warning"
    assert [problem.where for problem in problems.of("cell-covered")] == [data.cells.frame["cell_id"][2]]
    lines = (tmp_path / "out" / "masks" / "cells.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in lines[1:]] == [["a.png", "1", "WBC"], ["a.png", "2", "WBC"]]


@pytest.mark.parametrize(("count", "name", "bits"), [(255, "a.png", 8), (256, "a.png", 16), (65_536, "a.tif", 32)])
def test_as_many_bits_as_there_are_cells(tmp_path: Path, count: int, name: str, bits: int) -> None:
    values = np.zeros(256 * 257, np.int64)
    values[:count] = np.arange(1, count + 1)
    values = values.reshape(256, 257)
    save_picture(tmp_path / "in" / "a.png", (257, 256))
    save(tmp_path / "in" / "masks" / "a.tif", values, np.uint32)
    data = read(tmp_path / "in", label="WBC").dataset
    assert len(data.cells) == count
    formats.write(data, tmp_path / "out", "label_images")
    (path,) = (tmp_path / "out" / "masks").glob("a.*")
    assert path.name == name
    stored = tifffile.imread(path) if bits == 32 else np.asarray(Image.open(path))
    assert stored.dtype.itemsize * 8 == bits
    np.testing.assert_array_equal(stored, values)


def test_images_of_unknown_size(tmp_path: Path) -> None:
    data = dataset([block(0, 2)])
    unknown = Dataset(data.images.with_columns(width_px=None), data.cells)
    with pytest.raises(FormatError, match=r'the size of "a\.png" is not known'):
        formats.write(unknown, tmp_path / "out", "label_images")
    problems = formats.write(
        Dataset(unknown.images, data.cells.filter(np.array([False]))), tmp_path / "b", "label_images"
    )
    assert [problem.where for problem in problems.of("image-size-unknown")] == ["a.png"]


@pytest.mark.data
def test_outlines_of_dsb_2018_survive(data_root: Path, tmp_path: Path) -> None:
    """Its masks hardly overlap (1 px in two images), so label images hold nearly all of it."""
    whole = formats.read(data_root / "dsb2018", "rle_csv").dataset
    part = whole.select("width_px = 320 AND image_id < 'images/4'")
    assert len(part.cells) > 500
    formats.write(part, tmp_path / "out", "label_images")
    back = read(tmp_path / "out", images=data_root / "dsb2018" / "images").dataset
    assert back.cells.masks() == part.cells.masks()
    assert back.cells.label_names() == part.cells.label_names()
