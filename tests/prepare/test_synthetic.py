"""Rendered fields: the truth that comes with them is the truth about their pixels."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import polars as pl
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytolens import masks
from cytolens.dataset import Dataset
from cytolens.images import load_image
from cytolens.labels import attribute_schema, taxonomy
from cytolens.prepare.synthetic import (
    SyntheticField,
    SyntheticSettings,
    preset,
    render_cell,
    render_field,
    synthetic_labels,
    write_synthetic,
)
from cytolens.prepare.synthetic_optics import CHROMATIN, HAEMOGLOBIN, PLANES, draw_slide, photograph
from cytolens.prepare.synthetic_settings import RED_CELL_UM, WhiteCell
from cytolens.problems import LabelError, SettingError

WHITE = get_args(WhiteCell)
MATURE = ("segmented neutrophil", "band neutrophil", "eosinophil", "basophil", "lymphocyte", "monocyte")
SMALL = SyntheticSettings(
    width_px=200, height_px=150, red_cell_diameter_px=(24, 40), red_cells=(6, 14), white_cells=(1, 2), platelets=(1, 3)
)
# Diameters in dried smears as textbooks give them, µm, with room for flattening.
TEXTBOOK_UM = {
    "erythrocyte": (6.0, 8.5),
    "platelet": (1.5, 5.0),
    "segmented neutrophil": (10, 17),
    "band neutrophil": (10, 17),
    "eosinophil": (10, 17),
    "basophil": (9, 16),
    "lymphocyte": (7, 17),
    "monocyte": (11, 21),
    "promyelocyte": (12, 23),
    "myelocyte": (10, 20),
    "metamyelocyte": (10, 18),
    "erythroblast": (7, 14),
    "lysed cell": (7, 22),
}


def decoded(field: SyntheticField) -> list[masks.Mask]:
    size = field.pixels.shape[0], field.pixels.shape[1]
    return [masks.decode(code, size) for code in field.cells.masks() if code is not None]


def names_and_ignored(field: SyntheticField) -> tuple[list[str], list[bool]]:
    names = [name for name in field.cells.label_names() if name is not None]
    return names, field.cells.frame["ignore"].to_list()


def diameter_um(field: SyntheticField, row: int) -> float:
    return 2 * np.sqrt(decoded(field)[row].sum() / np.pi) * field.um_per_px


def replace_all(base: SyntheticSettings, **changes: Any) -> SyntheticSettings:
    return SyntheticSettings(**(base.model_dump() | changes))


def assert_true(field: SyntheticField) -> None:
    """Everything that must hold for any field."""
    shown = decoded(field)
    assert field.pixels.dtype == np.uint8
    assert len(shown) == len(field.cells)
    for mask, box in zip(shown, field.cells.boxes(), strict=True):
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    names, _ = names_and_ignored(field)
    opaque = [i for i, name in enumerate(names) if name in WHITE and name != "lysed cell"]
    for i in opaque:  # nothing is visible through a white cell; a burst cell has no body
        for j in range(len(shown)):
            assert j == i or names[j] == "lysed cell" or not (shown[i] & shown[j]).any()


# -- determinism ----------------------------------------------------------------------------------


def test_same_seed_same_field_other_seed_other_field():
    first, again, other = (render_field(seed, SMALL) for seed in (7, 7, 8))
    assert np.array_equal(first.pixels, again.pixels)
    assert first.cells.frame.equals(again.cells.frame)
    assert not np.array_equal(first.pixels, other.pixels)
    assert set(first.cells.frame["cell_id"]).isdisjoint(other.cells.frame["cell_id"])


def test_a_slide_keeps_its_scale_and_stain_over_fields():
    one, two = (render_field(seed, SMALL, slide_seed=3) for seed in (1, 2))
    strange = render_field(2, SMALL, slide_seed=4)
    assert one.um_per_px == two.um_per_px != strange.um_per_px
    assert not np.array_equal(one.pixels, two.pixels)

    def background(field: SyntheticField) -> np.ndarray:
        return np.percentile(field.pixels.reshape(-1, 3), 85, axis=0)

    assert np.abs(background(one) - background(two)).max() < np.abs(background(one) - background(strange)).max()


# -- truth ----------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**64))
def test_boxes_and_masks_agree_for_any_seed(seed: int):
    field = render_field(seed, SMALL, "a/b.png")
    assert_true(field)
    assert field.cells.frame["image_id"].unique().to_list() == ["a/b.png"]
    assert field.cells.frame["source"].unique().to_list() == ["synthetic@1"]
    names, _ = names_and_ignored(field)
    for low_high, kinds in ((SMALL.white_cells, WHITE), (SMALL.red_cells, ("erythrocyte",))):
        assert low_high[0] <= sum(name in kinds for name in names) <= low_high[1]
    assert SMALL.platelets[0] <= names.count("platelet") <= SMALL.platelets[1]


@pytest.mark.parametrize("look", ["varied", "cream", "grey"])
def test_fields_of_full_size_hold_what_the_settings_say(look: str):
    wanted = preset(look)
    for seed in range(3):
        field = render_field(seed, wanted)
        assert field.pixels.shape == (480, 640, 3)
        assert_true(field)
        names, _ = names_and_ignored(field)
        assert wanted.red_cells[0] <= names.count("erythrocyte") <= wanted.red_cells[1]
        assert wanted.white_cells[0] <= sum(name in WHITE for name in names) <= wanted.white_cells[1]
        low, high = wanted.red_cell_diameter_px
        assert low <= RED_CELL_UM / field.um_per_px <= high


@pytest.mark.parametrize("look", ["varied", "cream", "grey"])
def test_cells_are_darker_than_what_surrounds_them(look: str):
    field = render_field(11, preset(look))
    grey = field.pixels.astype(float).mean(axis=2)
    shown = decoded(field)
    free = ~np.any(shown, axis=0)
    compared = 0
    for mask, ignored in zip(shown, field.cells.frame["ignore"], strict=True):
        near = cv2.dilate(mask.astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
        near &= cv2.dilate((~free).astype(np.uint8), np.ones((7, 7), np.uint8)) == 0  # halos are neither
        if ignored or near.sum() < 30:
            continue
        compared += 1
        assert grey[mask].mean() < grey[near].mean() - 3
    assert compared >= 8


def test_masks_end_where_the_stain_ends():
    clear = replace_all(preset("cream"), blur_px=(0.4, 0.4), piled=(0, 0), debris=(0, 0), jpeg_quality=None)
    field = render_cell(4, "lymphocyte", 200, clear)
    mask = decoded(field)[0]
    dark = field.pixels[:, :, 1] < 170  # a lymphocyte is nearly all nucleus
    near = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    overlap = (mask & dark).sum() / (mask | (dark & near)).sum()
    assert overlap > 0.85


def test_ignored_cells_are_mostly_out_of_sight_and_others_are_not():
    seen = {True: [], False: []}
    for seed in range(12):
        field = render_field(seed, SMALL)
        names, ignored = names_and_ignored(field)
        whole_px = np.pi / 4 * (RED_CELL_UM / field.um_per_px) ** 2
        for name, ignore, mask in zip(names, ignored, decoded(field), strict=True):
            if name == "erythrocyte":
                seen[ignore].append(mask.sum() / whole_px)
    assert len(seen[True]) >= 3
    assert max(seen[True]) < 0.25 * 1.45  # red cells differ in size
    assert min(seen[False]) > 0.25 * 0.55


def test_a_field_of_nothing_is_an_empty_table():
    field = render_field(1, replace_all(SMALL, red_cells=(0, 0), white_cells=(0, 0), platelets=(0, 0), debris=(0, 0)))
    assert len(field.cells) == 0
    assert field.pixels.std(axis=(0, 1)).max() < 12


def test_crowded_small_images_leave_out_what_cannot_be_seen():
    crowded = replace_all(
        SMALL, width_px=64, height_px=64, red_cell_diameter_px=(60, 60), white_cells=(4, 4), red_cells=(30, 30)
    )
    field = render_field(2, crowded)
    assert_true(field)
    assert all(mask.any() for mask in decoded(field))


# -- labels and attributes ------------------------------------------------------------------------


def test_labels_are_canonical_names_of_the_taxonomy():
    labels = synthetic_labels()
    assert set(labels.names) == {"erythrocyte", "platelet", *WHITE}
    assert all(name in taxonomy() for name in labels.names)
    assert labels.attributes == attribute_schema("wbcatt")
    assert set(labels.leaves) == set(labels.names)


@pytest.mark.parametrize("label", sorted(TEXTBOOK_UM))
def test_a_cell_on_order_lies_in_the_middle_and_has_its_size(label: str):
    for seed in range(3):
        field = render_cell(seed, label, 360, preset("cream"), "x.png")
        assert field.pixels.shape == (360, 360, 3)
        names, ignored = names_and_ignored(field)
        assert names[0] == label
        assert not ignored[0]
        assert not any(name in WHITE for name in names[1:])
        x_min, y_min, x_max, y_max = field.cells.boxes()[0]
        assert x_min < 180 < x_max
        assert y_min < 180 < y_max
        low, high = TEXTBOOK_UM[label]
        assert low <= diameter_um(field, 0) <= high


def test_the_label_may_be_an_alias_but_must_be_drawn():
    assert render_cell(1, "SNE", 120).cells.label_names()[0] == "segmented neutrophil"
    with pytest.raises(LabelError, match='unknown label "hairy cell"'):
        render_cell(1, "hairy cell")


@pytest.mark.parametrize("label", sorted(TEXTBOOK_UM))
def test_attributes_say_what_was_drawn(label: str):
    for seed in range(3):
        field = render_cell(seed, label, 300, preset("cream"))
        frame = field.cells.frame
        said = {a.name: frame[a.column].cast(pl.String)[0] for a in attribute_schema("wbcatt")}
        rest = frame.filter(~pl.col("label").cast(pl.String).is_in(MATURE))
        assert all(rest[a.column].is_null().all() for a in attribute_schema("wbcatt"))
        if label not in MATURE:
            assert set(said.values()) == {None}
            continue
        assert None not in said.values()
        bare = {said["granularity"] == "no", said["granule_type"] == "nil", said["granule_colour"] == "nil"}
        assert len(bare) == 1
        assert said["cell_size"] == ("big" if diameter_um(field, 0) > 12.7 else "small")
        expected = {
            "segmented neutrophil": ("nucleus_shape", {"segmented-bilobed", "segmented-multilobed"}),
            "band neutrophil": ("nucleus_shape", {"unsegmented-band"}),
            "eosinophil": ("granule_colour", {"red"}),
            "basophil": ("granule_type", {"coarse"}),
            "lymphocyte": ("granularity", {"no"}),
            "monocyte": ("granularity", {"no"}),
        }
        name, values = expected[label]
        assert said[name] in values


def test_nuclear_ratio_is_that_of_the_pixels():
    """Counted without the drawing's help: the nucleus is what is by far the darkest."""
    calm = replace_all(preset("cream"), blur_px=(0.3, 0.3), sharpening=(0, 0), jpeg_quality=None, debris=(0, 0))
    for label, ratio in (("lymphocyte", "high"), ("segmented neutrophil", "low"), ("monocyte", "low")):
        field = render_cell(3, label, 300, calm)
        mask = decoded(field)[0]
        nucleus = (field.pixels[:, :, 1] < 95) & mask
        assert (nucleus.sum() / mask.sum() > 0.6) == (ratio == "high")
        assert field.cells.frame["wbcatt.nuclear_cytoplasmic_ratio"].cast(pl.String)[0] == ratio


