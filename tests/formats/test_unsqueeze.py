from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cytolens import masks
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.formats.unsqueeze import parsed_proportion, stretch, unsqueezed
from cytolens.images import Images, load_image
from cytolens.labels import LabelSet
from cytolens.problems import FormatError, SettingError


def squeezed(folder: Path, size_wh: tuple[int, int] = (40, 40)) -> Dataset:
    """Two images, each with a white square on black as its cell; their cells take turns."""
    folder.mkdir()
    rows = []
    for name in ("a", "b"):
        pixels = np.zeros((size_wh[1], size_wh[0], 3), np.uint8)
        pixels[10:20, 20:30] = 255
        Image.fromarray(pixels).save(folder / f"{name}.bmp")
        sizes = {"width_px": size_wh[0], "height_px": size_wh[1]}
        rows.append({"image_id": f"{name}.bmp", "path": str(folder / f"{name}.bmp"), "sha256": name, **sizes})
    mask = np.zeros(size_wh[::-1], bool)
    mask[10:20, 20:30] = True
    cells = Cells.of(
        LabelSet.of(["WBC"]),
        image_id=["a.bmp", "b.bmp", "a.bmp"],
        boxes=[[20, 10, 30, 20], [20, 10, 30, 20], [0, 0, 4, 4]],
        label=["WBC"] * 3,
        source="human:ab",
        mask=[masks.encode(mask), None, None],
    )
    return Dataset(Images.of(rows), cells, "squeezed")


def test_pixels_boxes_and_masks_move_together(tmp_path: Path) -> None:
    data = squeezed(tmp_path / "in")
    back = unsqueezed(data, (2, 1), tmp_path / "out")
    assert back.images.frame.select("width_px", "height_px").rows() == [(80, 40)] * 2
    assert back.cells.boxes().tolist() == [[40, 10, 60, 20], [40, 10, 60, 20], [0, 0, 8, 4]]
    assert back.cells.frame["cell_id"].to_list() == data.cells.frame["cell_id"].to_list()
    assert back.images.ids == data.images.ids
    assert masks.bounds(back.cells.masks()[0], (40, 80)).tolist() == [40, 10, 60, 20]
    path = Path(back.images.row("a.bmp")["path"])
    pixels = load_image(path).pixels
    assert path == tmp_path / "out" / "a.png"
    assert pixels.shape == (40, 80, 3)
    assert (pixels[12:18, 42:58] == 255).all()
    assert pixels[:, :38].max() == pixels[:, 62:].max() == 0
    assert back.provenance[-1] == {"step": "unsqueeze", "proportion": [2, 1], "images": 2}
    assert len(set(back.images.frame["sha256"])) == 1  # of the same pixels, and no more the old ones
    assert data.cells.boxes()[0].tolist() == [20, 10, 30, 20]  # what was given stays


def test_a_square_of_640_px() -> None:
    view = stretch((640, 640), (800, 448))
    assert view.wh == (1143, 640)
    assert view.forward_boxes([[0.0, 0, 640, 640]]).tolist() == [[0, 0, 1143, 640]]


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 50), st.integers(1, 50))
def test_the_proportion_is_reached(width: int, height: int, wide: int, high: int) -> None:
    view = stretch((width, height), (wide, high))
    assert view.wh[1] == height
    assert abs(view.wh[0] - height * wide / high) <= 0.5 or view.wh[0] == 1


def test_proportions() -> None:
    assert parsed_proportion("16:9") == (16, 9)
    assert parsed_proportion(" 1.5 : 1 ") == (1.5, 1)
    for text in ("16", "16:0", "a:b", "-1:2", "16:9:1", "50:1", ""):
        with pytest.raises(SettingError, match="unsqueeze takes W:H"):
            parsed_proportion(text)


def test_images_that_are_not_there(tmp_path: Path) -> None:
    data = squeezed(tmp_path / "in")
    gone = Dataset(data.images.with_columns(path=None), data.cells)
    with pytest.raises(FormatError, match=r"2 images have no file that could be unsqueezed: a\.bmp, b\.bmp"):
        unsqueezed(gone, (2, 1), tmp_path / "out")


def test_nothing_to_stretch(tmp_path: Path) -> None:
    labels = LabelSet.of(["WBC"])
    assert len(unsqueezed(Dataset(Images.empty(), Cells.empty(labels)), (2, 1), tmp_path).cells) == 0
