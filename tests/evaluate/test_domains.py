"""The matrix of models and domains: what a domain is, and every figure in its place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.evaluate import plots
from cytolens.evaluate.domains import domain_matrix, domain_names, parts_by_domain
from cytolens.evaluate.scores import Scores, figure, paired_interval
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.prepare.recolour import Recolour, recoloured
from cytolens.prepare.stain import measure
from cytolens.problems import DatasetError, SettingError
from cytolens.run.step_kinds import STEPS
from tests.predict.doubles import painted

LABELS = LabelSet.of(["leukocyte", "erythrocyte"])


def fields(scanners: list[str | None]) -> Dataset:
    """One image per scanner with a leukocyte and an erythrocyte."""
    ids = [f"{i}.png" for i in range(len(scanners))]
    images = Images.of(
        [{"image_id": i, "scanner": s, "width_px": 100, "height_px": 100} for i, s in zip(ids, scanners, strict=True)]
    )
    boxes = np.tile([[10, 10, 30, 30], [50, 50, 70, 70]], (len(ids), 1))
    names = ["leukocyte", "erythrocyte"] * len(ids)
    cells = Cells.of(LABELS, image_id=[i for i in ids for _ in range(2)], boxes=boxes, label=names, source="human:x")
    return Dataset(images, cells, "fields")


def found_of(truth: Dataset, kept: list[str]) -> Dataset:
    """What a model found that misses every cell but those in these images."""
    frame = truth.cells.frame.filter(truth.cells.frame["image_id"].is_in(kept))
    cells = Cells(frame, LABELS)
    scored = Cells.of(
        LABELS, image_id=frame["image_id"].to_list(), boxes=cells.boxes(), label=cells.label_names(),
        score=np.full(len(frame), 0.9), source="bundle:x",
    )  # fmt: skip
    return replace(truth, cells=scored)


# -- what a domain is ------------------------------------------------------------------------------------


def test_domains_are_named_by_columns() -> None:
    images = fields(["H C1", "L C2", None]).images.with_columns(magnification="100x")
    assert domain_names(images, ["scanner", "magnification"]) == ["H C1 / 100x", "L C2 / 100x", "unknown / 100x"]
    assert domain_names(images) == ["H C1 / 100x / unknown", "L C2 / 100x / unknown", "unknown / 100x / unknown"]
    with pytest.raises(SettingError, match='Did you mean "scanner"'):
        domain_names(images, ["scaner"])


def test_a_dataset_is_one_domain_or_as_many_as_its_columns_say() -> None:
    both = {"a": fields(["x", "y", "x"]), "b": fields(["x"])}
    assert list(parts_by_domain(both, [])) == ["a", "b"]
    parts = parts_by_domain(both, ["scanner"])
    assert {name: dataset.images.ids for name, (_, dataset) in parts.items()} == {
        "a: x": ["0.png", "2.png"], "a: y": ["1.png"], "b: x": ["0.png"],
    }  # fmt: skip
    assert list(parts_by_domain({"a": both["a"]}, ["scanner"])) == ["x", "y"]


def test_what_all_images_were_taken_with_can_be_said() -> None:
    dataset = fields([None, "x"]).taken_with(scanner="H C1", stain="giemsa")
    assert dataset.images.frame["scanner"].to_list() == ["H C1", "H C1"]
    assert dataset.images.frame["stain"].to_list() == ["giemsa"] * 2
    assert dataset.images.frame["magnification"].null_count() == 2
    assert fields(["x"]).taken_with().images.frame["scanner"].to_list() == ["x"]


# -- the matrix --------------------------------------------------------------------------------------------


def scores(value: float | None, **more: Any) -> Scores:
    return Scores("detection", {"map50": value, "interval_unit": "image", **more})


def test_every_figure_stands_in_its_place() -> None:
    scored = {
        "before": {"home": scores(0.9, map50_interval=[0.8, 1.0]), "away": scores(0.5)},
        "after": {"away": scores(0.7, per_label={"WBC": {"ap50": 0.6}}), "home": scores(None)},
    }
    matrix = domain_matrix(scored, ["map50", "per_label.WBC.ap50"], "before", {"home": 3, "away": 5})
    assert matrix.table("map50") == [[0.9, 0.5], [None, 0.7]]
    assert matrix.table("map50", "low") == [[0.8, None], [None, None]]
    assert matrix.table("map50", "images") == [[3, 5], [3, 5]]
    gained = matrix.table("map50", "difference")
    assert gained[0] == [0.0, 0.0]
    assert gained[1] == [None, pytest.approx(0.2)]
    assert matrix.table("per_label.WBC.ap50") == [[None, None], [None, 0.6]]
    assert matrix.unit == "image"


@given(st.integers(0, 99), st.integers(2, 40))
def test_what_is_gained_has_the_interval_of_its_pairs(seed: int, resamples: int) -> None:
    before, after = np.random.default_rng(seed).random((2, resamples))
    scored = {
        "before": {"home": Scores("detection", figure("map50", 0.4, before))},
        "after": {"home": Scores("detection", figure("map50", 0.6, after)), "away": scores(0.7, map50_interval=[0, 1])},
    }
    matrix = domain_matrix(scored, ["map50"], "before", {"home": 3, "away": 3})
    expected = np.percentile([a - b for a, b in zip(after, before, strict=True)], [2.5, 97.5])
    ends = [matrix.table("map50", f"difference_{end}")[1] for end in ("low", "high")]
    assert [end[0] for end in ends] == pytest.approx(expected)
    assert [end[1] for end in ends] == [None, None]  # nothing to compare with
    assert matrix.table("map50", "difference_low")[0][0] == 0


def test_resamples_of_another_number_are_no_pairs() -> None:
    one, other = (figure("f1", 0.5, np.linspace(0, 1, n))["f1_interval"] for n in (5, 6))
    assert paired_interval(one, other) is None
    assert paired_interval(one, [0.1, 0.2]) is None
    assert paired_interval(one, one) == [0, 0]


def test_wrong_names_are_refused() -> None:
    scored = {"a": {"home": scores(0.5)}}
    with pytest.raises(SettingError, match=r'no score is called "map5".*Did you mean "map50"'):
        domain_matrix(scored, ["map5"], "a", {"home": 1})
    with pytest.raises(SettingError, match='baseline "b" is none of the models: a'):
        domain_matrix(scored, ["map50"], "b", {"home": 1})


def test_the_heat_map_draws_what_is_missing_too() -> None:
    once, again = (plots.heat_map(["a $x", "b"], ["home", "away"], [[0.1, None], [1.0, 0.5]], "map50") for _ in "12")
    assert once == again
    assert once.startswith(b"\x89PNG")


# -- the step ------------------------------------------------------------------------------------------------


def test_the_step_scores_every_model_on_every_domain(tmp_path: Path) -> None:
    truth = fields(["x", "x", "y"])
    for name, kept in (("all", ["0.png", "1.png", "2.png"]), ("x only", ["0.png", "1.png"])):
        found_of(truth, kept).write(tmp_path / name)
    truth.write(tmp_path / "truth")
    step = STEPS["domains"].model_validate(
        {
            "truth": {"fields": tmp_path / "truth"}, "baseline": "all", "by": ["scanner"], "figures": ["map50"],
            "found": {name: {"fields": [tmp_path / name]} for name in ("all", "x only")},
            "settings": {"bootstrap": 20},
        }
    )  # fmt: skip
    step.check()
    (tmp_path / "out").mkdir()
    assert step.run(tmp_path / "out", lambda _: None)["domains"] == 2
    said = json.loads((tmp_path / "out" / "domains.json").read_text())
    values = {(row["model"], row["domain"]): row["value"] for row in said["rows"]}
    expected = {("all", "x"): 1.0, ("all", "y"): 1.0, ("x only", "x"): 1.0, ("x only", "y"): 0.0}
    assert values == pytest.approx(expected)
    assert [row["difference"] for row in said["rows"] if row["model"] == "x only"] == pytest.approx([0.0, -1.0])
    assert said["domains"] == {"x": 2, "y": 1}
    ends = {row["domain"]: (row["difference_low"], row["difference_high"]) for row in said["rows"][2:]}
    assert ends["x"] == (0, 0)
    assert ends["y"] == (None, None)  # one image cannot be resampled
    assert "data:image/png" in (tmp_path / "out" / "domains.html").read_text()


def test_the_step_refuses_names_that_do_not_fit(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"truth": {"a": tmp_path}, "found": {"m": {"b": [tmp_path]}}, "baseline": "m"}
    with pytest.raises(SettingError, match=r'found\.m: "b" is no dataset of truth: a'):
        STEPS["domains"].model_validate(asked).check()
    with pytest.raises(SettingError, match='baseline "n"'):
        STEPS["domains"].model_validate({**asked, "baseline": "n"}).check()
    with pytest.raises(SettingError, match='only "error" is allowed'):
        STEPS["domains"].model_validate({**asked, "settings": {"missing": "ok"}}).check()
    with pytest.raises(SettingError, match="beside the settings"):
        STEPS["adapt"].model_validate({"model": tmp_path, "data": tmp_path, "settings": {"method": "x"}}).check()


# -- copies in other colours -----------------------------------------------------------------------------------


def test_recoloured_copies_are_darker_by_beer_and_lambert_and_keep_their_cells(tmp_path: Path) -> None:
    from PIL import Image

    from cytolens.images import load_image

    Image.fromarray(painted((100, 100), [("leukocyte", 50, 50, 20)])).save(tmp_path / "0.png")
    truth = fields(["x"])
    truth = replace(truth, images=truth.images.with_columns(path=str(tmp_path / "0.png")))
    doubled = Recolour(mixing=((2, 0, 0), (0, 2, 0), (0, 0, 2)), lamp=(200, 210, 220))
    made = recoloured(truth, tmp_path / "copies", doubled, "other")
    assert made.cells.frame.equals(truth.cells.frame)
    assert made.images.frame["scanner"].to_list() == ["other"]
    before = load_image(tmp_path / "0.png").pixels
    after = load_image(made.images.row("0.png")["path"]).pixels
    background = measure(before).background
    assert measure(after).background == pytest.approx([200, 210, 220], abs=1)
    density = -np.log(before[50, 50] / background)
    assert after[50, 50].tolist() == pytest.approx(np.array([200, 210, 220]) * np.exp(-2 * density), abs=2)
    assert recoloured(truth, tmp_path / "again", doubled, "other").fingerprint == made.fingerprint
    with pytest.raises(DatasetError, match="1 images have no file"):
        recoloured(fields(["x"]), tmp_path / "none", doubled, "other")