def test_vacuoles_are_pale_holes():
    holes = {"yes": [], "no": []}
    for seed in range(10):
        field = render_cell(seed, "monocyte", 260, replace_all(preset("cream"), debris=(0, 0), red_cells=(0, 0)))
        inner = cv2.erode(decoded(field)[0].astype(np.uint8), np.ones((11, 11), np.uint8)) > 0
        said = field.cells.frame["wbcatt.cytoplasm_vacuole"].cast(pl.String)[0]
        holes[said].append(int((field.pixels[inner].min(axis=1) > 185).sum()))
    assert min(holes["yes"]) > max(holes["no"])


def test_the_mix_decides_which_white_cells_appear():
    only = replace_all(SMALL, mix={"eosinophil": 3.0, "basophil": 1.0, "monocyte": 0.0}, white_cells=(2, 2))
    names = [name for seed in range(12) for name in names_and_ignored(render_field(seed, only))[0] if name in WHITE]
    assert set(names) == {"eosinophil", "basophil"}
    assert names.count("eosinophil") > names.count("basophil")


# -- optics ---------------------------------------------------------------------------------------


def test_light_falls_off_as_beer_and_lambert_say():
    rng = np.random.default_rng(0)
    drawn = draw_slide(rng, SyntheticSettings(jpeg_quality=None))
    slide = replace(drawn, shading=0.0, glare=0.0, fringe_px=0.0, sharpening=0.0, noise=0.0)
    amounts = np.zeros((PLANES, 40, 40), np.float32)
    amounts[HAEMOGLOBIN, :, 20:] = 0.8
    amounts[CHROMATIN, 20:] = 0.3
    pixels = photograph(rng, amounts, slide, 0.0)
    bare, red, purple, over = (pixels[y, x].astype(float) for y, x in ((9, 9), (9, 30), (30, 9), (30, 30)))
    np.testing.assert_allclose(bare, slide.background, atol=0.51)
    np.testing.assert_allclose(red, slide.background * np.exp(-0.8 * slide.stains[HAEMOGLOBIN]), atol=0.51)
    np.testing.assert_allclose(over, red * purple / bare, atol=1.6)


