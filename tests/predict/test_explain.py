"""What a name rests on: squares that cover a cell, against a slow twin; and all of an explanation as files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from cytolens.images import Pixels
from cytolens.predict.explain import ExplainSettings, explain
from cytolens.predict.explain_page import map_picture, write_explanation
from cytolens.predict.occlusion import Occlusion, OcclusionSettings, occlusion
from cytolens.predict.pipeline import Predictor
from cytolens.problems import BundleError, DatasetError, ImageError
from tests.predict.doubles import ColourEyes, ConceptLooks, FixedLooks, connect, describing, detecting, painted
from tests.predict.test_concepts import SAID, SIZE, TINT, pipeline
from tests.predict.test_describe import on_disk, packed

# -- covering -------------------------------------------------------------------------------------


def twin(ask, pixels: Pixels, window: tuple[int, int, int, int], square: int, step: int) -> np.ndarray:
    """Slow and obvious: of each pixel, the mean fall over all squares that hold it."""
    left, top, right, bottom = window
    grey = round(float(pixels[top:bottom, left:right].mean()))
    falls: dict[tuple[int, int], list[float]] = {}
    rows = sorted({*range(0, max(bottom - top - square, 0), step), max(bottom - top - square, 0)})
    columns = sorted({*range(0, max(right - left - square, 0), step), max(right - left - square, 0)})
    for y in rows:
        for x in columns:
            shown = pixels.copy()
            shown[top + y : min(top + y + square, bottom), left + x : min(left + x + square, right)] = grey
            fall = ask(pixels) - ask(shown)
            for i in range(y, min(y + square, bottom - top)):
                for j in range(x, min(x + square, right - left)):
                    falls.setdefault((i, j), []).append(fall)
    result = np.zeros((bottom - top, right - left))
    for (i, j), values in falls.items():
        result[i, j] = np.mean(values)
    return result


@given(seed=st.integers(0, 999), square=st.floats(0.1, 1.0), step=st.floats(0.1, 1.0))
def test_the_map_is_that_of_the_slow_twin(seed: int, square: float, step: float) -> None:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (18, 23, 3), np.uint8)
    weights = random.normal(0, 1, pixels.shape)

    def ask(shown: Pixels) -> float:
        assert shown.shape == pixels.shape
        return float((weights * shown).sum() / 1e5)

    x, y = random.uniform(-4, 12, 2)
    region = np.array([x, y, x + random.uniform(4, 14), y + random.uniform(4, 14)])
    before = pixels.copy()
    found = occlusion(ask, pixels, region, OcclusionSettings(square=square, step=step))
    assert np.array_equal(pixels, before)
    left, top, right, bottom = found.window
    assert (left, top) == (int(max(region[0], 0)), int(max(region[1], 0)))
    assert right <= 23
    assert bottom <= 18
    side = max(right - left, bottom - top)
    expected = twin(ask, pixels, found.window, max(1, round(square * side)), max(1, round(step * side)))
    assert found.drop == pytest.approx(expected, abs=1e-5)
    assert found.before == ask(pixels)


def test_a_name_that_rests_on_one_spot_is_seen_to_rest_there() -> None:
    pixels = np.full((60, 60, 3), 200, np.uint8)
    pixels[40:44, 12:16] = 10
    found = occlusion(lambda shown: 0.9 if (shown[40:44, 12:16] == 10).all() else 0.2, pixels, [0, 0, 60, 60])
    assert found.drop[42, 14] == pytest.approx(0.7)
    assert found.drop[5, 50] == 0
    assert (found.drop >= 0).all()
    assert np.unravel_index(found.drop.argmax(), found.drop.shape) == pytest.approx((42, 14), abs=6)


def test_colours_say_which_way_it_went() -> None:
    pixels = np.full((50, 50, 3), 128, np.uint8)
    drop = np.zeros((20, 40), np.float32)
    drop[:, :10], drop[:, 30:] = 0.4, -0.4
    picture = map_picture(pixels, Occlusion((5, 10, 45, 30), drop, 0.9, 9))
    assert picture.shape == (160, 320, 3)
    red, _, blue = picture[80, 10].astype(int)
    assert red > 150 > blue  # orange
    red, _, blue = picture[80, 310].astype(int)
    assert blue > 150 > red  # indigo
    assert set(picture[80, 160]) == {128}  # nothing mattered
    faint = map_picture(pixels, Occlusion((5, 10, 45, 30), (drop / 1000).astype(np.float32), 0.9, 9))
    assert np.abs(faint.astype(int) - 128).max() < 6  # noise is not stretched to full colour


@pytest.mark.parametrize("values", [{"square": 0}, {"square": 1.5}, {"step": 0}, {"squares": 3}])
def test_squares_have_sizes(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        OcclusionSettings.model_validate(values)


# -- explaining an image --------------------------------------------------------------------------

SMEAR = painted((416, 320), [("leukocyte", 100, 100, 30), ("leukocyte", 250, 90, 28), ("erythrocyte", 300, 220, 25)])


def smear(folder: Path) -> Path:
    Image.fromarray(SMEAR).save(folder / "a.png")
    return folder / "a.png"


def dark(pictures: Pixels) -> list[list[float]]:
    """A lymphocyte, as surely as its picture is coloured."""
    coloured = (pictures.max(axis=3).astype(int) - pictures.min(axis=3) > 60).mean(axis=(1, 2))
    return [[0.5 + share / 2, 0.5 - share / 2] for share in coloured]


def test_an_explanation_is_a_page_a_table_and_a_map_per_cell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(monkeypatch, eyes=ColourEyes(), looks=ConceptLooks(dark, SAID))
    predictor = Predictor(pipeline(tmp_path))
    settings = ExplainSettings(occlusion=OcclusionSettings(square=0.4, step=0.3))
    explained = explain(predictor, smear(tmp_path), settings)
    out = tmp_path / "out"
    told = write_explanation(explained, out)
    assert json.loads((out / "explained.json").read_text(encoding="utf-8")) == told
    assert (told["counted"], told["named"], told["explained"]) == (3, 2, 2)
    assert told["names_read_from_attributes"] is True
    cell = told["cells"][0]
    assert cell["label"] == "lymphocyte"
    assert [one["label"] for one in cell["top"]][:2] == ["lymphocyte", "monocyte"]
    assert cell["attributes"]["s.tint"] == pytest.approx({"blue": 0.1, "red": 0.8, "grey": 0.1}, abs=1e-3)
    assert [one["weight"] for one in cell["speaks"]] == pytest.approx([1.6, 1.0], abs=1e-3)
    assert cell["map_squares"] == 9
    assert cell["map_largest_fall"] > 0.02  # grey covers colour
    assert cell["map_before"] == pytest.approx(cell["top"][0]["probability"], abs=1e-3)
    for one in told["cells"]:
        with Image.open(out / one["map"]) as picture:
            assert max(picture.size) == 320
    page = (out / "explained.html").read_text(encoding="utf-8")
    for text in ("Why these names", "1: lymphocyte", "monocyte", "what mattered", "+1.60", "size"):
        assert text in page
    (out / "maps" / "cell-009.png").write_bytes(b"of an earlier one")
    few = write_explanation(explain(predictor, tmp_path / "a.png", settings.model_copy(update={"most": 1})), out)
    assert (few["named"], few["explained"]) == (2, 1)
    assert [path.name for path in (out / "maps").iterdir()] == ["cell-001.png"]
    assert "1 of 2 named cells" in (out / "explained.html").read_text(encoding="utf-8")


def test_without_a_bottleneck_no_attribute_is_said_to_speak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(monkeypatch, eyes=ColourEyes(), looks=FixedLooks([0.9, 0.1], [0.0, 2.0, 1.0, 0.0, 0.0]))
    members = on_disk(
        tmp_path, detecting(tmp_path), describing(tmp_path, (SIZE, TINT), names=("lymphocyte", "monocyte"))
    )
    explained = explain(
        Predictor(packed(tmp_path, members)), smear(tmp_path), ExplainSettings(occlusion=OcclusionSettings(step=1))
    )
    told = write_explanation(explained, tmp_path / "out")
    assert told["names_read_from_attributes"] is False
    assert told["cells"][0]["speaks"] == []
    assert told["cells"][0]["attributes"]["s.size"]["large"] > 0.8
    assert told["cells"][0]["map_largest_fall"] == pytest.approx(0, abs=1e-6)  # it always says the same
    assert "no attribute can be said to speak" in (tmp_path / "out" / "explained.html").read_text(encoding="utf-8")


def test_what_cannot_be_explained_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(monkeypatch, eyes=ColourEyes(), looks=ConceptLooks([0.9, 0.1], SAID))
    with pytest.raises(BundleError, match="has no classifier, so there are no names to explain"):
        explain(Predictor(detecting(tmp_path)), smear(tmp_path))
    predictor = Predictor(pipeline(tmp_path))
    folder = tmp_path / "two"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(SMEAR).save(folder / name)
    with pytest.raises(DatasetError, match="2 images; explain takes one"):
        explain(predictor, folder)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(ImageError, match=r"broken\.png"):
        explain(predictor, tmp_path / "broken.png")
