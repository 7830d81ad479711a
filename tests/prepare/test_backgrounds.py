"""Fields without their cell: what is covered, with what, and where a background belongs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cytolens import masks
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images, Pixels, load_image
from cytolens.labels import LabelSet
from cytolens.prepare.backgrounds import BackgroundSettings, background, backgrounds
from cytolens.prepare.synthetic import render_cell
from cytolens.problems import DatasetError, FormatError

KINDS = LabelSet.of(["neutrophil", "lymphocyte"])
SEEN = LabelSet.of(["leukocyte", "erythrocyte"])
PALE, DARK = (230, 215, 205), (90, 50, 130)
W, H = 120, 90


def field(*discs: tuple[float, float, float], size_wh: tuple[int, int] = (W, H)) -> Pixels:
    """A pale image with dark discs: (x, y, radius)."""
    y, x = np.mgrid[: size_wh[1], : size_wh[0]] + 0.5
    pixels = np.full((size_wh[1], size_wh[0], 3), PALE, np.uint8)
    for x_mid, y_mid, radius in discs:
        pixels[(x - x_mid) ** 2 + (y - y_mid) ** 2 <= radius**2] = DARK
    return pixels


def made(pixels: Pixels, cell_box: Any, **settings: Any) -> Pixels:
    result = background(pixels, cell_box, BackgroundSettings(**settings))
    assert not isinstance(result, str), result
    return result


# -- one image ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["background", "otsu"])
@pytest.mark.parametrize("method", ["fill", "inpaint"])
def test_the_cell_is_gone_and_all_else_stays(mask: str, method: str) -> None:
    pixels = field((50, 45, 14), (100, 20, 8))
    result = made(pixels, [36, 31, 64, 59], mask=mask, method=method)
    cell = (field((50, 45, 14)) == DARK).all(axis=2)
    assert np.abs(result[cell].astype(int) - PALE).max() <= (8 if method == "fill" else 12)
    near = (field((50, 45, 14 + 4.9)) == DARK).all(axis=2)  # half of the rim of 8 px, and a pixel's corner
    assert (result[~near] == pixels[~near]).all()
    assert (pixels[45, 50] == DARK).all()  # the argument is not touched


@pytest.mark.parametrize("mask", ["background", "otsu"])
@pytest.mark.parametrize(
    "middle",
    [
        (0, 45),
        (W, 45),
        (60, 0),
        (60, H),
        (0, 0),
        (W, 0),
        (0, H),
        (W, H),
        (10, 45),
        (W - 10, 45),
        (60, 10),
        (60, H - 10),
    ],
)
def test_a_cell_at_a_border_is_covered(middle: tuple[int, int], mask: str) -> None:
    """The grown box ends at the image: a negative slice would select nothing, or the far side."""
    x, y = middle
    pixels = field((x, y, 12))
    result = made(pixels, [x - 12, y - 12, x + 12, y + 12], mask=mask)
    assert (pixels == DARK).all(axis=2).sum() > 80
    assert np.abs(result.astype(int) - PALE).max() <= 8


@given(x=st.integers(-8, 68), y=st.integers(-8, 56), size=st.integers(10, 24))
def test_wherever_the_cell_lies_nothing_dark_is_left(x: int, y: int, size: int) -> None:
    pixels = np.full((48, 60, 3), PALE, np.uint8)
    pixels[max(y, 0) : max(y + size, 0), max(x, 0) : max(x + size, 0)] = DARK
    result = background(pixels, [x, y, x + size, y + size])
    shown = [min(x + size, 60) - max(x, 0), min(y + size, 48) - max(y, 0)]
    if min(shown) <= 0:
        assert isinstance(result, str)
    elif min(shown) >= 4 and min(60 - shown[0], 48 - shown[1]) >= 28:
        assert isinstance(result, np.ndarray)
        assert np.abs(result.astype(int) - PALE).max() <= 8


def test_the_colour_is_the_mean_of_what_is_bright_and_away_from_cells() -> None:
    pixels = field((30, 45, 12))
    pixels[:, 80:] = (210, 195, 185)  # bright, but a little darker: a third of the usable pixels
    pixels[:10, 60:70] = (255, 255, 140)  # blue is not above 150: not used
    result = made(pixels, [18, 33, 42, 57], noise=0, mask="otsu")
    y, x = np.mgrid[:H, :W] + 0.5
    away = (x - 30) ** 2 + (y - 45) ** 2 > (12 + 12 + 1) ** 2
    mean = pixels[away & (pixels > 150).all(axis=2)].mean(axis=0)
    assert np.abs(result[45, 30] - mean).max() <= 1
    assert (result[45, 30] == result[50, 33]).all()


def test_noise_is_on_a_tenth_of_what_is_covered() -> None:
    pixels = field((60, 45, 30))
    result = made(pixels, [30, 15, 90, 75])
    inner = (field((60, 45, 33)) == DARK).all(axis=2)
    change = result[inner].astype(int) - PALE
    assert (change != 0).any(axis=1).mean() == pytest.approx(0.1, abs=0.02)
    assert set(range(-8, 9)) == set(np.unique(change).tolist())
    calm = made(pixels, [30, 15, 90, 75], noise_share=0.0)
    assert (calm[inner] == PALE).all()


def test_of_several_outlines_in_the_box_the_largest_is_covered() -> None:
    pixels = field((50, 45, 12), (72, 45, 4))
    result = made(pixels, [38, 33, 62, 57])  # the grown box reaches to 78
    assert np.abs(result[45, 50].astype(int) - PALE).max() <= 8
    assert (result[45, 72] == DARK).all()


def test_a_hole_in_the_cell_is_covered_too() -> None:
    pixels = field((50, 45, 16))
    pixels[40:50, 45:55] = (240, 120, 150)
    pixels[44:46, 49:51] = PALE
    assert np.abs(made(pixels, [34, 29, 66, 61]).astype(int) - PALE).max() <= 8


@pytest.mark.parametrize("mask", ["background", "otsu"])
def test_why_there_is_no_background(mask: str) -> None:
    settings = BackgroundSettings(mask=mask)  # type: ignore[arg-type]
    pixels = field((50, 45, 12))
    assert background(pixels, [-30, 10, 0, 40], settings) == "no-area"
    assert background(pixels, [10, 10, 10, 40], settings) == "no-area"
    assert background(pixels, [90, 60, 100, 70], settings) == "no-contour"  # nothing is there
    assert background(pixels, [0, 0, W, H], settings) == "no-contour"  # the disc is not this cell
    dim = (field((50, 45, 12)).astype(int) * 0.6).astype(np.uint8)
    assert background(dim, [38, 33, 62, 57], settings) == "no-background"


def test_otsu_that_tells_only_nuclei_leaves_no_half_covered_cell() -> None:
    """A dark nucleus in pale cytoplasm among red cells: Otsu's threshold falls below the cytoplasm."""
    pixels = field((50, 45, 7))
    y, x = np.mgrid[:H, :W] + 0.5
    around = ((x - 50) ** 2 + (y - 45) ** 2 <= 16**2) & (pixels != DARK).all(axis=2)
    pixels[around] = (200, 180, 200)
    box_ = [34, 29, 66, 61]
    assert background(pixels, box_, BackgroundSettings(mask="otsu")) == "no-contour"
    result = made(pixels, box_)
    assert np.abs(result.astype(int) - PALE).max() <= 8