def test_blur_noise_and_jpeg_do_what_they_are_called():
    rng = np.random.default_rng(1)
    base = replace(
        draw_slide(rng, preset("cream")), shading=0.0, fringe_px=0.0, sharpening=0.0, noise=0.0, jpeg_quality=None
    )
    amounts = np.zeros((PLANES, 64, 64), np.float32)
    amounts[CHROMATIN, :, 32:] = 1.0

    def steepest(blur_px: float) -> int:
        return int(np.abs(np.diff(photograph(rng, amounts, base, blur_px)[:, :, 1].astype(int), axis=1)).max())

    assert steepest(0.0) > 2 * steepest(1.5) > 2 * steepest(4.0)
    empty = np.zeros_like(amounts)
    calm, noisy = (photograph(rng, empty, replace(base, noise=s), 0.5)[:, :, 1].astype(float) for s in (0.0, 3.0))
    assert calm.std() < 0.6
    assert 2 < noisy.std() < 5
    assert not np.array_equal(
        photograph(np.random.default_rng(2), amounts, base, 0.5),
        photograph(np.random.default_rng(2), amounts, replace(base, jpeg_quality=40), 0.5),
    )


@pytest.mark.data
@pytest.mark.parametrize(
    ("look", "folder", "pattern"), [("cream", "pbc/images", "SNE_*.jpg"), ("grey", "bccd/JPEGImages", "*.jpg")]
)
def test_the_looks_resemble_published_smears(data_root: Path, look: str, folder: str, pattern: str):
    """Colour of the empty slide and of the darkest matter, against real fields."""
    real = [load_image(path).pixels for path in sorted((data_root / folder).glob(pattern))[::25][:10]]
    ours = [render_field(seed, preset(look)).pixels for seed in range(6)]

    def levels(pictures: list[np.ndarray], percent: float) -> np.ndarray:
        return np.median([np.percentile(picture.reshape(-1, 3), percent, axis=0) for picture in pictures], axis=0)

    np.testing.assert_allclose(levels(ours, 92), levels(real, 92), atol=14)
    np.testing.assert_allclose(levels(ours, 50), levels(real, 50), atol=32)


