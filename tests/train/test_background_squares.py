"""Squares of images without cells: where they are cut, how many there are, and what is left out in the end."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.predict.calling import predict
from cytolens.predict.familiarity import FILE, Familiarity
from cytolens.prepare.synthetic import render_cell
from cytolens.problems import DatasetError, LabelError, Problems, SettingError
from cytolens.run.training import train
from cytolens.settings import checked
from cytolens.train.augment_colour import ColourAugment
from cytolens.train.background_squares import BackgroundSquares
from cytolens.train.classification import ClassifyTraining, StoredCells, training_samples, tuning_batches

pytestmark = pytest.mark.torch

LABELS = LabelSet.of(["lymphocyte", "monocyte", "Background"])
CALM: dict[str, Any] = {
    "rotate": False, "flip": 0, "scale": [1, 1], "aspect": 0, "translate": 0,
    "colour": {name: 0 for name in ColourAugment.model_fields if name != "weakest"},
}  # fmt: skip
PLAIN: dict[str, Any] = {"background": False, "density": None}  # no stain normalisation: values stay what they are


def settings(**values: Any) -> ClassifyTraining:
    small: dict[str, Any] = {
        "model": "test_efficientnet",
        "background": "Background",
        "input": {"side_px": 32, "stain": PLAIN},
        "hardware": {"accelerator": "cpu", "workers": 0, "threads": 1},
        "optimise": {"epochs": 1, "closing_epochs": 0, "batch": 4},
    }
    return checked(ClassifyTraining, small | values, "test")


def slope(folder: Path, name: str, width: int, height: int) -> dict[str, Any]:
    """An image whose red is its column and whose green is its row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    Image.fromarray(pixels).save(folder / name)
    return {"image_id": name, "path": str(folder / name), "width_px": width, "height_px": height}


def dataset_of(folder: Path, empty: int = 3, cells: int = 8, labels: LabelSet = LABELS) -> Dataset:
    rows, ids, names = [], [], []
    for number in range(cells):
        kind = ("lymphocyte", "monocyte")[number % 2]
        image_id = f"cell-{number}.png"
        Image.fromarray(render_cell(number, kind, 64).pixels).save(folder / image_id)
        rows.append({"image_id": image_id, "path": str(folder / image_id), "width_px": 64, "height_px": 64})
        ids.append(image_id)
        names.append(kind)
    rows += [slope(folder, f"empty-{number}.png", 250, 240) for number in range(empty)]
    table = Cells.of(labels, image_id=ids, boxes=[[0, 0, 64, 64]] * len(ids), label=names, source="import:x")
    return Dataset(Images.of(rows), table)


def squares_of(data: Dataset, **values: Any) -> BackgroundSquares:
    made = BackgroundSquares.of(data, settings(**values), Problems())
    assert made is not None
    return made


def extent_px(square: np.ndarray) -> tuple[float, float]:
    """How many columns and rows of the slope a square shows; its pixels are centres, so one step is missing."""
    steps = square.shape[0] - 1
    red, green = square[..., 0].astype(float), square[..., 1].astype(float)
    factor = square.shape[0] / steps
    return (red[:, -1] - red[:, 0]).mean() * factor, (green[-1] - green[0]).mean() * factor


def test_to_tune_by_it_is_the_middle_square(tmp_path: Path) -> None:
    shown = squares_of(dataset_of(tmp_path)).middle()
    assert shown.shape == (3, 32, 32, 3)
    assert extent_px(shown[0]) == pytest.approx((146, 146), abs=2)
    assert shown[0, ..., 0].mean() == pytest.approx(124.5, abs=1)  # the middle of 250 columns
    assert shown[0, ..., 1].mean() == pytest.approx(119.5, abs=1)


def test_to_learn_from_it_is_any_square_of_the_sizes_inside_the_image(tmp_path: Path) -> None:
    squares = squares_of(dataset_of(tmp_path), augment=CALM)
    shown = [squares.varied(np.random.default_rng(seed)) for seed in range(60)]
    sizes = np.array([extent_px(one) for one in shown])
    assert np.abs(sizes[:, 0] - sizes[:, 1]).max() < 4
    assert 86 < sizes.min() < 110
    assert 200 < sizes.max() < 227
    left, right = [np.array([one[:, column, 0].mean() for one in shown]) for column in (0, -1)]
    assert left.min() < 20
    assert right.max() > 225
    again = squares.varied(np.random.default_rng(7))
    assert np.array_equal(again, shown[7])


