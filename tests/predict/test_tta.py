"""Test-time augmentation: views are the symmetries of a square, and the answer follows those they are closed under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens.bundle import Bundle
from cytolens.predict import tta
from cytolens.predict.field_cells import FieldCells
from cytolens.predict.pipeline import Predictor, PredictSettings
from cytolens.problems import SettingError
from cytolens.tasks.classify import answers
from cytolens.views import View, flip, quarter_turn
from tests.predict.doubles import (
    NAMES,
    ColourEyes,
    FixedNames,
    Pixels,
    both,
    connect,
    detecting,
    naming,
    painted,
    rendered,
    scattered,
)

CHOICES = {"none": 1, "flip": 2, "flips": 4, "all": 8}
# The eight symmetries of a square, said by NumPy alone.
SYMMETRIES = [(turns, mirrored) for mirrored in (False, True) for turns in range(4)]


def seen(pixels: Pixels, turns: int, mirrored: bool) -> Pixels:
    """A picture (H, W, 3), mirrored left to right or not, then turned anticlockwise by quarters."""
    return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if mirrored else pixels, turns))


def view(size_wh: tuple[int, int], turns: int, mirrored: bool) -> View:
    first = flip(size_wh) if mirrored else View.whole(size_wh)
    return first.then(quarter_turn(first.wh, turns))


# Under which symmetries the views of each choice are closed: (turns, mirrored).
CLOSED = {
    "flip": [(0, True)],
    "flips": [(0, True), (2, False), (2, True)],
    "all": SYMMETRIES[1:],
}


# -- which views ------------------------------------------------------------------------------------


def test_a_choice_is_a_number_of_views() -> None:
    assert {name: tta.count(name, 3) for name in tta.TTA} == {"bundle": 3, **CHOICES}
    with pytest.raises(
        SettingError, match='no test-time augmentation "twice"; allowed: bundle, none, flip, flips, all'
    ):
        tta.count("twice", 1)


@pytest.mark.parametrize("choice", CHOICES)
def test_views_are_different_symmetries_and_the_first_changes_nothing(choice: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    pictures = [one.pixels(pixels) for one in tta.symmetries((7, 5), CHOICES[choice])]
    assert np.array_equal(pictures[0], pixels)
    known = {seen(pixels, *symmetry).tobytes(): symmetry for symmetry in SYMMETRIES}
    found = [known[picture.tobytes()] for picture in pictures]
    assert len(set(found)) == len(found) == CHOICES[choice]
    assert set(found) >= {(0, False), *CLOSED.get(choice, [])}


@pytest.mark.parametrize("choice", ["flip", "flips", "all"])
def test_views_are_closed_under_their_symmetries(choice: str) -> None:
    """Seen after a symmetry, the same pictures come in another order."""
    pixels = np.random.default_rng(1).integers(0, 256, (6, 4, 3)).astype(np.uint8)

    def pictures(shown: Pixels) -> set[bytes]:
        size_wh = (shown.shape[1], shown.shape[0])
        return {
            str(p.shape).encode() + p.tobytes()
            for v in tta.symmetries(size_wh, CHOICES[choice])
            if (p := v.pixels(shown)) is not None
        }

    expected = pictures(pixels)
    for symmetry in CLOSED[choice]:
        assert pictures(seen(pixels, *symmetry)) == expected
    outside = [symmetry for symmetry in SYMMETRIES[1:] if symmetry not in CLOSED[choice]]
    for symmetry in outside:
        assert pictures(seen(pixels, *symmetry)) != expected


def test_a_crop_is_shown_in_each_of_the_eight_symmetries_once() -> None:
    shown = np.random.default_rng(2).integers(0, 256, (3, 6, 6, 3)).astype(np.uint8)
    looked: list[NDArray[np.uint8]] = []

    def classifier(pictures: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        looked.append(pictures)
        # The value of one pixel tells the view.
        return pictures[:, 0, 1].astype(np.float32), np.full((len(pictures), 2), len(looked), np.float32)

    logits, embedding = answers(classifier, shown, 8)
    assert len(looked) == 8
    for cell in range(3):
        expected = sorted(seen(shown[cell], *symmetry).tobytes() for symmetry in SYMMETRIES)
        assert sorted(pictures[cell].tobytes() for pictures in looked) == expected
    corners = [[seen(one, *symmetry)[0, 1] for symmetry in SYMMETRIES] for one in shown]
    np.testing.assert_allclose(logits, np.mean(corners, axis=1), rtol=1e-6)
    assert embedding.tolist() == [[1, 1]] * 3  # of the cell as it is


@pytest.mark.parametrize("choice", ["flip", "flips", "all"])
def test_fields_and_crops_are_seen_in_the_same_views(choice: str) -> None:
    shown = np.random.default_rng(3).integers(0, 256, (1, 6, 6, 3)).astype(np.uint8)
    looked: list[bytes] = []

    def classifier(pictures: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        looked.append(pictures[0].tobytes())
        return np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32)

    answers(classifier, shown, CHOICES[choice])
    assert looked == [one.pixels(shown[0]).tobytes() for one in tta.symmetries((6, 6), CHOICES[choice])]


# -- the answer follows the picture -------------------------------------------------------------------


class LopsidedEyes(ColourEyes):
    """Finds discs a little to the lower right of where they are, and believes more in those to the left."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Pixels]) -> list[NDArray[np.float32]]:
        boxes, scores = super().run(outputs, feeds)
        height, width = feeds["images"].shape[1:3]
        centre = (boxes[..., 0] + boxes[..., 2]) / 2 / width + (boxes[..., 1] + boxes[..., 3]) / 20 / height
        return [
            boxes + np.array([1.5, 0.5, 2.0, 1.0], np.float32),
            scores * (1 - 0.4 * centre[..., None]).astype(np.float32),
        ]