# -- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"red_cell": (1, 2)},
        {"red_cells": (5, 2)},
        {"blur_px": (-1, 2)},
        {"piled": (0, 1.5)},
        {"mix": {"unicorn": 1.0}},
        {"mix": {"eosinophil": -1.0}},
        {"mix": {"eosinophil": 0.0}},
        {"looks": {}},
        {"width_px": 3},
        {"jpeg_quality": (0, 50)},
    ],
)
def test_settings_refuse_what_makes_no_sense(wrong: dict):
    with pytest.raises(pydantic.ValidationError):
        SyntheticSettings(**wrong)


def test_settings_are_frozen_and_survive_json():
    for name in ("varied", "cream", "grey"):
        chosen = preset(name)
        assert SyntheticSettings.model_validate_json(chosen.model_dump_json()) == chosen
    with pytest.raises(pydantic.ValidationError):
        chosen.noise = (0.0, 0.0)  # type: ignore[misc]
    with pytest.raises(SettingError, match='Did you mean "cream"'):
        preset("crem")
    with pytest.raises(SettingError, match="got -1"):
        render_field(-1)


# -- datasets -------------------------------------------------------------------------------------


def test_write_synthetic_round_trip(tmp_path: Path):
    calls = []
    made = write_synthetic(
        tmp_path / "d", 5, 3, SMALL, "smears", fields_per_slide=2, progress=lambda done, of: calls.append((done, of))
    )
    assert calls == [(i, 5) for i in range(1, 6)]
    read = Dataset.read(tmp_path / "d")
    assert read.cells.frame.equals(made.cells.frame)
    assert read.images.frame.equals(made.images.frame)
    assert read.labels == made.labels == synthetic_labels()
    assert (read.name, read.fingerprint) == ("smears", made.fingerprint)
    assert read.provenance[0]["seed"] == 3
    assert SyntheticSettings(**read.provenance[0]["settings"]) == SMALL
    rows = read.images.rows()
    assert [row["group"] for row in rows] == [f"smears-slide-{i:04d}" for i in (0, 0, 1, 1, 2)]
    assert rows[0]["um_per_px"] == rows[1]["um_per_px"] != rows[2]["um_per_px"]
    for row in rows:
        assert set(row["complete_for"]) == set(synthetic_labels().names)
        assert row["image_id"] == Path(row["path"]).relative_to((tmp_path / "d").resolve()).as_posix()
        assert row["sha256"] == sha256(Path(row["path"]).read_bytes()).hexdigest()
        pixels = load_image(row["path"]).pixels
        assert pixels.shape == (row["height_px"], row["width_px"], 3)
    assert read.cells.frame["cell_id"].is_unique().all()