def test_a_small_image_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    data = dataset_of(tmp_path, empty=0)
    small = Images.of([*data.images.rows(), slope(tmp_path, "small.png", 90, 40)])
    squares = squares_of(Dataset(small, data.cells), augment=CALM)
    assert extent_px(squares.middle()[0]) == pytest.approx((40, 40), abs=2)
    assert extent_px(squares.varied(np.random.default_rng(0))) == pytest.approx((40, 40), abs=2)


def test_only_images_known_to_be_empty_are_background(tmp_path: Path) -> None:
    data = dataset_of(tmp_path)
    squares = squares_of(data)
    assert (squares.count, squares.name, squares.allowed.tolist()) == (3, "Background", [False, False, True])
    unknown = Dataset(data.images.with_columns(complete_for=[]), data.cells)
    assert BackgroundSquares.of(unknown, settings(), Problems()) is None
    assert BackgroundSquares.of(data, settings(background=""), Problems()) is None
    narrow = dataset_of(tmp_path, labels=LabelSet.of(["lymphocyte", "monocyte"]))
    with pytest.raises(LabelError, match="Background"):
        BackgroundSquares.of(narrow, settings(), Problems())


@pytest.mark.parametrize(("share", "more"), [(0.5, 4), (2.0, 16), (0.01, 1)])
def test_an_epoch_holds_as_many_squares_as_the_share_says(tmp_path: Path, share: float, more: int) -> None:
    data, own = dataset_of(tmp_path), settings(background_share=share, balance=0)
    store = StoredCells(data, own, Problems())
    samples, weights = training_samples(store, own, BackgroundSquares.of(data, own, Problems()))
    assert len(samples) == 8 + more
    assert weights is not None
    assert set(weights) == {1.0}
    counted = Counter(tuple(samples[0, index][1].tolist()) for index in range(len(samples)))
    assert counted == {(True, False, False): 4, (False, True, False): 4, (False, False, True): more}
    balanced = settings(background_share=share, balance=1)
    _, weights = training_samples(store, balanced, BackgroundSquares.of(data, balanced, Problems()))
    assert weights is not None
    assert weights[8:].sum() == pytest.approx(weights[:8].sum() / 2)  # a label like any other


def test_the_tuning_part_has_one_square_of_each_empty_image(tmp_path: Path) -> None:
    data = dataset_of(tmp_path)
    allowed = np.concatenate([told for _, told in tuning_batches(data, settings(), Problems())])
    assert allowed.sum(axis=0).tolist() == [4, 4, 3]
    plain = np.concatenate([told for _, told in tuning_batches(data, settings(background=""), Problems())])
    assert plain.sum(axis=0).tolist() == [4, 4, 0]


def test_sides_that_are_no_range_are_refused() -> None:
    with pytest.raises(SettingError, match="a shortest and a longest side"):
        settings(background_px=[224, 88])


def test_without_empty_images_there_is_no_background_to_learn(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no image to learn from is known to be without cells"):
        train(settings(), dataset_of(tmp_path, empty=0), tmp_path / "run", progress=False)


@pytest.mark.parametrize("left_out", [True, False])
def test_a_classifier_with_a_background_is_trained_and_predicts(tmp_path: Path, left_out: bool) -> None:
    data = dataset_of(tmp_path, empty=6, cells=12)
    names = ["Background"] if left_out else []
    own = settings(output={"leave_out": names}, tuning_share=0.4, seed=3)
    bundle = train(own, data, tmp_path / "run", progress=False).bundle
    assert bundle.labels.names == LABELS.names  # the network still has that output
    assert bundle.self_test().passed
    cells = predict(tmp_path / "cell-0.png", bundle=bundle)
    assert cells.labels.leaves == (("lymphocyte", "monocyte") if left_out else LABELS.leaves)
    assert cells.probabilities().sum() == pytest.approx(1, abs=1e-5)
    file = bundle.file(FILE)
    assert file is not None
    assert len(Familiarity.from_bytes(file.read_bytes()).centres) == (2 if left_out else 3)


def test_names_that_cannot_be_left_out_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="nothing"):
        train(settings(output={"leave_out": ["nothing"]}), dataset_of(tmp_path), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "checkpoints").exists()