@pytest.mark.parametrize("label", ["segmented neutrophil", "lymphocyte", "eosinophil"])
@pytest.mark.parametrize("method", ["fill", "inpaint"])
def test_a_rendered_cell_is_gone_to_its_last_pixel(label: str, method: str) -> None:
    """The renderer's own mask says which pixels are the cell."""
    cell = render_cell(11, label)
    code = cell.cells.masks()[0]
    assert code is not None
    mask = masks.decode(code, cell.pixels.shape[:2])
    result = made(cell.pixels, cell.cells.boxes()[0], method=method)
    changed = (result != cell.pixels).any(axis=2)
    assert changed[mask].mean() > 0.995
    empty = np.median(cell.pixels.reshape(-1, 3)[cell.pixels.min(axis=2).ravel() > 180], axis=0)
    still_dark = (result[mask] < empty - 60).any(axis=1)
    assert still_dark.mean() < (0.005 if method == "fill" else 0.2)
    assert (cell.pixels[mask] < empty - 60).any(axis=1).mean() > 0.3


# -- a dataset ------------------------------------------------------------------------------------


def dataset(folder: Path, boxes: dict[str, list[list[float]]], **columns: Any) -> Dataset:
    """Images with a dark disc in each box."""
    rows = []
    for image_id, cells in boxes.items():
        discs = [((x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2) for x0, y0, x1, y1 in cells]
        path = folder / image_id
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(field(*discs)).save(path)
        rows.append({"image_id": image_id, "path": str(path), "width_px": W, "height_px": H} | columns)
    flat = [(image_id, corners) for image_id, cells in boxes.items() for corners in cells]
    table = Cells.of(
        KINDS,
        image_id=[i for i, _ in flat],
        boxes=np.array([corners for _, corners in flat], np.float32).reshape(-1, 4),
        label=["neutrophil"] * len(flat),
        source="import:x",
    )
    return Dataset(Images.of(rows), table, "smears", licence="CC0-1.0")


def found(boxes: dict[str, list[list[float]]], label: str | None = "leukocyte", counted: bool = True) -> Cells:
    flat = [(image_id, corners) for image_id, cells in boxes.items() for corners in cells]
    return Cells.of(
        SEEN,
        image_id=[i for i, _ in flat],
        boxes=np.array([corners for _, corners in flat], np.float32).reshape(-1, 4),
        label=[label] * len(flat),
        source="bundle:eyes@0123",
        score=[0.9] * len(flat),
        counted=counted,
    )


ONE, OTHER = [30.0, 30.0, 54.0, 54.0], [80.0, 10.0, 96.0, 26.0]


def test_a_background_keeps_the_place_of_its_source(tmp_path: Path) -> None:
    data = dataset(tmp_path / "in", {"p1/a.png": [ONE], "p2/a.png": [OTHER]}, um_per_px=0.1, stain="Wright")
    folds, splits, groups = [3, None], ["train", "test"], ["patient 1", "patient 2"]
    data = Dataset(data.images.with_columns(fold=folds, split=splits, group=groups), data.cells, "smears")
    result, problems = backgrounds(data, tmp_path / "out", seed=4)
    assert len(problems) == 0
    assert result.name == "smears-backgrounds"
    assert len(result.cells) == 0
    assert result.labels == data.labels
    assert result.images.ids == ["backgrounds/p1/a.png.png", "backgrounds/p2/a.png.png"]
    for own, source in zip(result.images.rows(), data.images.rows(), strict=True):
        for name in ("fold", "split", "group", "um_per_px", "stain", "width_px", "height_px"):
            assert own[name] == source[name], name
        assert own["complete_for"] is None
        assert own["sha256"] == hashlib.sha256(Path(own["path"]).read_bytes()).hexdigest() != source["sha256"]
        shown = load_image(own["path"]).pixels
        assert np.abs(shown.astype(int) - PALE).max() <= 8
    step = dict(result.provenance[-1])
    assert step.pop("settings")["margin_px"] == 16
    assert step == {
        "step": "backgrounds", "of": {"name": "smears", "fingerprint": data.fingerprint}, "found_by": [], "seed": 4,
        "made": 2, "skipped": {},
    }  # fmt: skip
    again = Dataset.read(tmp_path / "out")
    assert again.fingerprint == result.fingerprint
    assert len(data.images.concat(result.images)) == 4  # its ids are its own


def test_images_without_exactly_one_cell_are_counted_by_reason(tmp_path: Path) -> None:
    boxes = {"one.png": [ONE], "two.png": [ONE, OTHER], "none.png": [], "gone.png": [OTHER], "off.png": [OTHER]}
    data = dataset(tmp_path / "in", boxes)
    (tmp_path / "in" / "gone.png").unlink()
    paths = [None if row["image_id"] == "off.png" else row["path"] for row in data.images.rows()]
    data = Dataset(data.images.with_columns(path=paths), data.cells)
    result, problems = backgrounds(data, tmp_path / "out")
    assert result.images.ids == ["backgrounds/one.png.png"]
    assert {p.where.rsplit("/", 1)[-1]: p.kind for p in problems} == {
        "two.png": "several-cells", "none.png": "no-cell", "gone.png": "image-missing", "off.png": "image-missing",
    }  # fmt: skip
    assert result.provenance[-1]["skipped"] == {"image-missing": 2, "no-cell": 1, "several-cells": 1}


def test_an_ignored_cell_is_a_cell(tmp_path: Path) -> None:
    data = dataset(tmp_path / "in", {"a.png": [ONE, OTHER]})
    ignored = Dataset(data.images, data.cells.with_columns(ignore=[False, True]))
    result, problems = backgrounds(ignored, tmp_path / "out")
    assert (len(result.images), problems.counts()) == (0, {"several-cells": 1})


def test_what_comes_out_depends_on_seed_and_image_only(tmp_path: Path) -> None:
    boxes = {"a.png": [ONE], "b.png": [ONE], "c.png": [OTHER]}
    data = dataset(tmp_path / "in", boxes)
    turned = Dataset(Images(data.images.frame.sort("image_id", descending=True)), data.cells)
    alone = data.where(image_id="a.png")

    def hashes(some: Dataset, name: str, seed: int) -> dict[str, str]:
        result, _ = backgrounds(some, tmp_path / name, seed=seed)
        return dict(result.images.frame.select("image_id", "sha256").iter_rows())

    first = hashes(data, "1", 1)
    assert hashes(turned, "2", 1) == first
    assert hashes(alone, "3", 1).items() <= first.items()
    assert set(hashes(data, "5", 2).values()) & set(first.values()) == set()
    assert first["backgrounds/a.png.png"] != first["backgrounds/b.png.png"]  # equal pictures, noise of their own


def test_findings_say_what_is_one_cell(tmp_path: Path) -> None:
    whole = [0.0, 0.0, float(W), float(H)]
    data = dataset(tmp_path / "in", {"a.png": [ONE], "b.png": [ONE, OTHER], "c.png": [ONE], "d.png": [OTHER]})
    labels = Cells.of(
        KINDS,
        image_id=["a.png", "b.png", "d.png"],
        boxes=[whole, whole, OTHER],
        label=["neutrophil"] * 3,
        source="import:x",
    )
    data = Dataset(data.images, labels, "labels")  # c.png is not annotated
    middle = [40.0, 30.0, 64.0, 54.0]
    Image.fromarray(field((52, 42, 12))).save(tmp_path / "in" / "a.png")
    seen = found({"a.png": [middle], "b.png": [ONE, OTHER], "c.png": [ONE], "d.png": [ONE]})
    result, problems = backgrounds(data, tmp_path / "out", found=seen)
    assert result.images.ids == ["backgrounds/a.png.png", "backgrounds/c.png.png"]
    assert {p.where: p.kind for p in problems} == {"b.png": "several-cells", "d.png": "other-cell"}
    assert result.provenance[-1]["found_by"] == ["bundle:eyes@0123"]
    for path in result.images.frame["path"]:
        assert np.abs(load_image(path).pixels.astype(int) - PALE).max() <= 8


def test_red_cells_and_uncounted_findings_are_no_second_cell(tmp_path: Path) -> None:
    data = dataset(tmp_path / "in", {"a.png": [ONE]})
    seen = found({"a.png": [ONE]}).frame
    red = found({"a.png": [OTHER]}, "erythrocyte").with_columns(cell_id=["red"]).frame
    faint = found({"a.png": [OTHER]}, counted=False).with_columns(cell_id=["faint"]).frame
    result, _ = backgrounds(data, tmp_path / "1", found=Cells(pl.concat([seen, red, faint]), SEEN))
    assert len(result.images) == 1
    unnamed = found({"a.png": [OTHER]}, None).with_columns(cell_id=["unnamed"]).frame
    _, problems = backgrounds(data, tmp_path / "2", found=Cells(pl.concat([seen, unnamed]), SEEN))
    assert problems.counts() == {"several-cells": 1}
    with pytest.raises(DatasetError, match="about other images"):
        backgrounds(data, tmp_path / "3", found=found({"z.png": [ONE]}))


def test_a_background_is_complete_for_what_is_known_of_its_source(tmp_path: Path) -> None:
    data = dataset(tmp_path / "in", {"a.png": [ONE]}, complete_for=["neutrophil"])
    alone, _ = backgrounds(data, tmp_path / "1")
    assert alone.images.row("backgrounds/a.png.png")["complete_for"] == ["neutrophil"]
    seen, _ = backgrounds(data, tmp_path / "2", found=found({"a.png": [ONE]}))
    assert seen.images.row("backgrounds/a.png.png")["complete_for"] is None  # both labels are leukocytes


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    data = dataset(tmp_path / "in", {"a.png": [ONE]})
    with pytest.raises(FormatError, match="not an empty folder"):
        backgrounds(data, tmp_path / "in")


# -- real images ----------------------------------------------------------------------------------


@pytest.mark.data
def test_the_detector_finds_no_white_cell_in_backgrounds_of_pbc(data_root: Path, tmp_path: Path) -> None:
    from cytolens.bundle import Bundle
    from cytolens.predict.fields import predict_images
    from cytolens.predict.pipeline import Predictor, PredictSettings

    labels = LabelSet.of(["basophil", "lymphocyte", "monocyte", "neutrophil", "eosinophil"])
    table = pl.read_csv(data_root / "pbc" / "labels.csv")
    names = ["BA_101381.jpg", *(table.filter(label=k)["image"][5] for k in ("LY", "MO", "SNE", "EO", "BNE"))]
    rows = [{"image_id": n, "path": str(data_root / "pbc" / "images" / n), "split": "val"} for n in names]
    predictor = Predictor(Bundle.load("smear-detector"), PredictSettings())
    before = predict_images(predictor, rows).cells
    data = Dataset(Images.of(rows), Cells.empty(labels), "pbc")
    result, problems = backgrounds(data, tmp_path / "out", found=before)
    assert len(result.images) + len(problems) == len(names)
    assert len(result.images) >= 4
    after = predict_images(predictor, result.images.rows()).cells.filter(pl.col("counted"))
    assert len(before.where(label="leukocyte").filter(pl.col("counted"))) >= len(result.images)
    assert after.where(label="leukocyte").frame.height == 0
    assert after.where(label="erythrocyte").frame.height > 0