def test_images_on_disk_are_the_rendered_pixels_and_repeat(tmp_path: Path):
    one, two = (write_synthetic(tmp_path / name, 2, 9, SMALL) for name in ("a", "b"))
    assert one.fingerprint == two.fingerprint
    assert one.images.frame["sha256"].to_list() == two.images.frame["sha256"].to_list()
    longer = write_synthetic(tmp_path / "c", 3, 9, SMALL)
    assert longer.images.frame["sha256"].to_list()[:2] == one.images.frame["sha256"].to_list()
    other = write_synthetic(tmp_path / "e", 2, 10, SMALL)
    assert set(other.images.frame["sha256"]).isdisjoint(one.images.frame["sha256"])


def test_jpeg_stays_close_and_bad_requests_are_refused(tmp_path: Path):
    png = write_synthetic(tmp_path / "p", 1, 1, SMALL)
    jpeg = write_synthetic(tmp_path / "j", 1, 1, SMALL, jpeg_quality=95)
    assert jpeg.images.ids == ["images/00000.jpg"]
    a, b = (load_image(d.images.rows()[0]["path"]).pixels.astype(int) for d in (png, jpeg))
    assert 0 < np.abs(a - b).mean() < 4
    with pytest.raises(SettingError, match="got 60"):
        write_synthetic(tmp_path / "x", 1, 1, SMALL, jpeg_quality=60)
    with pytest.raises(SettingError, match="got -1 and 4"):
        write_synthetic(tmp_path / "x", -1, 1, SMALL)
    assert len(write_synthetic(tmp_path / "none", 0, 1).images) == 0
    assert len(Dataset.read(tmp_path / "none").cells) == 0
