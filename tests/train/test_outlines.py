"""From masks to what a map network learns, and back: targets read as maps are the cells they were made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cytolens import formats, masks
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.problems import LabelError, Problems
from cytolens.tasks.outlines import MapReading, read
from cytolens.train import outlines
from cytolens.train.outline_settings import OutlineAugment, OutlineTraining
from cytolens.train.outlines import (
    StoredPicture,
    collate,
    field_loss,
    field_targets,
    image_type,
    mean_precision,
    mirrored,
    numbered,
    overlap_loss,
    part_targets,
    stored,
    training_samples,
    tuning_batches,
    varied,
)
from tests.predict.outline_doubles import Ellipse, marked

pytestmark = pytest.mark.torch

LABELS = LabelSet.of(["WBC", "nucleus"])
PLAIN = OutlineAugment.model_validate(
    {
        "rotate": False,
        "flip": 0,
        "scale": [1, 1],
        "aspect": 0,
        "translate": 0,
        "colour": dict.fromkeys(
            ("stain", "weak", "gamma", "white_balance", "blur", "resample", "sharpen", "noise", "jpeg"), 0
        ),
    }
)


@st.composite
def cells(draw: st.DrawFn) -> list[Ellipse]:
    """Ellipses in squares of a grid, each touching its neighbours or not, none of them hidden."""
    drawn = []
    for row in range(3):
        for column in range(3):
            if draw(st.booleans()):
                a, b = draw(st.floats(5, 20)), draw(st.floats(5, 20))
                a, b = max(a, b / 2), max(b, a / 2)
                # Against the upper left corner of the square: what follows touches it.
                drawn.append((40.0 * column + max(a, b), 40.0 * row + max(a, b), a, b, draw(st.floats(0, 3))))
    return drawn


# -- targets ------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(drawn=cells())
def test_targets_read_as_maps_are_the_cells(drawn: list[Ellipse]) -> None:
    marks = marked((128, 125), drawn)
    targets = field_targets(marks)
    found = read(targets[:4], MapReading(area_min_px=1))
    assert mean_precision(found, marks) == 1
    assert len(found) == len(np.unique(marks[marks > 0]))
    for cell in found:
        window = marks[cell.y : cell.y + cell.mask.shape[0], cell.x : cell.x + cell.mask.shape[1]]
        (number,) = np.unique(window[cell.mask])
        rows, columns = np.nonzero(marks == number)
        assert cell.middle == pytest.approx((columns.mean(), rows.mean()), abs=1e-3)
        assert (marks == number).sum() == cell.mask.sum()


@settings(max_examples=30)
@given(drawn=cells(), unknown=st.integers(0, 60))
def test_targets_against_a_slow_twin(drawn: list[Ellipse], unknown: int) -> None:
    marks = marked((64, 60), drawn)
    marks[:, :unknown] = -1
    targets = field_targets(marks)
    np.testing.assert_array_equal(targets[0], marks > 0)
    np.testing.assert_array_equal(targets[4], marks >= 0)
    for number in np.unique(marks[marks > 0]):
        places = [(y, x) for y in range(60) for x in range(64) if marks[y, x] == number]
        middle_y = sum(y for y, _ in places) / len(places)
        middle_x = sum(x for _, x in places) / len(places)
        hill = max(1.5, 0.16 * len(places) ** 0.5)
        for y, x in places[:: max(1, len(places) // 20)]:
            assert targets[2, y, x] * 16 == pytest.approx(middle_y - y, abs=1e-4)
            assert targets[3, y, x] * 16 == pytest.approx(middle_x - x, abs=1e-4)
            off = (middle_y - y) ** 2 + (middle_x - x) ** 2
            assert targets[1, y, x] == pytest.approx(np.exp(-off / (2 * hill**2)), abs=1e-6)
    assert not targets[:4, marks <= 0].any()


@pytest.mark.data
def test_targets_of_real_nuclei_read_as_those_nuclei(data_root: Path) -> None:
    data = formats.read(data_root / "dsb2018", "rle_csv").dataset
    by_image = dict(data.cells.by_image())
    rows = [row for row in data.images.rows() if row["image_id"] in by_image][::24]
    scores = []
    for row in rows:
        marks = numbered(by_image[row["image_id"]], (row["height_px"], row["width_px"]))
        scores.append(mean_precision(read(field_targets(marks)[:4], MapReading(area_min_px=1)), marks))
    assert len(scores) > 7
    assert np.mean(scores) >= 0.99


def test_parts_are_bits() -> None:
    marks = np.array([[0, 1, 3], [5, 7, 1]], np.int32)
    np.testing.assert_array_equal(
        part_targets(marks, 3), [[[0, 1, 1], [1, 1, 1]], [[0, 0, 1], [0, 1, 0]], [[0, 0, 0], [1, 1, 0]]]
    )


def boxed(shapes: list[NDArray[np.bool_]], names: list[str | None], image: str = "a") -> Cells:
    codes = [masks.encode(shape) for shape in shapes]
    corners = np.array([masks.bounds(code, shapes[0].shape) for code in codes]).reshape(-1, 4)
    return Cells.of(
        LABELS, image_id=[image] * len(codes), boxes=corners, label=names, source="import:x", mask=list(codes)
    )


def test_of_overlapping_masks_the_smaller_is_in_front() -> None:
    large, small = marked((60, 50), [(30, 25, 20, 20, 0)]) > 0, marked((60, 50), [(30, 25, 8, 8, 0)]) > 0
    marks = numbered(boxed([small, large], ["WBC", "WBC"]), (50, 60))
    assert (marks == 1).sum() == small.sum()
    assert (marks == 2).sum() == (large & ~small).sum()


def test_the_type_of_an_image_is_that_of_most_of_its_cells() -> None:
    shape = marked((60, 50), [(30, 25, 20, 20, 0)]) > 0
    assert image_type(boxed([shape] * 3, ["WBC", "nucleus", "nucleus"])) == 1
    assert image_type(boxed([shape], [None])) == -1


# -- scores and losses --------------------------------------------------------------------------------


@settings(max_examples=40)
@given(drawn=cells(), shift=st.integers(-6, 6), left_out=st.integers(0, 3))
def test_mean_precision_against_a_slow_twin(drawn: list[Ellipse], shift: int, left_out: int) -> None:
    marks = marked((128, 125), drawn)
    moved = np.roll(marks, shift, axis=1)
    found = read(field_targets(moved)[:4], MapReading(area_min_px=1))[left_out:]
    said = []
    for cell in found:
        mask = np.zeros(marks.shape, bool)
        mask[cell.y : cell.y + cell.mask.shape[0], cell.x : cell.x + cell.mask.shape[1]] = cell.mask
        said.append(mask)
    truth = [marks == number for number in np.unique(marks[marks > 0])]
    means = []
    for limit in np.arange(0.5, 1, 0.05):
        hits = sum(any((t & s).sum() / (t | s).sum() > limit for s in said) for t in truth)
        means.append(hits / (len(truth) + len(said) - hits) if truth or said else 1.0)
    assert mean_precision(found, marks) == pytest.approx(np.mean(means))


def test_losses_are_least_at_the_truth_and_blind_to_what_is_unknown() -> None:
    marks = marked((64, 64), [(20, 30, 12, 10, 0.3), (45, 30, 11, 14, 0)])
    marks[:, 60:] = -1
    targets = torch.from_numpy(field_targets(marks))[None]
    clear = torch.cat((torch.logit(targets[:, :2].clamp(1e-4, 1 - 1e-4)), targets[:, 2:4]), dim=1)
    least = field_loss(clear, targets)
    for channel in range(4):
        other = clear.clone()
        other[:, channel] = 0
        assert field_loss(other, targets) > least + 0.01
    elsewhere = clear.clone()
    elsewhere[:, :, :, 60:] = 7
    assert field_loss(elsewhere, targets) == pytest.approx(float(least), abs=1e-6)
    overlap = overlap_loss(clear[:, :1], targets[:, :1])
    assert overlap < 0.02
    nothing = torch.zeros(1, 5, 32, 32)
    assert torch.isfinite(field_loss(torch.zeros(1, 4, 32, 32), nothing))


# -- samples ------------------------------------------------------------------------------------------


def pictured(size_wh: tuple[int, int] = (90, 70)) -> StoredPicture:
    """A picture whose red channel is 10 × the number of the cell."""
    marks = marked(size_wh, [(30, 30, 20, 14, 0.4), (65, 40, 12, 16, 0)])
    pixels = np.repeat((marks * 10)[..., None], 3, axis=2).astype(np.uint8)
    return StoredPicture(pixels, marks, 0)


def test_left_as_it_is_a_picture_is_its_middle() -> None:
    picture = pictured((90, 70))
    pixels, marks = varied(picture, 50, False, PLAIN, np.random.default_rng(0))
    np.testing.assert_array_equal(marks, picture.marks[10:60, 20:70])
    np.testing.assert_array_equal(pixels, picture.pixels[10:60, 20:70])


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), anywhere=st.booleans())
def test_marks_go_where_their_pixels_go(seed: int, anywhere: bool) -> None:
    picture = pictured()
    colour = PLAIN.colour
    settings_ = OutlineAugment(scale=(0.7, 1.5), aspect=0.3, translate=0.1, colour=colour)
    pixels, marks = varied(picture, 64, anywhere, settings_, np.random.default_rng(seed))
    assert pixels.shape == (64, 64, 3)
    assert set(np.unique(marks)) <= ({-1, 0, 1, 2} if anywhere else {0, 1, 2})
    inside = marks >= 0
    # Pixels are mixed at the borders of cells only.
    off = np.abs(pixels[..., 0].astype(int) - 10 * marks)[inside]
    assert (off > 0).mean() < 0.25
    assert off.max(initial=0) <= 20
    again = varied(picture, 64, anywhere, settings_, np.random.default_rng(seed))
    np.testing.assert_array_equal(again[0], pixels)
    np.testing.assert_array_equal(again[1], marks)


def test_a_field_goes_on_as_its_mirror_image_of_which_nothing_is_known() -> None:
    picture = pictured((40, 30))
    pixels, marks = varied(picture, 64, True, PLAIN, np.random.default_rng(0))
    assert (marks == -1).sum() == 64 * 64 - 40 * 30
    np.testing.assert_array_equal(pixels[17 + 1 : 17 + 30, 12:52], picture.pixels[1:])
    np.testing.assert_array_equal(pixels[16, 12:52], picture.pixels[1])


@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_padding_to_whole_strides(height: int, width: int) -> None:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    padded = mirrored(pixels)
    assert not any(side % 32 for side in padded.shape[:2])
    assert all(0 <= new - old < 32 for new, old in zip(padded.shape[:2], pixels.shape[:2], strict=True))
    np.testing.assert_array_equal(padded[:height, :width], pixels)


def dataset(folder: Path, shapes: list[NDArray[np.bool_]], names: list[str | None]) -> Dataset:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*shapes[0].shape, 3), 230, np.uint8)
    for shape in shapes:
        pixels[shape] -= 60
    Image.fromarray(pixels).save(folder / "a.png")
    size = {"width_px": shapes[0].shape[1], "height_px": shapes[0].shape[0]}
    images = Images.of([{"image_id": "a", "path": str(folder / "a.png"), **size}])
    return Dataset(images, boxed(shapes, names), "drawn")


def settings_of(**values: Any) -> OutlineTraining:
    return OutlineTraining.model_validate({"augment": PLAIN.model_dump(), **values})


def test_crops_of_cells_hold_the_cell_and_its_parts_and_no_neighbour(tmp_path: Path) -> None:
    whole, other = (marked((200, 160), [(x, 80, 30, 26, 0)]) > 0 for x in (70, 131))
    nucleus = marked((200, 160), [(72, 78, 12, 10, 0)]) > 0
    data = dataset(tmp_path, [whole, other, nucleus], ["WBC", "WBC", "nucleus"])
    shown = {"shows": "cell", "cell": {"side_px": 64, "context": 1.5}}
    given_ = settings_of(input=shown, labels=["WBC", "nucleus"])
    one, two = stored(data, given_, Problems())
    ((_, marks), (_, others)) = tuning_batches([one, two], given_)
    assert marks.shape == (64, 64)
    assert set(np.unique(marks)) == {0, 1, 3}
    assert set(np.unique(others)) == {0, 1}
    scale = 64 / (1.5 * 60)
    for bits, shape in ((1, whole), (2, nucleus)):
        assert (marks & bits > 0).sum() == pytest.approx(shape.sum() * scale**2, rel=0.05)
    rows, columns = np.nonzero(marks & 1)
    assert (columns.mean(), rows.mean()) == pytest.approx((31.5, 31.5), abs=0.6)
    samples, weights = training_samples([one, two], given_)
    assert (len(samples), weights) == (2, None)
    with pytest.raises(LabelError, match="name the cells and their parts"):
        stored(data, settings_of(input=shown), Problems())


def test_fields_without_masks_teach_nothing(tmp_path: Path) -> None:
    shape = marked((60, 50), [(30, 25, 20, 20, 0)]) > 0
    data = dataset(tmp_path, [shape], ["WBC"])
    (picture,) = stored(data, settings_of(), Problems())
    assert (picture.type, picture.marks.max(), picture.pixels.min()) == (0, 1, 0)
    bare = Dataset(data.images, data.cells.with_masks([None]), "bare")
    with pytest.raises(LabelError, match="no cell of the dataset has a mask"):
        stored(bare, settings_of(), Problems())


def test_rare_types_are_drawn_more_often_and_large_fields_too() -> None:
    small, large = pictured((64, 64)), pictured((400, 300))
    pictures = [small, small, small, StoredPicture(large.pixels, large.marks, 1)]
    samples, weights = training_samples(pictures, settings_of(crop_px=64, most_crops=5, balance=1.0))
    assert len(samples) == 3 + 5
    assert weights is not None
    assert weights[:3].sum() == pytest.approx(weights[3:].sum())
    assert training_samples(pictures, settings_of(crop_px=64, balance=0))[1] is None
    images, (maps, types) = collate([samples[0, 0], samples[0, 7]])
    assert (images.shape, images.dtype) == ((2, 3, 64, 64), torch.uint8)
    assert maps.shape == (2, 5, 64, 64)
    assert types.tolist() == [0, 1]


def test_maps_of_a_module_are_probabilities() -> None:
    logits = torch.full((1, 4, 2, 2), 3.0)
    assert outlines.as_maps(logits, True)[0, :, 0, 0].tolist() == pytest.approx([0.9526, 0.9526, 3, 3], abs=1e-4)
    assert outlines.as_maps(logits, False).max() < 1