def lopsided_names(pictures: Pixels) -> NDArray[np.float64]:
    """Shares over four names by the halves of a crop that are dark."""
    values = pictures.astype(np.float64).mean(axis=3) / 255
    left, top = values[:, :, :32].mean(axis=(1, 2)), values[:, :32].mean(axis=(1, 2))
    shares = np.stack([0.3 + 3 * left**2, 1 + top, np.full(len(values), 1.2), 2 - left * top], axis=1)
    return shares / shares.sum(axis=1, keepdims=True)


def predictor(patch: pytest.MonkeyPatch, folder: Path, choice: str) -> Predictor:
    connect(patch, eyes=LopsidedEyes(), names=FixedNames(lopsided_names))
    bundle = both(folder, detecting(folder), naming(folder, names=NAMES))
    return Predictor(bundle, PredictSettings(jobs=1, tta=cast(tta.Tta, choice)))


def assert_follows(there: FieldCells, here: FieldCells, back: View, within_px: float, within: float) -> None:
    """What was found in a turned picture, turned back, is what was found in the picture; sure cells at least."""
    sure = [one.scores >= 0.25 for one in (there, here)]
    assert sure[1].any()
    table = box.iou(back.back_boxes(there.boxes.astype(np.float64)), here.boxes)
    for rows, overlap in ((sure[0], table), (sure[1], table.T)):
        assert (overlap.max(axis=1)[rows] > 0.5).all()
    for row in np.flatnonzero(sure[1]):
        same = [other for other in np.argsort(-table[:, row]) if there.labels[other] == here.labels[row]]
        moved = back.back_boxes(there.boxes[same[:1]].astype(np.float64))[0] - here.boxes[row]
        assert np.abs(moved).max() < within_px
        assert abs(there.scores[same[0]] - here.scores[row]) < within
        np.testing.assert_allclose(there.probabilities[same[0]], here.probabilities[row], atol=within)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.integers(0, 10_000), st.sampled_from([(416, 320), (192, 224), (300, 200)]))
@pytest.mark.parametrize("choice", ["flip", "flips", "all"])
def test_a_turned_image_gives_turned_boxes_and_the_same_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, choice: str, data: Any, seed: int, size_wh: tuple[int, int]
) -> None:
    """The detector and the classifier are anything but symmetric themselves."""
    symmetry = data.draw(st.sampled_from(CLOSED[choice]))
    discs = scattered(size_wh, {"leukocyte": (2, 24.0), "erythrocyte": (3, 18.0)}, seed)
    pixels = painted(size_wh, discs)
    eyes = predictor(monkeypatch, tmp_path, choice)
    here, there = eyes.field(pixels), eyes.field(seen(pixels, *symmetry))
    assert len(here.boxes) == len(there.boxes) == 5
    assert_follows(there, here, view(size_wh, *symmetry), within_px=1e-3, within=0.01)


def test_without_views_the_lopsided_answer_does_not_follow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pixels = painted((416, 320), [("leukocyte", 100.0, 100.0, 24.0)])
    eyes = predictor(monkeypatch, tmp_path, "none")
    here, there = eyes.field(pixels), eyes.field(seen(pixels, 0, True))
    with pytest.raises(AssertionError):
        assert_follows(there, here, view((416, 320), 0, True), within_px=1e-3, within=0.01)


@pytest.mark.parametrize(("choice", "symmetry"), [("flips", (0, True)), ("all", (1, False))])
def test_the_shipped_detector_follows_too(choice: str, symmetry: tuple[int, bool]) -> None:
    pixels = rendered(3).pixels
    eyes = Predictor(Bundle.load("smear-detector"), PredictSettings(jobs=1, tta=cast(tta.Tta, choice)))
    here, there = eyes.field(pixels), eyes.field(seen(pixels, *symmetry))
    assert (here.scores >= 0.25).sum() >= 5
    assert_follows(there, here, view((448, 336), *symmetry), within_px=0.5, within=0.02)


def test_a_bundle_knows_how_many_views_it_wants(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for choice, looks in (("bundle", 4), ("none", 1), ("all", 8)):
        eyes = ColourEyes()
        connect(monkeypatch, eyes=eyes)
        settings_ = PredictSettings(jobs=1, tta=cast(tta.Tta, choice))
        Predictor(detecting(tmp_path, views=4), settings_).field(painted((416, 320), []))
        assert len(eyes.shown) == looks
